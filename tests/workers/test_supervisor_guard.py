"""The guard: it kills what was told to stop and cannot, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus import Bus
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


@pytest.mark.parametrize(
    "act", ["os.kill(os.getpid(), signal.SIGUSR1)", FORKED_AND_ENDED], ids=["another signal", "a child's signal"]
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
