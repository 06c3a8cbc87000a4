"""The tests' own tools: servers that can be broken, waits that explain themselves, and leaks that are really caught.

A check for leaks that catches nothing looks like one that found nothing. So one inner run of pytest, with the same
``conftest.py``, leaks one of each kind on purpose, and the tests here read what it said.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import freezegun
import pytest
import redis

from tests.servers import Server, ServerNotFound, find_binary
from tests.waiting import NeverHappened, eventually, wait_until

ROOT = Path(__file__).parent.parent

StartServer = Callable[..., Server]


# Servers.


def test_a_server_answers_as_soon_as_it_is_there(start_server: StartServer) -> None:
    server = start_server()

    with server.client() as client:
        assert client.ping()
        assert client.info("server")["process_id"] == server.pid


def test_a_server_takes_options_of_its_own(start_server: StartServer) -> None:
    server = start_server(maxmemory="3mb", maxmemory_policy="allkeys-lru", requirepass="open sesame")

    with server.client() as client:
        config = client.config_get("maxmemory*")
        assert (config["maxmemory"], config["maxmemory-policy"]) == ("3145728", "allkeys-lru")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


def test_a_restart_keeps_the_port_and_with_appendonly_the_data(start_server: StartServer) -> None:
    server = start_server(appendonly=True, appendfsync="always")
    url, pid = server.url, server.pid
    with server.client() as client:
        client.set("kept", "yes")

    server.restart()

    assert (server.url, server.pid != pid) == (url, True)
    with server.client() as client:
        assert client.get("kept") == b"yes"


def test_without_appendonly_a_killed_server_comes_back_empty(start_server: StartServer) -> None:
    server = start_server()
    with server.client() as client:
        client.set("kept", "no")

    server.kill()
    server.start()

    with server.client() as client:
        assert client.get("kept") is None


def test_a_stopped_server_refuses_connections_and_may_be_stopped_twice(start_server: StartServer) -> None:
    server = start_server()

    server.stop()
    server.stop()

    assert not _listens(server.port)
    with pytest.raises(RuntimeError, match="start it first"):
        _ = server.pid


def test_a_frozen_server_takes_connections_and_says_nothing_until_it_thaws(start_server: StartServer) -> None:
    server = start_server()

    server.freeze()

    with server.client(timeout_s=0.1) as impatient:
        assert _listens(server.port)
        with pytest.raises(redis.TimeoutError):
            impatient.ping()
    server.thaw()
    with server.client() as client:
        assert client.ping()


def test_a_frozen_server_can_be_stopped_and_frozen_again(start_server: StartServer) -> None:
    server = start_server()

    server.freeze()
    server.restart()
    server.freeze()
    server.stop()

    assert not _listens(server.port)


def test_a_server_that_cannot_start_says_why(start_server: StartServer) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended at its start.*no-such-policy"):
        start_server(maxmemory_policy="no-such-policy")


def test_a_server_outlives_the_thread_that_started_it(start_server: StartServer) -> None:
    started: list[Server] = []
    thread = threading.Thread(target=lambda: started.append(start_server()))

    thread.start()
    thread.join()

    with started[0].client() as client:
        assert client.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_PDEATHSIG")
@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_a_server_dies_with_a_parent_that_is_killed(server: Server, tmp_path: Path, *, frozen: bool) -> None:
    program = f"""
        import signal
        from tests.servers import Server
        server = Server()
        {"server.freeze()" if frozen else ""}
        print(server.port, flush=True)
        signal.pause()
    """
    with _python(program, TMPDIR=str(tmp_path)) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert _listens(port)

        parent.send_signal(signal.SIGKILL)

    wait_until(lambda: not _listens(port), "the server to die with its parent")


def test_a_program_that_is_named_and_missing_is_an_error_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SERVER_BIN", "/no/such/server")

    with pytest.raises(ServerNotFound, match="REDIS_SERVER_BIN"):
        find_binary()


def test_the_session_server_knows_its_name_and_version(server: Server) -> None:
    assert server.name_and_version.split()[0] in {"Redis", "Valkey"}
    assert server.name_and_version.split()[1][0].isdigit()


# Modes and namespaces.


def test_whoever_asks_for_a_url_runs_in_both_modes(url: str, mode: str) -> None:
    assert url.startswith("memory://" if mode == "memory" else "redis://")


def test_the_session_server_is_empty_at_the_start_of_each_test(server: Server, namespace: str) -> None:
    with server.client() as client:
        assert client.dbsize() == 0


# Waiting.


def test_wait_until_returns_the_first_true_value() -> None:
    values = iter([0, None, "", "here"])

    assert wait_until(lambda: next(values), "a value") == "here"


def test_wait_until_says_what_never_happened_and_what_it_saw_last() -> None:
    with pytest.raises(NeverHappened, match=r"waited 0\.02 s for the moon; .* last value was \[\]"):
        wait_until(list, "the moon", timeout=0.02)


def test_a_wait_ends_at_its_deadline_although_the_clock_is_frozen() -> None:
    with freezegun.freeze_time("2035-01-01"), pytest.raises(NeverHappened):
        wait_until(lambda: False, "nothing", timeout=0.02)


async def test_eventually_takes_plain_and_async_conditions() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)

    async def is_set() -> bool:
        return done.is_set()

    assert await eventually(done.is_set, "the event")
    assert await eventually(is_set, "the event")
    with pytest.raises(NeverHappened, match="the moon"):
        await eventually(lambda: False, "the moon", timeout=0.02)


# Async tests, leaks and failures, each made on purpose in an inner run.

LEAKY_TESTS = """
import asyncio, os, socket, threading
import hypothesis, hypothesis.strategies as st
import pytest
import tests.leaks

tests.leaks.PATIENCE_S = 0.1
kept = []

def test_clean(server, namespace):
    thread = threading.Thread(target=int)
    thread.start()
    with server.client() as client:
        client.set(f"callboard:{{{namespace}}}:log", 1)
        client.set(f"callboard:{{{namespace}-second}}:log", 1)

def test_empty_again(server):
    with server.client() as client:
        assert client.dbsize() == 0

async def test_clean_async():
    await asyncio.create_task(asyncio.sleep(0))

@hypothesis.given(st.integers())
async def test_clean_property(number):
    await asyncio.create_task(asyncio.sleep(0))

def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

async def test_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

def test_socket():
    kept.append(socket.socket())

def test_loop():
    kept.append(asyncio.new_event_loop())

def test_connection(server):
    kept.append(server.client())
    kept[-1].ping()

def test_connection_of_a_late_server(request):
    kept.append(request.getfixturevalue("server").client())
    kept[-1].ping()

def test_key(server):
    with server.client() as client:
        client.set("callboard:{another}:log", 1)

def test_key_in_another_database(server, namespace):
    with server.client(db=3) as client:
        client.set(f"callboard:{{{namespace}}}:log", 1)

def test_after_the_strays(server, namespace):
    with server.client() as client:
        assert client.info("keyspace") == {}

def test_resource_warning():
    socket.socket()

def test_thread_that_raises():
    thread = threading.Thread(target=int, args=("x",))
    thread.start()
    thread.join()

def test_coroutine_never_awaited():
    asyncio.sleep(0)

def test_failure_that_leaks_too():
    kept.append(socket.socket())
    raise LookupError("the cause")

async def test_async_failure():
    await asyncio.sleep(0)
    raise LookupError("the cause")

@pytest.mark.timeout(3)
async def test_hang():
    await asyncio.Event().wait()

@hypothesis.given(st.integers())
async def test_property(number):
    await asyncio.sleep(0)
    assert number < 10

@hypothesis.given(st.just(1))
async def test_property_task(number):
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
"""


class Said(dict[str, list[str]]):
    """What an inner run said of each test: its outcomes in the short summary, with the first line of the reason."""

    def __init__(self, output: str) -> None:
        for line in output.splitlines():
            outcome, _, rest = line.partition(" ")
            if outcome in {"PASSED", "FAILED", "ERROR"} and "::" in rest:
                name, _, reason = rest.partition("::")[2].partition(" - ")
                self.setdefault(name, []).append(f"{outcome} {reason}".strip())
        self.output = output


@pytest.fixture(scope="module")
def said(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What an inner run said of the leaky tests above."""
    return Said(_inner_pytest(tmp_path_factory.mktemp("inner"), LEAKY_TESTS, CI="true"))


@pytest.mark.parametrize(
    "name", ["test_clean", "test_clean_async", "test_clean_property", "test_empty_again", "test_after_the_strays"]
)
def test_who_cleans_up_passes(said: Said, name: str) -> None:
    assert said[name] == ["PASSED"]


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("test_thread", "ERROR", "left behind: thread 'forgotten'"),
        ("test_task", "FAILED", "left behind: task 'forgotten'"),
        ("test_property_task", "FAILED", "left behind: task 'forgotten'"),
        ("test_connection", "ERROR", "left behind: connection"),
        ("test_connection_of_a_late_server", "ERROR", "left behind: connection"),
        ("test_key", "ERROR", "left behind: key b'callboard:{another}:log'"),
        ("test_key_in_another_database", "ERROR", "left behind: keys in database 3"),
        pytest.param(
            "test_socket", "ERROR", "left behind: socket:", marks=pytest.mark.skipif("sys.platform != 'linux'")
        ),
        pytest.param("test_loop", "ERROR", "left behind: socket:", marks=pytest.mark.skipif("sys.platform != 'linux'")),
    ],
)
def test_a_leak_is_caught_and_named(said: Said, name: str, outcome: str, reason: str) -> None:
    assert any(line.startswith(outcome) and reason in line for line in said[name]), said[name]


@pytest.mark.parametrize("name", ["test_resource_warning", "test_thread_that_raises", "test_coroutine_never_awaited"])
def test_a_warning_that_nobody_could_catch_fails_the_test(said: Said, name: str) -> None:
    assert any(line.startswith(("FAILED", "ERROR")) for line in said[name]), said[name]


@pytest.mark.parametrize("name", ["test_failure_that_leaks_too", "test_async_failure"])
def test_a_test_that_failed_is_reported_once_with_its_cause(said: Said, name: str) -> None:
    assert said[name] == ["FAILED LookupError: the cause"]


def test_an_async_property_test_can_fail(said: Said) -> None:
    assert said["test_property"][0].startswith("FAILED")


def test_an_async_test_that_hangs_is_cancelled_and_shows_where(said: Said) -> None:
    assert said["test_hang"] == ["FAILED TimeoutError"]
    assert ">       await asyncio.Event().wait()" in said.output


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")], ids=["at home", "in CI"])
def test_a_missing_server_skips_at_home_and_fails_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    output = _inner_pytest(tmp_path, "def test_it(server): pass", CI=ci, REDIS_SERVER_BIN="/no/such/server")

    assert "server: none" in output
    assert outcome in output


def _inner_pytest(folder: Path, tests: str, **environment: str) -> str:
    """The output of a pytest run in ``folder``, with our plugins and settings, one summary line for each test."""
    (folder / "test_inner.py").write_text(textwrap.dedent(tests))
    command = [sys.executable, "-m", "pytest", "-rA", "-W", "error", "-p", "tests.conftest", "-p", "no:valkey"]
    command += ["-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider", "test_inner.py"]
    finished = subprocess.run(
        command, cwd=folder, env=_environment(**environment), capture_output=True, text=True, timeout=50, check=False
    )
    return finished.stdout + finished.stderr


def _python(program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=_environment(**environment),
        stdout=subprocess.PIPE,
        text=True,
    )


def _environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "1000", "NO_COLOR": "1", **changes}


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
