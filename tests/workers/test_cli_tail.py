"""``callboard tail``, as a process on a real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dramatiq
import pytest

from bus import Bus
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, Program, callboard, error_of, history, program
from tests.workers.running import working
from workers import App

SECRET = "hunter2"


@pytest.fixture
def env(redis_url: str, namespace: str) -> dict[str, str]:
    return {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def test_events_are_shown_as_they_come_and_ctrl_c_is_its_normal_end(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    with program([*CALLBOARD, "tail"], tmp_path, env=env) as tail:
        tail.wait_for(f"listening to ** in namespace '{bus.namespace}' (Ctrl-C ends)\n")
        receipt = bus.publish_sync(
            {"type": "agent.noted", "text": "[bold]hi[/] \x1b[31m\u202e"}, topics=["global", "agent:a1"]
        )
        tail.wait_for("#1")

        assert tail.end(signal.SIGINT) == 0

    (line,) = tail.lines
    assert line[12:] == r'  #1  agent.noted  global agent:a1  {"text": "[bold]hi[/] \u001b[31m\u202e"}'
    assert receipt.position.seq == 1
    assert [line.split(":")[0][:12] for line in tail.errors.splitlines()[1:]] == ["to go on from"[:12]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_by_either_signal(number: signal.Signals, env: dict[str, str], tmp_path: Path) -> None:
    with program([*CALLBOARD, "tail", "global", "agent:*"], tmp_path, env=env) as tail:
        tail.wait_for("listening to global agent:*")

        assert tail.end(number) == 0


def test_a_json_line_is_the_envelope_with_its_position(
    bus: Bus, env: dict[str, str], redis_url: str, namespace: str
) -> None:
    receipt = bus.publish_sync({"type": "agent.noted", "text": "Ωmega"}, topics=["agent:a1"], key="a1", id="one")
    bus.publish_sync({"type": "agent.noted"}, topics=["elsewhere"])

    done = callboard("tail", "agent:*", "--after", "0", "--json", "--count", "1", env=env)

    assert done.returncode == 0
    assert done.stdout.isascii()
    (kept,) = history(redis_url, namespace, "agent:*")
    assert json.loads(done.stdout) == {
        "position": receipt.position,
        "specversion": "1.0",
        "id": "one",
        "type": "agent.noted",
        "source": kept.envelope.source,
        "time": kept.envelope.time,
        "datacontenttype": "application/json",
        "topics": ["agent:a1"],
        "key": "a1",
        "data": {"text": "Ωmega"},
    }


def test_it_begins_behind_a_position_and_ends_after_so_many(bus: Bus, env: dict[str, str]) -> None:
    receipts = [bus.publish_sync({"type": "n", "n": number}) for number in range(5)]

    done = callboard("tail", "--after", receipts[1].position, "--count", "2", "--json", env=env)

    assert [json.loads(line)["data"]["n"] for line in done.stdout.splitlines()] == [2, 3]


def test_it_begins_at_a_time(bus: Bus, env: dict[str, str]) -> None:
    first = bus.publish_sync({"type": "n", "n": 0})
    between = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > between + timedelta(milliseconds=5), "the clock to go on")
    bus.publish_sync({"type": "n", "n": 1})

    for after, expected in (
        ("1h", 0),
        (f"{between + timedelta(milliseconds=1):%Y-%m-%dT%H:%M:%S.%f}", 1),
        (first.position, 1),
    ):
        (line,) = callboard("tail", "--after", after, "--count", "1", "--json", env=env).stdout.splitlines()
        assert json.loads(line)["data"]["n"] == expected, after


def test_what_a_handler_says_on_the_way_is_marked_as_live(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    with program([*CALLBOARD, "tail", "--json", "--count", "1"], tmp_path, env=env) as tail:
        tail.wait_for("listening to")
        bus.publish_sync({"type": "typing"}, ephemeral=True)

        assert tail.process.wait(20) == 0

    (line,) = tail.lines
    assert json.loads(line)["ephemeral"] is True


@pytest.mark.parametrize("as_json", [False, True])
def test_a_gap_is_a_line_of_its_own(*, as_json: bool, redis_url: str, namespace: str, env: dict[str, str]) -> None:
    short = Bus(redis_url, namespace=namespace, cap=5)
    receipts = [short.publish_sync({"type": "n"}) for _ in range(10)]
    short.close_sync()
    args = ["--json"] if as_json else []

    done = callboard("tail", "--after", receipts[0].position, "--count", "1", *args, env=env)

    gap, _ = done.stdout.splitlines()
    assert gap == ('{"gap": {"first": 2, "last": 5, "reason": "trimmed"}}' if as_json else "gap 2..5 trimmed")


def test_what_workers_tell_is_a_line_for_people(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    app = App(bus)

    @dramatiq.actor(broker=app.broker, actor_name="shop.refund", max_retries=1, min_backoff=2, max_backoff=4)
    def refund() -> None:
        raise ValueError(SECRET)

    with program([*CALLBOARD, "tail", "$worker:**"], tmp_path, env=env) as tail:
        tail.wait_for("listening to $worker:**")
        with working(app):
            message = refund.send()
            app.broker.join("default", timeout=10_000, fail_fast=False)
        tail.wait_for("stopped")
        assert tail.end(signal.SIGINT) == 0

    job, worker = f"  {message.message_id}", f"  {app.broker.lease.worker}"
    expected = [
        rf"booted       in \d+ ms{worker}",
        rf"started      shop.refund  waited \d+ ms{job}{worker}",
        rf"failed       shop.refund  ValueError  \d+\.\d ms{job}{worker}",
        rf"retried      shop.refund  in \d ms{job}{worker}",
        rf"started      shop.refund  attempt 2{job}{worker}",
        rf"failed       shop.refund  ValueError  \d+\.\d ms  attempt 2{job}{worker}",
        rf"dead         shop.refund  ValueError  attempt 2{job}{worker}",
        rf"quiet        0 running{worker}",
        rf"stopped      in \d+ ms{worker}",
    ]
    assert len(tail.lines) == len(expected)
    for line, pattern in zip(tail.lines, expected, strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d\d\d  {pattern}", line), line
    assert "to go on" not in tail.errors


def test_a_reader_that_leaves_is_no_error(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    for _ in range(20):
        bus.publish_sync({"type": "n", "text": 10_000 * "x"})

    with program(f"{' '.join(CALLBOARD)} tail --after 0 | head -n 1", tmp_path, env=env) as piped:
        piped.process.wait(20)

    assert len(piped.lines) == 1
    (listening,) = piped.errors.splitlines()  # and no position: how much of it was read, nobody knows
    assert listening.startswith("listening to ")


def test_a_reader_that_leaves_ends_it_also_where_nothing_more_is_published(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    bus.publish_sync({"type": "n", "text": "x"})

    with program(f"{' '.join(CALLBOARD)} tail --after 0 | head -n 1", tmp_path, env=env) as piped:
        assert piped.process.wait(20) == 0

    assert len(piped.lines) == len(piped.errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "what_to_do"),
    [
        (("agent:a*",), "write 'agent:*'"),
        (("--after", "yesterday"), "neither a position nor a time: pass"),
        (("--log", "a b"), "log 'a b'"),
        (("--count", "0"), "'--count'"),
        (("--namespace", "a b"), "a namespace has"),
        (("--url", f"http://me:{SECRET}@127.0.0.1"), "must begin with"),
        (("--url", "memory://"), "BUS_URL"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(args: tuple[str, ...], what_to_do: str) -> None:
    env = {"BUS_URL": "redis://127.0.0.1:1"}  # which nothing here should get as far as asking

    error = error_of(callboard("tail", *args, env=env), 2)

    assert what_to_do in error
    assert SECRET not in error


def test_without_a_server_there_is_nothing_to_watch() -> None:
    assert "BUS_URL" in error_of(callboard("tail"), 2)


def test_a_log_that_does_not_exist_is_answered_with_those_that_do(bus: Bus, env: dict[str, str]) -> None:
    bus.publish_sync({"type": "n"}, log="run:41")
    bus.publish_sync({"type": "n"})

    error = error_of(callboard("tail", "--log", "run:42", env=env), 1)

    assert error == "error: there is no log 'run:42' here: main, run:41"


def test_a_server_that_is_away_is_a_failure_that_hides_the_password() -> None:
    error = error_of(callboard("tail", env={"BUS_URL": f"redis://me:{SECRET}@127.0.0.1:1/0"}), 1)

    assert "cannot be reached" in error
    assert SECRET not in error


def test_an_idle_tail_stays_on_its_link_without_a_word(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    with program([*CALLBOARD, "tail"], tmp_path, env=env) as tail:
        tail.wait_for("listening to")
        assert _waits(tail, 6)
        bus.publish_sync({"type": "n"})
        tail.wait_for("#1")
        tail.end(signal.SIGINT)

    assert [line.split(":")[0][:12] for line in tail.errors.splitlines()[1:]] == ["to go on from"[:12]]


def _waits(running: Program, seconds: float) -> bool:
    """Whether it is still running after so long."""
    try:
        running.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False
