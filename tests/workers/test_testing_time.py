"""``app.testing.travel`` and freezegun: weeks of delays and retries in a test, none of them waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dramatiq
import pytest
from freezegun import freeze_time

from bus import Bus, Event
from bus.store.base import Job, Route, Take
from tests.waiting import wait_until
from workers import App, Context
from workers.deadletters import DeadLetters
from workers.errors import MemoryOnly
from workers.kit import Kit
from workers.queues import Queues
from workers.testing import world

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY_MS = 24 * 3_600_000


class Invited(Event, type="time.invited", version=1):
    name: str


class Reminded(Event, type="time.reminded", version=1):
    name: str
    day: int


@pytest.fixture
def callboard_app() -> App:
    """Reminds every day for thirty days; what it sends fails once a day, and is tried again an hour later."""
    app = App(Bus("memory://"))
    failed: set[int] = set()

    @app.on(Invited, name="remind")
    async def remind(event: Invited, ctx: Context) -> None:
        for day in range(1, 31):
            await ctx.publish(Reminded(name=event.name, day=day), delay=timedelta(days=day))

    @app.on(Reminded, name="send", key="name", max_retries=1, min_backoff=3_600_000, max_backoff=3_600_000)
    def send(event: Reminded) -> None:
        if event.day not in failed:
            failed.add(event.day)
            raise ConnectionError("the mail server is away")

    @app.on("time.refused", name="refuse", max_retries=0)
    def refuse(event: dict[str, str]) -> None:
        raise LookupError

    return app


def thirty_days(app: App, move: Callable[[timedelta], object]) -> None:
    app.bus.publish_sync(Invited(name="ada"))
    app.testing.drain_sync()
    for day in range(1, 31):
        move(timedelta(days=1) - timedelta(hours=1 if day > 1 else 0))
        (first,) = app.testing.drain_sync(raise_errors=False)
        move(timedelta(hours=1))
        (second,) = app.testing.drain_sync()

        assert first.event == second.event == Reminded(name="ada", day=day)
        assert [(each.attempt, each.outcome) for each in (first, second)] == [(1, "retry"), (2, "done")]
    app.testing.assert_handled("send", times=30)
    assert [event.day for event in app.testing.published(Reminded)] == list(range(1, 31))


@contextmanager
def under_a_second() -> Iterator[None]:
    """Of this process's own time; on a machine that others use as well it may take a little longer."""
    # Neither of these clocks is known to freezegun.
    began, used = time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time()
    yield
    assert time.process_time() - used < 1
    assert time.clock_gettime(time.CLOCK_MONOTONIC) - began < 10


def test_thirty_days_pass_in_a_second_by_travelling(callboard: Kit, callboard_app: App) -> None:
    with under_a_second():
        thirty_days(callboard_app, callboard.travel)


def test_thirty_days_pass_in_a_second_by_freezegun(callboard: Kit, callboard_app: App) -> None:
    with under_a_second(), freeze_time(START, real_asyncio=True) as frozen:
        thirty_days(callboard_app, frozen.tick)


def test_time_that_is_moved_runs_nothing_by_itself(callboard: Kit, callboard_app: App) -> None:
    callboard_app.bus.publish_sync(Invited(name="ada"), delay=timedelta(hours=2))

    callboard.travel(hours=1, minutes=59)
    assert callboard.drain_sync() == []
    callboard.travel(timedelta(minutes=1), milliseconds=1)
    assert callboard.ran == []
    assert [ran.handler for ran in callboard.drain_sync()] == ["remind"]


def test_ids_are_forgotten_and_leases_end_and_letters_go(callboard: Kit, callboard_app: App) -> None:
    bus = callboard_app.bus
    bus.publish_sync(Invited(name="ada"), id="same")
    taken = bus.store.exchange("dead", [], [Take(1, "default", ("remind",), 1)]).taken
    assert len(taken) == 1
    assert callboard.drain_sync() == []

    callboard.travel(seconds=30)
    assert bus.publish_sync(Invited(name="ada"), id="same").duplicate
    assert [ran.handler for ran in callboard.drain_sync()] == ["remind"]  # its worker's lease has ended

    callboard.travel(minutes=5)
    assert not bus.publish_sync(Invited(name="ada"), id="same").duplicate

    bus.publish_sync({"type": "time.refused"})
    callboard.drain_sync(raise_errors=False)
    assert bus.store.dead_count() == 1
    callboard.travel(weeks=1, milliseconds=1)
    callboard.drain_sync(raise_errors=False)  # a week of reminders is due, too
    assert bus.store.dead_count() == 0


def test_attempts_are_dated_by_the_time_that_was_travelled_to(callboard: Kit, callboard_app: App) -> None:
    bus = callboard_app.bus
    callboard.travel(days=400)
    before = datetime.fromtimestamp(bus.clock.now_ms() / 1000, UTC)

    bus.publish_sync({"type": "time.refused"})
    bus.store.enqueue(Job("unreadable", Route("default", "refuse", 1), "", b"?"), 60_000)
    callboard.drain_sync(raise_errors=False)

    letters = list(DeadLetters(bus).find())
    assert {letter.error for letter in letters} == {"LookupError", "Undecodable"}
    for letter in letters:
        assert before <= letter.attempts[0].at <= before + timedelta(minutes=1)


def test_the_age_of_work_follows_the_time_that_was_travelled_to(callboard: Kit, callboard_app: App) -> None:
    bus = callboard_app.bus
    callboard.travel(days=400)
    bus.publish_sync({"type": "time.refused"})

    callboard.travel(hours=1)

    ages = {queue.handler: queue.oldest_s for queue in Queues(bus).look()}
    assert ages["refuse"] == pytest.approx(3_600, abs=60)


async def test_logs_forget_by_age_and_the_kit_remembers(callboard: Kit, callboard_app: App) -> None:
    async with callboard_app.bus as bus:
        await bus.publish(Reminded(name="ada", day=1))
        callboard.travel(days=2)
        await bus.publish(Reminded(name="ada", day=2))

        kept = [item async for item in bus.history()]

    assert len(kept) == 1
    assert [event.day for event in callboard.published(Reminded)] == [1, 2]


@pytest.mark.callboard("redis")
def test_a_servers_time_is_its_own(callboard: Kit) -> None:
    with pytest.raises(MemoryOnly, match="a server, whose clock is its own: run this test in memory alone"):
        callboard.travel(hours=1)


def test_time_does_not_go_back(callboard: Kit) -> None:
    with pytest.raises(ValueError, match="forward alone"):
        callboard.travel(hours=-1)


def test_after_a_test_it_is_the_time_of_day_again(callboard_app: App) -> None:
    with world(callboard_app.testing, "memory://", "elsewhere") as kit:
        kit.travel(days=1)
        assert callboard_app.bus.clock.now_ms() - time.time() * 1000 > DAY_MS - 1_000

    assert abs(callboard_app.bus.clock.now_ms() - time.time() * 1000) < 1_000


def test_a_worker_is_woken(callboard: Kit, callboard_app: App, callboard_worker: dramatiq.Worker) -> None:
    callboard_app.bus.publish_sync(Invited(name="ada"), delay=timedelta(days=30))

    callboard.travel(days=30)

    wait_until(lambda: [ran.handler for ran in callboard.ran] == ["remind"], "the worker to do it")


def test_whoever_waits_for_what_is_due_is_woken(callboard: Kit, callboard_app: App) -> None:
    callboard_app.bus.store.wait(["$due"], 0)
    callboard.travel(days=30)

    assert callboard_app.bus.store.wait(["$due"], 0).rang == "$due"


def test_a_workers_threads_follow_freezegun(
    callboard: Kit, callboard_app: App, callboard_worker: dramatiq.Worker
) -> None:
    with freeze_time(START, real_asyncio=True) as frozen:
        callboard_app.bus.publish_sync(Invited(name="ada"), delay=timedelta(days=30))
        frozen.tick(timedelta(days=30))

        wait_until(lambda: [ran.handler for ran in callboard.ran] == ["remind"], "the worker to do it")
        (envelope,) = callboard.envelopes("time.reminded")[:1]

    assert envelope.time is not None
    assert envelope.time.startswith("2030-01-31")


async def test_a_live_listener_goes_on_through_travel(callboard: Kit, callboard_app: App) -> None:
    async with callboard_app.bus as bus, callboard.recorder("global") as heard:
        await bus.publish(Invited(name="ada"))
        callboard.travel(days=30)
        await bus.publish(Invited(name="bob"))
        await heard.until(lambda events: len(events) == 2, "both invitations")
        await asyncio.sleep(0)

    assert heard.events == [Invited(name="ada"), Invited(name="bob")]
