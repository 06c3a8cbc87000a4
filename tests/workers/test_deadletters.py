from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from bus import Bus, Event
from bus.store.base import Job, Route
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, callboard, error_of, program
from tests.workers.running import working
from workers import App
from workers.deadletters import DeadLetters, Wanted


class Mail(Event, type="test.mail", version=1):
    agent_id: str
    n: int


@pytest.fixture
def letters(bus: Bus) -> DeadLetters:
    return DeadLetters(bus)


def fail_all(app: App, bus: Bus, count: int = 3) -> list[int]:
    """Handle ``count`` events of one agent, each of which fails twice for good; return where those handled later go."""
    handled: list[int] = []
    broken = [True]

    @app.on(Mail, key="agent_id", name="mailer", max_retries=1, min_backoff=1, max_backoff=2)
    def mailer(event: Mail) -> None:
        if broken[0]:
            secret = "a value that no traceback may show"
            raise ConnectionError(f"no mail server for {event.n}, {len(secret)}")
        handled.append(event.n)

    with working(app):
        for n in range(count):
            bus.publish_sync(Mail(agent_id="a1", n=n))
        app.broker.join("default", timeout=10_000, fail_fast=False)
    broken[0] = False
    return handled


def test_a_dead_letter_tells_the_event_and_every_attempt(app: App, bus: Bus, letters: DeadLetters) -> None:
    fail_all(app, bus, 1)

    (letter,) = letters.find()

    assert (letter.reason, letter.handler, letter.queue, letter.key) == ("failed", "mailer", "default", "a1")
    assert letter.event is not None
    assert (letter.type, letter.event.data) == ("test.mail", {"agent_id": "a1", "n": 0})
    assert [(attempt.error, attempt.message) for attempt in letter.attempts] == [
        ("ConnectionError", "no mail server for 0, 34")
    ] * 2
    assert "in mailer" in letter.attempts[0].traceback
    assert "a value that no" not in letter.attempts[0].traceback.replace('secret = "a value that no', "")
    assert letters.get(letter.job) == letter
    assert letters.get("999999") is None


def test_replayed_letters_are_done_in_their_lanes_order_with_all_their_retries(
    app: App, bus: Bus, letters: DeadLetters
) -> None:
    handled = fail_all(app, bus, 5)
    numbers = [letter.job for letter in letters.find()]

    replayed = list(letters.replay([*numbers, "999999"], per_second=1000))
    with working(app):
        app.broker.join("default", timeout=10_000, fail_fast=False)

    assert handled == [0, 1, 2, 3, 4]
    assert sorted(replayed) == sorted([*((job, True) for job in numbers), ("999999", False)])
    assert list(letters.find()) == []


def test_a_letter_that_dies_again_still_tells_what_was_tried_before(app: App, bus: Bus, letters: DeadLetters) -> None:
    @app.on(Mail, name="hopeless", max_retries=0)
    def hopeless(event: Mail) -> None:
        raise ConnectionError("no mail server")

    app.bind()
    bus.publish_sync(Mail(agent_id="a1", n=1))
    for _ in range(3):
        with working(app):
            app.broker.join("default", timeout=5000, fail_fast=False)
        list(letters.replay([letter.job for letter in letters.find()]))
    with working(app):
        app.broker.join("default", timeout=5000, fail_fast=False)

    (letter,) = letters.find()
    assert [attempt.error for attempt in letter.attempts] == ["ConnectionError"] * 4


def test_letters_are_found_by_handler_type_error_and_time(app: App, bus: Bus, letters: DeadLetters) -> None:
    fail_all(app, bus, 2)

    @dramatiq.actor(broker=app.broker, max_retries=0)
    def plain(x: int) -> None:
        raise KeyError(x)

    with working(app):
        plain.send(7)
        app.broker.join("default", timeout=5000, fail_fast=False)
    now = datetime.now(UTC)

    def count(**wanted: Any) -> int:
        return len(list(letters.find(Wanted(**wanted))))

    assert (count(), count(handler="mailer"), count(handler="plain")) == (3, 2, 1)
    assert (count(type="test.mail"), count(error="KeyError"), count(error="KeyError", handler="mailer")) == (2, 1, 0)
    assert (count(since=now - timedelta(hours=1)), count(since=now + timedelta(hours=1))) == (3, 0)
    assert (count(until=now + timedelta(hours=1)), count(until=now - timedelta(hours=1))) == (3, 0)
    assert len(list(letters.find(limit=2))) == 2
    task = next(letters.find(Wanted(handler="plain"))).task
    assert task is not None
    assert task.pop("id")
    assert task == {"actor": "plain", "args": [7], "kwargs": {}}


def test_what_cannot_be_read_is_listed_all_the_same(app: App, bus: Bus, letters: DeadLetters) -> None:
    fail_all(app, bus, 0)
    bus.store.enqueue(Job("x", Route("default", "mailer", 1), "", b"e\xff\x00"), 1000)
    with working(app):
        app.broker.join("default", timeout=5000, fail_fast=False)

    (letter,) = letters.find()

    assert (letter.event, letter.task, letter.error) == (None, None, "Undecodable")


def test_dropped_letters_are_gone(app: App, bus: Bus, letters: DeadLetters) -> None:
    fail_all(app, bus, 3)
    numbers = [letter.job for letter in letters.find()]

    dropped = letters.drop([numbers[0], "999999"])

    assert dropped == 1
    assert [letter.job for letter in letters.find()] == numbers[1:]


# The command.


@pytest.fixture
def dead(redis_url: str, namespace: str) -> Iterator[Any]:
    """``callboard dead`` on a namespace where three events of one agent have failed for good."""
    bus = Bus(redis_url, namespace=namespace)
    fail_all(App(bus), bus, 3)

    def run(*args: str) -> Any:
        return callboard("dead", *args, env={"BUS_URL": redis_url, "BUS_NAMESPACE": namespace})

    yield run
    bus.close_sync()


def test_list_and_show_tell_a_person_and_a_program(dead: Any) -> None:
    listed = dead("list")
    facts = [json.loads(line) for line in dead("list", "--json").stdout.splitlines()]
    shown = dead("show", facts[0]["job"])
    whole = json.loads(dead("show", facts[0]["job"], "--json").stdout)

    for line, fact in zip(listed.stdout.splitlines(), facts, strict=True):
        assert f"mailer  test.mail  {fact['id']}  a1  2x  ConnectionError" in line
    assert [fact["attempts"][-1]["message"] for fact in facts] == [f"no mail server for {n}, 34" for n in (2, 1, 0)]
    assert "attempt 2 at" in shown.stdout
    assert '{"agent_id": "a1", "n": 2}' in shown.stdout
    assert whole["event"]["data"] == {"agent_id": "a1", "n": 2}
    assert "Traceback" in whole["attempts"][0]["traceback"]


def test_list_narrows_by_every_filter(dead: Any) -> None:
    def count(*filters: str) -> int:
        return len(dead("list", *filters).stdout.splitlines())

    assert count("--handler", "mailer", "--type", "test.mail", "--error", "ConnectionError", "--since", "1h") == 3
    assert count("--until", "1h") == 0
    assert count("--handler", "other") == 0
    assert count("--limit", "2") == 2


def test_list_says_where_there_are_more(dead: Any) -> None:
    some, every = dead("list", "--limit", "2", "--json"), dead("list", "--limit", "3", "--json")

    assert (len(some.stdout.splitlines()), len(every.stdout.splitlines())) == (2, 3)
    assert "--limit says how many" in some.stderr
    assert every.stderr == ""


def test_what_became_of_them_can_be_had_as_json(dead: Any) -> None:
    numbers = [json.loads(line)["job"] for line in dead("list", "--json").stdout.splitlines()]

    replayed = dead("replay", numbers[0], "999999", "--json")
    dropped = dead("drop", "--all", "--json")

    assert json.loads(replayed.stdout) == {"replayed": 1, "missing": ["999999"]}
    assert replayed.returncode == 1
    assert (json.loads(dropped.stdout), dropped.returncode) == ({"dropped": 2, "missing": []}, 0)


def test_replay_and_drop_take_numbers_filters_or_all(dead: Any, redis_url: str, namespace: str) -> None:
    numbers = [json.loads(line)["job"] for line in dead("list", "--json").stdout.splitlines()]

    one = dead("replay", numbers[0])
    rest = dead("drop", "--handler", "mailer")

    assert (one.returncode, one.stderr) == (0, "replayed 1\n")
    assert (rest.returncode, rest.stderr) == (0, "dropped 2\n")
    assert dead("drop", "--all").stderr == "dropped 0: no dead letters fit\n"
    bus = Bus(redis_url, namespace=namespace).open_sync()
    assert (bus.store.pending("default"), bus.store.dead_count()) == (1, 0)
    bus.close_sync()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["show", "999999"], 1, "there is no dead letter '999999'"),
        (["replay"], 2, "say which"),
        (["drop"], 2, "say which"),
        (["drop", "1", "--all"], 2, "not several"),
        (["replay", "--all", "--handler", "mailer"], 2, "not several"),
        (["list", "--since", "yesterday"], 2, "is no time"),
        (["list", "--handler", "mailr"], 2, "there is no handler 'mailr'; did you mean 'mailer'?"),
        (["replay", "--handler", "nosuch"], 2, "there is no handler 'nosuch' (there are: mailer)"),
        (["drop", "--handler", "nosuch"], 2, "there is no handler 'nosuch' (there are: mailer)"),
    ],
    ids=[
        "unknown",
        "replay nothing",
        "drop nothing",
        "too many ways",
        "all and some",
        "time",
        "list",
        "replay nobody",
        "drop nobody",
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(dead: Any, arguments: list[str], exit_code: int, said: str) -> None:
    assert said in error_of(dead(*arguments), exit_code)


def test_who_stops_a_replay_is_told_how_far_it_came(dead: Any, redis_url: str, namespace: str, tmp_path: Path) -> None:
    command = [*CALLBOARD, "dead", "replay", "--all", "--rate", "0.01"]
    bus = Bus(redis_url, namespace=namespace).open_sync()
    with program(command, tmp_path, env={"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}) as replaying:
        wait_until(lambda: bus.store.dead_count() == 2, "the first to be replayed", timeout=20)
        code = replaying.end(signal.SIGINT)
    bus.close_sync()

    assert code == 130
    # The signal may come in the moment in which the first was replayed, and is not counted yet.
    assert re.fullmatch("stopped: replayed [01] of 3; the others are dead letters still\n", replaying.errors)
    assert len(dead("list").stdout.splitlines()) == 2


def test_where_there_are_none_that_is_said(dead: Any) -> None:
    dead("drop", "--all")

    assert dead("list").stderr == "there are no dead letters\n"


@pytest.mark.parametrize("command", ["replay", "drop"])
def test_what_is_gone_is_named_and_the_way_to_the_others_is_told(dead: Any, command: str) -> None:
    done = dead(command, "999999")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(
        "error: there is no dead letter 999999: 'callboard dead list' shows those that are kept\n"
    )


def test_filters_that_fit_nothing_are_no_error(dead: Any) -> None:
    done = [dead(command, "--handler", "mailer", "--until", "1h") for command in ("list", "replay", "drop")]

    assert [one.returncode for one in done] == [0, 0, 0]
    assert all("no dead letters fit" in one.stderr for one in done)


def test_memory_has_no_dead_letters_to_look_at_from_outside() -> None:
    assert "in memory" in error_of(callboard("dead", "list"), 2)
