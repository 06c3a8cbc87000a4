"""The guard: it kills what was told to stop and cannot, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus import Bus
from tests.faults.processes import state_of
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, ROOT, program
from tests.workers.running import run_program, start_program

# Guarded for SIGTERM, with half a second; then it does something to itself, and ends after two seconds, if it may.
GUARDED = """
import os, signal, sys, time
from workers.supervisor import Guard
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
Guard(0.5, [signal.SIGTERM])
{}
ends = time.monotonic() + 2
while time.monotonic() < ends:
    time.sleep(0.1)
print("alive")
"""
FORKED_AND_ENDED = """
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.1)
os.kill(child, signal.SIGTERM)
time.sleep(0.1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
# Some of them before they have run a line of their own.
MANY_ENDED = """
import multiprocessing
for _ in range(20):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(5)
    assert child.exitcode == -signal.SIGTERM, child.exitcode
"""


@pytest.mark.parametrize(
    "act",
    ["os.kill(os.getpid(), signal.SIGUSR1)", FORKED_AND_ENDED, MANY_ENDED],
    ids=["another signal", "a child's signal", "many children's signals"],
)
def test_what_was_not_told_to_stop_is_left_alone(act: str) -> None:
    assert run_program(GUARDED.format(act)) == "alive\n"


def test_what_was_told_to_stop_and_goes_on_is_killed() -> None:
    with start_program(GUARDED.format("os.kill(os.getpid(), signal.SIGTERM)")) as guarded:
        out, error = guarded.communicate(timeout=20)

    assert (guarded.returncode, out) == (-signal.SIGKILL, "")
    assert "stuck in C code" in error


# A handler with a process of its own, forked as multiprocessing does it by default on Linux, and ended by SIGTERM.
POOL = """
import multiprocessing, time
from bus import Bus
from workers import App

app = App(Bus())

@app.on("job", name="work")
def work(event):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(5)
    print("ended with", process.exitcode, flush=True)
    process.kill()
"""


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def test_processes_that_a_handler_forks_can_be_terminated(
    bus: Bus, namespace: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(POOL)
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}
    with program([*CALLBOARD, "worker", "shop:app"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")
        bus.publish_sync({"type": "job"})
        wait_until(lambda: worker.lines, "its process to end", 20)

        assert worker.lines == [f"ended with {-signal.SIGTERM}"]
        assert worker.end() == 0


IDLE = """
from bus import Bus
from workers import App

app = App(Bus())

@app.on("job", name="work")
def work(event): ...
"""


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "master"])
def test_a_log_that_nobody_reads_keeps_nothing_from_ending(
    options: tuple[str, ...], bus: Bus, namespace: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(IDLE)
    reading, writing = os.pipe()
    fill(writing)
    worker = subprocess.Popen(
        [*CALLBOARD, "worker", "shop:app", *options],
        cwd=tmp_path,
        env={**os.environ, "BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "PYTHONPATH": str(ROOT)},
        stderr=writing,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(serving(bus)) == max(1, len(options)), "it to work", 30)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        os.close(reading)
        os.close(writing)


HELD = """
import re
from bus import Bus
from workers import App

app = App(Bus())

@app.on("job", name="work")
def work(event):
    print("began", flush=True)
    re.match(r"(a+)+$", "a" * 64 + "b")  # for centuries, and nothing else of this process gets a turn
"""
HELD_S = 8.0
"""What is promised without a grace, even from inside C code."""
MARGIN_S = 2.0
"""For a busy machine."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_master_that_is_killed_leaves_no_orphan_in_c_code(
    bus: Bus, namespace: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(HELD)
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}
    command = [*CALLBOARD, "worker", "shop:app", "--grace", "0", "--processes", "2"]
    with program(command, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        bus.publish_sync({"type": "job"})
        wait_until(lambda: master.lines, "the work to begin", 10)
        assert len(everybody(namespace)) == 5  # two children and their guards

        master.process.kill()

        wait_until(lambda: not everybody(namespace), "all to be gone", HELD_S + MARGIN_S)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_log_that_nobody_reads_keeps_no_guard_from_killing_nor_from_ending(
    bus: Bus, namespace: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(HELD)
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}
    command = [*CALLBOARD, "worker", "shop:app", "--grace", "0"]
    reading, writing = os.pipe()
    fill(writing)
    try:
        with program(command, tmp_path, folder=tmp_path, env=env, errors_to=writing) as worker:
            wait_until(lambda: serving(bus), "it to work", 30)
            bus.publish_sync({"type": "job"})
            wait_until(lambda: worker.lines, "the work to begin", 10)

            assert worker.end(timeout=HELD_S + MARGIN_S) == -signal.SIGKILL
            wait_until(lambda: not everybody(namespace), "its guard to be gone", MARGIN_S)
    finally:
        os.close(reading)
        os.close(writing)


def everybody(namespace: str) -> list[int]:
    """The processes with this test's environment: all that its program has started, guards included."""
    mark = f"BUS_NAMESPACE={namespace}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if state_of(pid) not in ("", "Z")]


def serving(bus: Bus) -> Collection[str]:
    bus.usable()
    return bus.store.census().serving


def fill(pipe: int) -> None:
    """Leave no room in a pipe."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x")
    os.set_blocking(pipe, True)
