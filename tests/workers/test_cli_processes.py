"""``callboard worker --processes``: a master and its children, as processes on a real server."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import Bus
from tests.faults.processes import state_of
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, Program, callboard, program

SECRET = "hunter2"

# An app that says which process imports it, which of them work, and which middleware hooks ran where.
APP = """
import os, time
from pathlib import Path
import dramatiq
from bus import Bus
from workers import App

def note(what):
    with open(os.environ["PLAY_LEDGER"], "a") as ledger:
        ledger.write(f"{what} {os.getpid()}\\n")

note("imported")
app = App(Bus())

class Told(dramatiq.Middleware):
    def after_process_boot(self, broker):
        note("booted")

app.broker.add_middleware(Told())

@app.on("job", name="work")
def work(event):
    note(f"began-{event['n']}")
    time.sleep(event.get("s", 0))
    note(f"ended-{event['n']}")
"""

# Middleware that wants a process of its own, and says what becomes of it.
FORKS = """
def beside():
    note("beside")
    try:
        while True:
            time.sleep(0.05)
    finally:
        note("beside-ended")

class Beside(dramatiq.Middleware):
    @property
    def forks(self):
        return [beside]

app.broker.add_middleware(Beside())
"""

WORKER = [*CALLBOARD, "worker", "shop:app", "--threads", "2", "--grace", "3"]
TWO = [*WORKER, "--processes", "2"]


@pytest.fixture
def env(redis_url: str, namespace: str, tmp_path: Path) -> dict[str, str]:
    return {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "PLAY_LEDGER": str(tmp_path / "ledger")}


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def write(folder: Path, source: str = APP) -> None:
    """As of another second each time: to Python, what was written in one second is one file."""
    path = folder / "shop.py"
    written_at = path.stat().st_mtime - 10 if path.exists() else time.time()
    path.write_text(source)
    os.utime(path, (written_at, written_at))


def noted(env: dict[str, str], what: str) -> list[int]:
    """The processes that noted something, in order."""
    path = Path(env["PLAY_LEDGER"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.split()[0] == what]


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z")


def wait_for_workers(master: Program, env: dict[str, str], count: int) -> list[int]:
    """Wait until so many children have been ready, and return their pids, oldest first."""
    wait_until(lambda: master.errors.count("ready: redis") == count, f"{count} children to be ready", 30)
    return noted(env, "imported")


def test_children_work_and_the_master_never_imports_the_app(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program([*WORKER, "--processes", "3"], tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 3 processes are ready")
        for n in range(30):
            bus.publish_sync({"type": "job", "n": n, "s": 0.01})
        wait_until(lambda: bus.store.pending("default") == 0, "all of it to be done", 20)
        assert master.end() == 0

    imported = noted(env, "imported")
    assert len(set(imported)) == 3
    assert master.process.pid not in imported
    assert sorted(noted(env, "booted")) == sorted(imported)
    assert all(is_gone(pid) for pid in imported)
    assert {line[:4] for line in master.errors.splitlines() if "ready: redis" in line} == {"[1] ", "[2] ", "[3] "}


def test_a_killed_child_is_replaced_while_its_sibling_goes_on(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        victim, sibling = noted(env, "imported")

        os.kill(victim, signal.SIGKILL)
        after = wait_for_workers(master, env, 3)

        assert not is_gone(sibling)
        assert f"worker 1 (pid {victim}) was killed by SIGKILL: another takes its place" in master.errors
        assert len(set(after)) == 3
        assert master.end() == 0


def test_who_keeps_dying_is_replaced_ever_more_slowly(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        for round_ in range(3):
            _, *_, last = wait_for_workers(master, env, 2 + round_)
            os.kill(last, signal.SIGKILL)
            pause = f"in {0.1 * 2**round_:.1f} s"
            wait_until(lambda: pause in master.errors, f"a pause of {pause}", 10)  # noqa: B023 - within the round
        assert master.end() == 0


@pytest.mark.parametrize(
    ("source", "code", "why"),
    [
        (APP + "\n@app.lifespan\nasync def model():\n    raise RuntimeError('no model')\n    yield\n", 3, "no model"),
        ("raise ValueError('not today')", 2, "not today"),
        ("app = 1", 2, "is a int, not a workers.App"),
    ],
)
def test_an_app_that_cannot_start_ends_everything_and_is_said_once(
    source: str, code: int, why: str, bus: Bus, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    write(tmp_path, source)
    with program([*WORKER, "--processes", "4"], tmp_path, folder=tmp_path, env=env) as master:
        assert master.process.wait(30) == code

    errors = [line for line in master.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, master.errors
    assert why in errors[0]


def test_a_child_that_dies_before_it_is_ready_again_and_again_ends_everything(
    bus: Bus, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    write(tmp_path, APP + "\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        assert master.process.wait(30) == 3

    assert len(noted(env, "imported")) == 3
    assert "error: worker 1 was killed by SIGKILL before it was ready, again and again" in master.errors


def test_a_server_that_is_away_ends_everything_with_one_line_and_no_password(tmp_path: Path) -> None:
    away = {"BUS_URL": f"redis://me:{SECRET}@127.0.0.1:1/0"}
    done = callboard("worker", "tests.examples.play:app", "--processes", "3", env=away)

    assert done.returncode == 3
    assert done.stderr.count("cannot be reached") == 1
    assert SECRET not in done.stderr + done.stdout


def test_what_had_booted_is_closed_when_a_sibling_cannot_boot(
    bus: Bus, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    second_fails = """
@app.lifespan
async def place():
    try:
        os.mkdir("place")
    except FileExistsError:
        raise RuntimeError("the place is taken") from None
    note("opened")
    yield
    note("closed")
"""
    write(tmp_path, APP + second_fails)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        assert master.process.wait(30) == 3

    assert master.errors.count("error: the worker could not start: RuntimeError: the place is taken") == 1
    assert len(noted(env, "opened")) == len(noted(env, "closed")) == 1
    assert all(is_gone(pid) for pid in noted(env, "imported"))


def test_a_child_that_cannot_be_replaced_is_tried_again_while_its_sibling_works(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        victim, sibling = noted(env, "imported")
        write(tmp_path, "raise ValueError('half a deploy')")
        os.kill(victim, signal.SIGKILL)
        master.wait_for("worker 1 could not start and is tried again")
        write(tmp_path)
        wait_for_workers(master, env, 3)

        assert not is_gone(sibling)
        assert master.end() == 0


def test_a_master_that_is_killed_leaves_no_orphan_and_its_children_drain(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, APP + FORKS)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        wait_until(lambda: noted(env, "beside"), "the middleware's process")
        bus.publish_sync({"type": "job", "n": 1, "s": 1})
        wait_until(lambda: noted(env, "began-1"), "the work to begin")

        master.process.send_signal(signal.SIGKILL)
        master.process.wait(5)

        everybody = {*noted(env, "imported"), *noted(env, "beside")}
        wait_until(lambda: all(is_gone(pid) for pid in everybody), "all to be gone", 15)
    assert noted(env, "ended-1") == noted(env, "began-1")
    assert noted(env, "beside-ended") == noted(env, "beside")
    assert bus.store.pending("default") == 0


@pytest.mark.parametrize("hears", ["the master", "everybody"])
def test_a_stop_is_graceful_whoever_hears_the_signal(hears: str, bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        for n in range(4):
            bus.publish_sync({"type": "job", "n": n, "s": 1.5})
        wait_until(lambda: all(noted(env, f"began-{n}") for n in range(4)), "all four to begin")

        if hears == "everybody":  # as a service manager does, and the master, late, tells its children once more
            for pid in noted(env, "imported"):
                os.kill(pid, signal.SIGTERM)
            told_s = time.monotonic()
            wait_until(lambda: time.monotonic() - told_s > 0.7, "it to be no longer the same signal")
        assert master.end() == 0

    assert all(noted(env, f"ended-{n}") for n in range(4))
    assert master.errors.count("stopping: running handlers") == 2
    assert bus.store.pending("default") == 0


def test_a_second_signal_ends_everybody_at_once(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        bus.publish_sync({"type": "job", "n": 1, "s": 60})
        wait_until(lambda: noted(env, "began-1"), "the work to begin")
        master.process.send_signal(signal.SIGTERM)
        master.wait_for("stopping: 2 running")
        wait_until(lambda: _has_left(master), "the master to take a later signal for a second one", 10)

        assert master.process.wait(10) == 1

    assert "error: a second signal" in master.errors
    assert all(is_gone(pid) for pid in noted(env, "imported"))


def _has_left(master: Program) -> bool:
    master.process.send_signal(signal.SIGTERM)
    return master.process.poll() is not None


def test_a_reload_replaces_one_after_another_and_each_new_one_is_ready_before_the_old_one_drains(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, APP + FORKS)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        wait_until(lambda: noted(env, "beside"), "the middleware's process")
        old = noted(env, "booted")
        bus.publish_sync({"type": "job", "n": 1, "s": 1.5})
        wait_until(lambda: noted(env, "began-1"), "the work to begin")
        write(tmp_path, (APP + FORKS).replace('"booted"', '"booted-anew"'))

        master.process.send_signal(signal.SIGHUP)

        wait_until(lambda: all(is_gone(pid) for pid in old), "the old ones to be gone", 30)
        wait_until(lambda: len(noted(env, "beside")) == 2, "the middleware's process to be replaced", 10)
        assert len(noted(env, "booted-anew")) == 2
        assert master.end() == 0

    story = [line for line in master.errors.splitlines() if "ready: redis" in line or "stopping: running" in line]
    assert [line.partition("INFO")[2].strip()[:8] for line in story[2:]] == ["ready: r", "stopping"] * 2 + [
        "stopping"
    ] * 2
    assert noted(env, "ended-1") == noted(env, "began-1")
    assert noted(env, "beside-ended") == noted(env, "beside")
    assert bus.store.pending("default") == 0


def test_a_reload_to_code_that_cannot_start_is_given_up_and_the_old_ones_go_on(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        old = noted(env, "imported")
        write(tmp_path, "def")
        master.process.send_signal(signal.SIGHUP)
        master.wait_for("the reload is given up")

        assert not any(is_gone(pid) for pid in old)
        write(tmp_path)
        master.process.send_signal(signal.SIGHUP)
        wait_until(lambda: all(is_gone(pid) for pid in old), "the old ones to be gone", 30)
        assert master.end() == 0

    assert master.errors.count("SyntaxError") == 1


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_what_runs_beside_workers_does_not_outlive_a_killed_master(
    kind: str, env: dict[str, str], tmp_path: Path
) -> None:
    stubborn = {
        "thread": "import threading; threading.Thread(target=time.sleep, args=(60,)).start()",
        "loop": "while True:\n        try: time.sleep(60)\n        except BaseException: pass",
    }[kind]
    write(tmp_path, APP + FORKS.replace("    try:", f"    {stubborn}\n    try:", 1))
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        wait_until(lambda: noted(env, "beside"), "the process beside them", 30)
        (pid,) = noted(env, "beside")
        master.process.kill()
        wait_until(lambda: is_gone(pid), "the process beside them to be gone", 6)


def test_what_middleware_runs_beside_workers_runs_once_and_is_started_again(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, APP + FORKS)
    with program(TWO, tmp_path, folder=tmp_path, env=env) as master:
        master.wait_for("all 2 processes are ready")
        wait_until(lambda: noted(env, "beside"), "the middleware's process")
        os.kill(noted(env, "beside")[0], signal.SIGKILL)
        wait_until(lambda: len(noted(env, "beside")) == 2, "it to be started again", 10)
        assert master.end() == 0

    first, second = noted(env, "beside")
    assert noted(env, "beside-ended") == [second]
    assert not {first, second} & set(noted(env, "booted"))


def test_a_process_that_is_alone_begins_anew_on_sighup(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(WORKER, tmp_path, folder=tmp_path, env=env) as worker:
        wait_for_workers(worker, env, 1)
        bus.publish_sync({"type": "job", "n": 1, "s": 1})
        wait_until(lambda: noted(env, "began-1"), "the work to begin")
        write(tmp_path, APP.replace("began", "begun"))

        worker.process.send_signal(signal.SIGHUP)
        wait_for_workers(worker, env, 2)
        bus.publish_sync({"type": "job", "n": 2})
        wait_until(lambda: noted(env, "begun-2"), "the new code at work", 10)
        assert worker.end() == 0

    assert len(noted(env, "ended-1")) == 1
    assert noted(env, "imported") == [worker.process.pid] * 2


# Runs a program as the leader of a terminal's session; the terminal is its stdin.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["another", "a stop"])
def test_a_signal_while_it_begins_anew_is_heeded(
    number: signal.Signals, bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path)
    with program(WORKER, tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")
        worker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: worker.errors.rstrip().endswith("stopped"), "it to begin anew", 10)
        if number == signal.SIGHUP:
            worker.process.send_signal(signal.SIGHUP)
            wait_until(lambda: worker.errors.count("ready: redis") >= 2, "it to work again", 20)
        assert worker.end() == 0


@pytest.mark.parametrize("command", [WORKER, TWO], ids=["alone", "master"])
def test_closing_the_terminal_stops_it_and_sighup_before_is_a_reload(
    command: list[str], bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path)
    ours, terminal = os.openpty()
    on_terminal = [sys.executable, "-c", ON_TERMINAL, *command]
    with program(on_terminal, tmp_path, folder=tmp_path, env=env, stdin=terminal) as worker:
        os.close(terminal)
        first = 1 if command is WORKER else 2
        wait_for_workers(worker, env, first)
        worker.process.send_signal(signal.SIGHUP)
        wait_for_workers(worker, env, 2 * first)
        wait_until(lambda: worker.errors.count("stopped") == first, "the old ones to be gone", 20)

        os.close(ours)

        assert worker.process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_that_a_worker_started_is_left_when_it_is_killed(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path)
    with program(WORKER, tmp_path, folder=tmp_path, env=env) as worker:
        wait_for_workers(worker, env, 1)
        children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
        worker.process.kill()
        worker.process.wait(5)

        wait_until(lambda: all(is_gone(int(pid)) for pid in children), "its guard to be gone")
    assert len(children) == 1
