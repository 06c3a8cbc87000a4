"""``callboard worker``, and ``dramatiq`` on the same app, as processes on a real server."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import Bus
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, Program, callboard, error_of, program
from workers.cli.stopping import SAME_SIGNAL_S
from workers.leaving import AFTER_GRACE_S

SECRET = "hunter2"

COMMANDS = {
    "callboard": [*CALLBOARD, "worker", "{app}", "--threads", "2"],
    "processes": [*CALLBOARD, "worker", "{app}", "--threads", "2", "--processes", "2"],
    "dramatiq": [sys.executable, "-m", "dramatiq", "{app}.broker", "-p", "1", "-t", "2"],
}

# An app whose handler writes a line, and then takes as long as its event says.
SLOW = """
import os, time
from bus import Bus
from workers import App

app = App(Bus())

@app.on("job", name="work")
def work(event):
    with open(os.environ["PLAY_LEDGER"], "a") as ledger:
        ledger.write(f"{event['n']}\\n")
    time.sleep(event["s"])
"""


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> list[str]:
    """The ways to start a worker; ``{app}`` stands for the app."""
    return COMMANDS[request.param]


@pytest.fixture
def env(redis_url: str, namespace: str, tmp_path: Path) -> dict[str, str]:
    return {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "PLAY_LEDGER": str(tmp_path / "ledger")}


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def starting(command: list[str], app: str) -> list[str]:
    return [part.format(app=app) for part in command]


def ledger(env: dict[str, str]) -> list[str]:
    path = Path(env["PLAY_LEDGER"])
    return path.read_text().splitlines() if path.exists() else []


def write(folder: Path, source: str) -> None:
    (folder / "shop.py").write_text(source)


def is_bound(bus: Bus, handlers: int = 1) -> bool:
    return len(bus.store.bindings().bindings) == handlers


# Working and stopping.


def test_a_worker_handles_events_and_sigterm_ends_it(
    command: list[str], bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    with program(starting(command, "tests.examples.play:app"), tmp_path, env=env) as worker:
        wait_until(lambda: is_bound(bus), "the worker to be bound", 20)
        for line in range(20):
            # As from a publisher that knows the type by its name alone.
            bus.publish_sync({"type": "play.speech", "agent_id": "a1", "line": line, "text": "hi"})
        wait_until(lambda: len(ledger(env)) == 20, "all speeches to be performed", 20)

        assert worker.end() == 0

    assert [json.loads(line)["line"] for line in ledger(env)] == list(range(20))
    assert bus.store.pending("default") == 0
    assert "Traceback" not in worker.errors


def test_what_a_stopped_worker_had_not_begun_is_at_once_there_for_the_next(
    command: list[str], bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, SLOW)
    with program(starting(command, "shop:app"), tmp_path, folder=tmp_path, env=env) as first:
        wait_until(lambda: is_bound(bus), "the worker to be bound", 20)
        for number in range(30):
            bus.publish_sync({"type": "job", "n": number, "s": 0.2})
        wait_until(lambda: ledger(env), "the work to begin", 20)
        assert first.end() == 0
    done = len(ledger(env))
    assert 0 < done < 30
    assert bus.store.pending("default") == 30 - done
    assert not any(count.in_flight for count in bus.store.census().counts)  # no lease has to end first

    with program(starting(command, "shop:app"), tmp_path, folder=tmp_path, env=env) as second:
        wait_until(lambda: len(ledger(env)) == 30, "the rest to be done", 20)
        assert second.end() == 0

    assert sorted(map(int, ledger(env))) == list(range(30))


def test_the_start_is_told_in_one_line_without_the_url(
    bus: Bus, env: dict[str, str], namespace: str, tmp_path: Path
) -> None:
    with program([*CALLBOARD, "worker", "tests.examples.play"], tmp_path, env=env) as worker:
        worker.wait_for("ready")
        assert worker.end(signal.SIGINT) == 0

    first = worker.errors.splitlines()[0]
    assert f"redis, namespace '{namespace}', queues default, " in first
    assert first.endswith("1 handler (tests.examples.play.perform), 8 threads, concurrency 1,000")
    assert "127.0.0.1" not in worker.errors


def test_a_second_signal_ends_it_at_once(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, SLOW)
    with program([*CALLBOARD, "worker", "shop"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")
        bus.publish_sync({"type": "job", "n": 1, "s": 60})
        wait_until(lambda: ledger(env), "the work to begin", 20)
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGTERM)  # a runner that signals the group and its members: still the first
        worker.wait_for("stopping")
        wait_until(lambda: _has_left(worker, signal.SIGTERM), "the worker to take a later signal for a second one", 10)

        assert worker.process.wait(10) == 1

    assert "error: a second signal" in worker.errors


def _has_left(worker: Program, number: signal.Signals) -> bool:
    worker.process.send_signal(number)
    return worker.process.poll() is not None


def test_a_handler_that_does_not_end_is_left_when_the_grace_ends(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, SLOW)
    with program([*CALLBOARD, "worker", "shop", "--grace", "0.5"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")
        bus.publish_sync({"type": "job", "n": 1, "s": 60})
        wait_until(lambda: ledger(env), "the work to begin", 20)

        assert worker.end(timeout=12) in (0, 1)

    assert bus.store.pending("default") == 1


def test_a_signal_that_does_not_wake_the_main_thread_is_heard(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    elsewhere = """
import signal, threading

@app.on("stop", name="stop")
def stop(event):
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
"""
    write(tmp_path, SLOW + elsewhere)
    with program([*CALLBOARD, "worker", "shop"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")
        bus.publish_sync({"type": "stop"})

        assert worker.process.wait(10) == 0


@pytest.mark.parametrize("command", [["callboard", "--grace", "0"], ["dramatiq", "--worker-shutdown-timeout", "0"]])
@pytest.mark.parametrize("executor", ["None", "ThreadPoolExecutor(1)"])
def test_a_call_that_blocks_in_a_thread_is_left_behind_and_named_where_all_else_is_done(
    command: list[str], executor: str, bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    blocks = f"""
import asyncio
from concurrent.futures import ThreadPoolExecutor

def fetch():
    time.sleep(60)

@app.on("block", name="block")
async def block(event):
    print("began", flush=True)
    await asyncio.get_running_loop().run_in_executor({executor}, fetch)
"""
    write(tmp_path, SLOW + blocks)
    way, *options = command
    with program([*starting(COMMANDS[way], "shop:app"), *options], tmp_path, folder=tmp_path, env=env) as worker:
        wait_until(lambda: is_bound(bus, 2), "the worker to be bound", 20)
        bus.publish_sync({"type": "block"})
        worker.wait_for("began")

        assert worker.end(timeout=AFTER_GRACE_S - 1) == 0

    said = "".join(worker.lines) + worker.errors
    named = [line for line in said.splitlines() if "left behind" in line]
    assert len(named) == 1
    assert "fetch" in named[0]
    assert bus.store.pending("default") == 1
    assert not any(count.in_flight for count in bus.store.census().counts), "it was not handed back"


def test_a_thread_that_a_resource_has_left_behind_changes_no_exit_code_of_a_failed_boot(
    env: dict[str, str], tmp_path: Path
) -> None:
    fails = """
import asyncio

@app.lifespan
async def resource():
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    raise OSError("no database")
    yield
"""
    write(tmp_path, SLOW + fails)
    with program([*CALLBOARD, "worker", "shop"], tmp_path, folder=tmp_path, env=env) as worker:
        assert worker.process.wait(20) == 3

    assert "time.sleep" in worker.errors


@pytest.mark.parametrize(
    ("closing", "named"),
    [
        ("yield\n    await asyncio.Event().wait()", "lifespan shop.resource did not close in time"),
        ("stays = asyncio.create_task(stay())\n    yield", "does not let itself be cancelled: "),
    ],
    ids=["a lifespan that hangs", "a task that stays"],
)
def test_what_does_not_close_is_named_and_the_exit_code_is_1(
    closing: str, named: str, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    hangs = f"""
import asyncio

async def stay():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

@app.lifespan
async def resource():
    {closing}
"""
    write(tmp_path, SLOW + hangs)
    with program([*CALLBOARD, "worker", "shop", "--grace", "0"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("ready")

        assert worker.end(timeout=AFTER_GRACE_S + 5) == 1

    assert named in worker.errors
    assert "the stop is not done at its deadline" not in worker.errors, "it has ended by itself"


@pytest.mark.parametrize("way", ["callboard", "dramatiq"])
def test_a_lifespan_that_fails_while_it_is_open_ends_the_worker(
    way: str, bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    fails = """
import asyncio

failed = asyncio.Event()

async def keep_the_connection():
    await failed.wait()
    raise ConnectionError("the pool is gone")

@app.lifespan
async def pool():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_the_connection())
        yield

@app.on("fail", name="fail")
async def fail(event):
    failed.set()
"""
    write(tmp_path, SLOW + fails)
    with program(starting(COMMANDS[way], "shop:app"), tmp_path, folder=tmp_path, env=env) as worker:
        wait_until(lambda: is_bound(bus, 2), "the worker to be bound", 20)
        bus.publish_sync({"type": "job", "n": 1, "s": 1.5})
        wait_until(lambda: ledger(env), "the work to begin", 20)
        bus.publish_sync({"type": "fail"})
        if way == "callboard":  # a signal that comes then is the first one
            worker.wait_for("failed while it was open")
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > SAME_SIGNAL_S, "a signal to count as another")
            worker.process.send_signal(signal.SIGTERM)

        code = worker.process.wait(20)

    said = "".join(worker.lines) + worker.errors
    assert "lifespan shop.pool failed while it was open" in said
    assert "the pool is gone" in said
    assert bus.store.pending("default") == 0, "what ran was not let end"
    assert code == 1


def test_only_the_named_queues_are_served(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    more = '\n@app.on("job", name="mail", queue="mail")\ndef mail(event): work({"n": "mail", "s": 0})\n'
    write(tmp_path, SLOW + more)
    with program([*CALLBOARD, "worker", "shop", "--queues", "mail"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("queues mail, 1 handler (mail),")
        bus.publish_sync({"type": "job", "n": 1, "s": 0})
        wait_until(lambda: ledger(env), "the mail to go out", 20)
        assert worker.end() == 0

    assert ledger(env) == ["mail"]
    assert bus.store.pending("default") == 1


# Starting, and failing to.


def test_a_worker_in_memory_is_refused(command: list[str], tmp_path: Path) -> None:
    with program(starting(command, "tests.examples.play:app"), tmp_path) as worker:
        assert worker.process.wait(20) == 2

    assert "BUS_URL" in worker.errors
    assert "callboard dev" in worker.errors
    assert "Traceback" not in worker.errors


def test_a_lifespan_that_fails_fails_the_start(
    command: list[str], env: dict[str, str], server: object, tmp_path: Path
) -> None:
    write(tmp_path, SLOW + "\n@app.lifespan\nasync def model():\n    raise RuntimeError('no model here')\n    yield\n")
    with program(starting(command, "shop:app"), tmp_path, folder=tmp_path, env=env) as worker:
        assert worker.process.wait(20) == 3

    assert "the worker could not start: RuntimeError: no model here" in worker.errors
    assert "in lifespan shop.model" in worker.errors
    # The app's own failure comes with its traceback, and nothing but that.
    places = [line for line in worker.errors.splitlines() if line.lstrip().startswith("File ")]
    assert [place.rpartition(" in ")[2] for place in places] == ["model"]


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("hook", ["after_process_boot", "before_worker_boot", "after_worker_boot"])
def test_a_hook_that_fails_fails_the_start_and_what_was_open_is_closed(
    hook: str, processes: str, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    hooked = f"""
import dramatiq
from dramatiq.middleware import MiddlewareError

class Hooked(dramatiq.Middleware):
    def {hook}(self, broker, *worker):
        raise {"MiddlewareError" if hook == "before_worker_boot" else "RuntimeError"}("not in this house")

app.broker.add_middleware(Hooked())

@app.lifespan
async def model():
    print("opened", flush=True)
    yield
    print("closed", flush=True)
"""
    write(tmp_path, SLOW + hooked)
    command = [*CALLBOARD, "worker", "shop", "--processes", processes]
    with program(command, tmp_path, folder=tmp_path, env=env) as worker:
        assert worker.process.wait(20) == 3

    assert worker.errors.count("not in this house") >= 1
    assert len([line for line in worker.errors.splitlines() if line.startswith("error: ")]) == 1
    assert worker.lines == ([] if hook == "after_process_boot" else ["opened", "closed"])


@pytest.mark.parametrize("raised", ["SystemExit(0)", "BaseException('a hook left')"])
def test_a_hook_that_leaves_fails_the_start_as_well(
    raised: str, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    hooked = f"""
import dramatiq

class Hooked(dramatiq.Middleware):
    def before_worker_boot(self, broker, worker):
        raise {raised}

app.broker.add_middleware(Hooked())

@app.lifespan
async def model():
    print("opened", flush=True)
    yield
    print("closed", flush=True)
"""
    write(tmp_path, SLOW + hooked)
    with program([*CALLBOARD, "worker", "shop"], tmp_path, folder=tmp_path, env=env) as worker:
        assert worker.process.wait(20) == 3

    told = [line for line in worker.errors.splitlines() if line.startswith("error: ")]
    assert [line.partition(":")[0] for line in told] == ["error"]
    assert f"the worker could not start: {raised.partition('(')[0]}" in told[0]
    assert worker.lines == ["opened", "closed"]


def test_a_worker_whose_server_is_away_does_not_start_and_hides_the_password(env: dict[str, str]) -> None:
    away = {**env, "BUS_URL": f"redis://me:{SECRET}@127.0.0.1:1/0"}

    error = error_of(callboard("worker", "tests.examples.play:app", env=away), 3)

    assert "cannot be reached" in error
    assert SECRET not in error


def test_a_signal_while_it_starts_unwinds_the_start(
    bus: Bus, env: dict[str, str], server: object, tmp_path: Path
) -> None:
    patient = """
@app.lifespan
async def model():
    import asyncio
    try:
        print("waiting", flush=True)
        await asyncio.Event().wait()
        yield
    finally:
        print("unwound", flush=True)
"""
    write(tmp_path, SLOW + patient)
    with program([*CALLBOARD, "worker", "shop"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("waiting")

        assert worker.end(timeout=15) == 0

    assert worker.lines == ["waiting", "unwound"]
    assert "Traceback" not in worker.errors


@pytest.mark.parametrize(
    ("where", "source", "what_to_do"),
    [
        ("", "", "write MODULE:APP"),
        ("shop:", "", "make one with app = App(bus)"),
        ("shop app", "", "write MODULE:APP"),
        ("nowhere:app", "", "there is no module 'nowhere' here"),
        ("shop.nowhere:app", "", "there is no module 'shop.nowhere' here"),
        ("shop.py:app", "", "it is imported, so write shop without .py"),
        ("shop.app", "from workers import App\nfrom bus import Bus\napp = App(Bus())", "did you mean 'shop:app'?"),
        ("shop:nope", "from workers import App\nfrom bus import Bus\nmine = App(Bus())", "did you mean 'shop:mine'?"),
        ("shop:app", "app = 1", "is a int, not a workers.App"),
        (
            "shop:app",
            "import nowhere",
            "importing module 'shop' failed: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("shop:app", "def", "importing module 'shop' failed: SyntaxError"),
        ("shop:app", "raise SystemExit(5)", "importing module 'shop' failed: SystemExit"),
        ("shop:app", "raise BaseException('of its own')", "importing module 'shop' failed: BaseException: of its own"),
        (
            "shop:app",
            f"raise ValueError('bad\\nurl redis://me:{SECRET}@host')",
            "failed: ValueError: bad url redis://host",
        ),
        ("shop:app", "from bus import Bus\nBus('http://x')", "failed: InvalidSettings: the bus URL must begin with"),
        ("shop:app", SLOW, "has no queue 'nope' (there are: default)"),
    ],
)
def test_an_app_that_cannot_be_used_is_one_line_and_exit_code_2(
    where: str, source: str, what_to_do: str, tmp_path: Path
) -> None:
    write(tmp_path, source)
    env = {"BUS_URL": "redis://127.0.0.1:1"}  # which nothing here should get as far as asking

    error = error_of(callboard("worker", where, "--queues", "nope", folder=tmp_path, env=env), 2)

    assert what_to_do in error
    assert SECRET not in error


@pytest.mark.parametrize(
    ("args", "what_to_do"),
    [
        ((), "MODULE"),
        (("x", "--threads", "0"), "'--threads'"),
        (("x", "--grace", "-1"), "'--grace'"),
        (("x", "y"), "unexpected"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(args: tuple[str, ...], what_to_do: str) -> None:
    assert what_to_do in error_of(callboard("worker", *args), 2)
