"""``callboard publish``, as a process on a real server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import Server
from tests.workers.commands import CALLBOARD, callboard, error_of, history, program

SECRET = "hunter2"


UNBOUND = (
    "no handler is bound to that, so nobody works on it (an app's handlers are bound when a worker of it starts)\n"
)


@pytest.fixture
def env(redis_url: str, namespace: str) -> dict[str, str]:
    return {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str) -> str:
        path = tmp_path / "events.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write


def post(number: int, agent_id: str = "a1") -> str:
    return json.dumps({"type": "agent.post.created", "agent_id": agent_id, "number": number})


# What is published.


def test_an_event_is_made_of_arguments(env: dict[str, str], redis_url: str, namespace: str) -> None:
    fields = ("agent_id=a1", "text=a=b", "size=3", "draft=false", 'tags=["x"]', "code=007", 'quoted:="5"', "nan=NaN")

    done = callboard("publish", "agent.post.created", *fields, env=env)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "published 1 event, 0 duplicates\n" + UNBOUND)
    (kept,) = history(redis_url, namespace)
    assert (kept.envelope.type, kept.envelope.topics) == ("agent.post.created", ("global",))
    assert kept.envelope.data == {
        "agent_id": "a1",
        "text": "a=b",
        "size": 3,
        "draft": False,
        "tags": ["x"],
        "code": "007",
        "quoted": "5",
        "nan": "NaN",
    }


def test_the_options_name_server_and_namespace_as_the_environment_does(redis_url: str, namespace: str) -> None:
    done = callboard("publish", "x", "--url", redis_url, "--namespace", namespace, "--log", "run:1")

    assert done.returncode == 0
    assert len(history(redis_url, namespace, log="run:1")) == 1


def test_the_lines_of_a_file_keep_their_order_and_are_addressed_by_their_fields(
    env: dict[str, str], redis_url: str, namespace: str, lines: Callable[..., str]
) -> None:
    file = lines(*[post(number, f"a{number % 3}") for number in range(450)], "")

    done = callboard(
        "publish", "--file", file, "--topic", "global", "--topic", "agent:{agent_id}", "--key", "agent_id", env=env
    )

    assert (done.returncode, done.stderr) == (0, "published 450 events, 0 duplicates\n" + UNBOUND)
    kept = history(redis_url, namespace)
    assert [each.envelope.data["number"] for each in kept] == list(range(450))
    assert (kept[4].envelope.topics, kept[4].envelope.key) == (("global", "agent:a1"), "a1")


@pytest.mark.parametrize("args", [("-",), ("--file", "-"), ()])
def test_lines_come_through_a_pipe(args: tuple[str, ...], env: dict[str, str], redis_url: str, namespace: str) -> None:
    done = callboard("publish", *args, "--type", "agent.noted", env=env, stdin='{"a": 1}\n{"type": "b", "a": 2}')

    assert (done.returncode, done.stderr) == (0, "published 2 events, 0 duplicates\n" + UNBOUND)
    assert [each.envelope.type for each in history(redis_url, namespace)] == ["agent.noted", "b"]


def test_a_line_in_an_open_pipe_does_not_wait_for_more_and_ctrl_c_ends_it_quietly(
    env: dict[str, str], tmp_path: Path
) -> None:
    with program([*CALLBOARD, "publish", "--json", "-"], tmp_path, env=env, stdin=subprocess.PIPE) as publishing:
        assert publishing.process.stdin is not None
        publishing.process.stdin.write(post(1).encode() + b"\n")
        publishing.process.stdin.flush()
        publishing.wait_for('"position"')

        code = publishing.end(signal.SIGINT)

    assert (code, publishing.errors) == (130, "")


def test_receipts_are_objects_and_the_same_id_counts_once(env: dict[str, str], lines: Callable[..., str]) -> None:
    file = lines(post(1), post(2))

    first = callboard("publish", "--file", file, "--id", "number", "--json", env=env)
    again = callboard("publish", "--file", file, "--id", "number", "--json", env=env)

    receipts = [json.loads(line) for line in first.stdout.splitlines()]
    assert [(each["id"], each["duplicate"], each["jobs"]) for each in receipts] == [("1", False, 0), ("2", False, 0)]
    repeated = [json.loads(line) for line in again.stdout.splitlines()]
    assert repeated == [{**each, "duplicate": True} for each in receipts]
    assert again.stderr == "published 0 events, 2 duplicates\n"


def test_a_key_that_no_event_has_is_warned_of(env: dict[str, str]) -> None:
    done = callboard("publish", "x", "agent_id=a1", "--key", "agent", env=env)

    assert done.returncode == 0
    assert done.stderr.startswith("warning: no event had the field 'agent' that --key names")


# Broken lines.


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("{nope", "not JSON"),
        ('"text"', "not a JSON object"),
        ('{"number": 5}', 'no "type"'),
        ('{"type": "no spaces", "agent_id": "a"}', "not the name of an event type"),
        ('{"type": "x", "agent_id": "has space"}', "invalid topic"),
        ('{"type": "x"}', "'agent_id'"),
        ('{"type": "x", "agent_id": "a", "n": NaN}', "not JSON"),
        ('{"type": "x", "agent_id": "a", "text": "' + 300_000 * "x" + '"}', "the limit is"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=["json", "object", "type", "type-name", "topic", "field", "nan", "large", "deep"],
)
def test_a_broken_line_is_named_and_what_came_before_it_stays_published(
    broken: str, why: str, env: dict[str, str], redis_url: str, namespace: str, lines: Callable[..., str]
) -> None:
    file = lines(post(1), post(2), broken, post(4))

    error = error_of(callboard("publish", "--file", file, "--topic", "agent:{agent_id}", env=env), 1)

    assert f"{file}, line 3: " in error
    assert why in error
    assert "2 events before it are published" in error
    assert [each.envelope.data["number"] for each in history(redis_url, namespace, "agent:*")] == [1, 2]


def test_broken_lines_may_be_left_out(
    env: dict[str, str], redis_url: str, namespace: str, lines: Callable[..., str]
) -> None:
    file = lines(post(1), "{nope", post(3), '{"type": "no spaces"}', post(5))

    done = callboard("publish", "--file", file, "--skip-bad", env=env)

    first, second, closing, _ = done.stderr.splitlines()
    assert done.returncode == 0
    assert first.startswith(f"skipped: {file}, line 2: ")
    assert second.startswith(f"skipped: {file}, line 4: ")
    assert closing == "published 3 events, 0 duplicates, 2 lines skipped"
    assert [each.envelope.data["number"] for each in history(redis_url, namespace)] == [1, 3, 5]


# What cannot work.


@pytest.mark.parametrize(
    ("args", "what_to_do"),
    [
        ((), "name a type"),
        (("agent.post.created", "text"), "write FIELD=VALUE"),
        (("agent.post.created", "a=1", "a=2"), "given twice"),
        (("agent.post.created", "a:=nope"), "not JSON"),
        (("agent post",), "use dotted names"),
        (("x", "--file", "y"), "either an event or --file"),
        (("x", "--topic", "no spaces"), "use only a-z"),
        (("x", "--topic", "agent:*"), "without '*'"),
        (("x", "--topic", "agent:{"), "invalid topic"),
        (("x", "--topic", "agent:{agent_id}"), "'agent_id'"),
        (("x", "--log", "a b"), "log 'a b'"),
        (("x", "--namespace", "a b"), "a namespace has"),
        (("x", "--nope"), "--help"),
        (("x", "--url", f"http://me:{SECRET}@127.0.0.1"), "must begin with"),
        (("x", "--url", f"redis://me:{SECRET}@127.0.0.1:port/0"), "percent-encode"),
        (("x", "--url", "memory://"), "BUS_URL"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(args: tuple[str, ...], what_to_do: str) -> None:
    env = {"BUS_URL": "redis://127.0.0.1:1"}  # which nothing here should get as far as asking

    error = error_of(callboard("publish", *args, env=env), 2)

    assert what_to_do in error
    assert SECRET not in error


def test_without_a_server_publishing_is_refused_because_nobody_would_hear_it() -> None:
    error = error_of(callboard("publish", "x"), 2)

    assert "BUS_URL" in error
    assert "--url" in error


def test_a_file_that_is_not_there_is_a_failure(env: dict[str, str], tmp_path: Path) -> None:
    assert "No such file" in error_of(callboard("publish", "--file", str(tmp_path / "nope"), env=env), 1)
    assert "directory" in error_of(callboard("publish", "--file", str(tmp_path), env=env), 1)


def test_a_server_that_is_away_is_a_failure_that_hides_the_password(free_port: int) -> None:
    env = {"BUS_URL": f"redis://me:{SECRET}@127.0.0.1:{free_port}/0"}

    error = error_of(callboard("publish", "x", env=env), 1)

    assert "cannot be reached" in error
    assert SECRET not in error


def test_a_wrong_password_is_a_failure_that_hides_it(start_server: Callable[..., Server]) -> None:
    server = start_server(requirepass="right")

    error = error_of(callboard("publish", "x", env={"BUS_URL": f"redis://:{SECRET}@127.0.0.1:{server.port}/0"}), 1)

    assert "refused the user or password" in error
    assert SECRET not in error


def test_a_server_that_evicts_is_refused(start_server: Callable[..., Server]) -> None:
    server = start_server(maxmemory="5mb", maxmemory_policy="allkeys-lru")

    assert "noeviction" in error_of(callboard("publish", "x", env={"BUS_URL": server.url}), 1)


def test_something_else_than_redis_is_a_failure(web_server: int) -> None:
    error = error_of(callboard("publish", "x", env={"BUS_URL": f"redis://127.0.0.1:{web_server}"}), 1)

    assert "does not speak the Redis protocol" in error


def test_a_reader_that_leaves_is_no_error(env: dict[str, str], tmp_path: Path, lines: Callable[..., str]) -> None:
    file = lines(*[post(number) for number in range(2000)])
    command = f"{' '.join(CALLBOARD)} publish --json --file {file} | head -n 1"

    with program(command, tmp_path, env=env) as piped:
        piped.process.wait(30)

    assert len(piped.lines) == 1
    assert "Traceback" not in piped.errors
    assert "BrokenPipe" not in piped.errors


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def web_server() -> Iterator[int]:
    """A port on which something answers that is not Redis."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    yield int(listening.getsockname()[1])
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
