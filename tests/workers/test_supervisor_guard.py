"""The guard: it kills what was told to stop and cannot, and nobody else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import Bus
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, program
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
