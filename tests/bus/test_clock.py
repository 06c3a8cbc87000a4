"""Time: freezegun and ``Clock.travel`` move everything that memory mode does by the clock, days in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol, cast

import pytest
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

from bus import Bus, Delivery, Event, Gap, codec
from bus.bindings import Binding
from bus.clock import Clock
from bus.store.base import Take

START = datetime(2030, 1, 1, tzinfo=UTC)
ROUTE = ("default", ("h",), 10)


class Chime(Event, type="clock.chime"):
    n: int


class Time(Protocol):
    """The two ways to move it."""

    clock: Clock

    def move(self, by: timedelta) -> None: ...


class Frozen:
    def __init__(self, frozen: FrozenDateTimeFactory) -> None:
        self.clock = Clock()
        self._frozen = frozen

    def move(self, by: timedelta) -> None:
        self._frozen.tick(by)


class Travelled:
    def __init__(self) -> None:
        self.clock = Clock()

    def move(self, by: timedelta) -> None:
        self.clock.travel(by // timedelta(milliseconds=1))


@contextmanager
def frozen() -> Iterator[Time]:
    with freeze_time(START, tick=False, real_asyncio=True) as clock:
        yield Frozen(cast("FrozenDateTimeFactory", clock))


@contextmanager
def travelling() -> Iterator[Time]:
    yield Travelled()


# Entered inside each test, not by a fixture: pytest's own clocks must not stand still between them.
both_ways = pytest.mark.parametrize("moving", [frozen, travelling])
Moving = Callable[[], AbstractContextManager[Time]]


def bus_in(time: Time, *, ttl_s: float = 24 * 3600) -> Bus:
    return Bus("memory://", clock=time.clock, ttl_s=ttl_s, lease_s=8)


async def kept(bus: Bus, after: str = "0") -> list[int | Gap]:
    found: list[int | Gap] = []
    async for item in bus.history(after=after):
        if isinstance(item, Delivery):
            assert isinstance(item.event, Chime)
            found.append(item.event.n)
        else:
            found.append(item)
    return found


def taken(bus: Bus, ticket: int) -> list[str]:
    """The keys of the jobs that a worker gets now, after the sweep that any worker does."""
    bus.store.beat("w", 8000, 0, (), 3)
    queue, handlers, limit = ROUTE
    jobs = bus.store.exchange("w", [], [Take(ticket, queue, handlers, limit)]).taken
    return [job.key for job in jobs]


# Envelopes.


async def test_an_envelope_is_dated_by_the_frozen_clock(url: str, namespace: str) -> None:
    with freeze_time(START, tick=False, real_asyncio=True) as frozen:
        async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
            await bus.publish(Chime(n=1))
            frozen.move_to(START + timedelta(days=400))
            await asyncio.to_thread(bus.publish_sync, Chime(n=2))
            items = [await anext(listener), await anext(listener)]

    times = [item.envelope.time for item in items if isinstance(item, Delivery)]
    assert times == ["2030-01-01T00:00:00.000Z", "2031-02-05T00:00:00.000Z"]


def test_a_ticking_clock_ticks_on_from_where_it_was_put() -> None:
    bus = Bus("memory://")
    with freeze_time(START, tick=True):
        for n in (1, 2):
            bus.publish_sync(Chime(n=n))
        bodies = [entry.body for entry in bus.store.read("main", "0", 0, 10).entries]
    first, second = [codec.decode(body).time_ms for body in bodies]

    start = int(START.timestamp() * 1000)
    assert start <= first <= second <= start + 10_000


def test_travel_moves_the_dates_of_envelopes_and_ids() -> None:
    clock = Clock()
    before = clock.now_ms()

    clock.travel(3_600_000)
    clock.travel(1)

    assert 3_600_001 <= clock.now_ms() - before <= 3_610_001


# What memory mode does by the clock.


@both_ways
def test_an_id_is_remembered_for_its_window(moving: Moving) -> None:
    with moving() as time:
        bus = bus_in(time)
        first = bus.publish_sync(Chime(n=1), id="same")

        time.move(timedelta(minutes=4, seconds=59))
        inside = bus.publish_sync(Chime(n=2), id="same")
        time.move(timedelta(seconds=1))
        outside = bus.publish_sync(Chime(n=3), id="same")

        assert (inside.duplicate, inside.position) == (True, first.position)
        assert (outside.duplicate, outside.position.seq) == (False, 2)


@both_ways
async def test_a_log_keeps_events_for_their_time(moving: Moving) -> None:
    with moving() as time:
        async with bus_in(time, ttl_s=3 * 24 * 3600) as bus:
            first = await bus.publish(Chime(n=1))
            await bus.publish(Chime(n=2))
            time.move(timedelta(days=2))
            await bus.publish(Chime(n=3))
            assert await kept(bus) == [1, 2, 3]

            time.move(timedelta(days=1, seconds=1))
            assert await kept(bus) == [3]
            assert await kept(bus, after=first.position) == [Gap(2, 2, "trimmed"), 3]

            time.move(timedelta(days=2))
            assert await kept(bus) == []
            assert await kept(bus, after=first.position) == [Gap(2, 3, "trimmed")]


@both_ways
async def test_a_slow_listener_is_told_what_grew_too_old(moving: Moving) -> None:
    with moving() as time:
        async with bus_in(time, ttl_s=60) as bus:
            first = await bus.publish(Chime(n=1))
            await bus.publish(Chime(n=2))
            async with bus.listen(after=first.position) as listener:
                time.move(timedelta(seconds=61))
                await bus.publish(Chime(n=3))

                assert await anext(listener) == Gap(2, 2, "trimmed")
                item = await anext(listener)
                assert isinstance(item, Delivery)
                assert item.event == Chime(n=3)


@both_ways
def test_delayed_jobs_are_due_by_the_clock(moving: Moving) -> None:
    with moving() as time:
        bus = bus_in(time)
        bus.bind([Binding.make(handler="h", types=("clock.chime",))])
        at = datetime.fromtimestamp(time.clock.now_ms() / 1000, UTC) + timedelta(days=5)

        receipts = [
            bus.publish_sync(Chime(n=1), key="after 3 days", delay=timedelta(days=3)),
            bus.publish_sync(Chime(n=2), key="on the 5th day", at=at),
            bus.publish_sync(Chime(n=3), key="now"),
        ]

        assert [receipt.jobs for receipt in receipts] == [1, 1, 1]
        assert taken(bus, 1) == ["now"]
        time.move(timedelta(days=2, hours=23))
        assert taken(bus, 2) == []
        time.move(timedelta(hours=1))
        assert taken(bus, 3) == ["after 3 days"]
        time.move(timedelta(days=2))
        assert taken(bus, 4) == ["on the 5th day"]


@both_ways
def test_a_lease_runs_out_by_the_clock(moving: Moving) -> None:
    with moving() as time:
        bus = bus_in(time)
        bus.bind([Binding.make(handler="h", types=("clock.chime",))])
        bus.publish_sync(Chime(n=1), key="k")
        queue, handlers, limit = ROUTE

        lost = bus.store.exchange("gone", [], [Take(1, queue, handlers, limit)]).taken
        time.move(timedelta(seconds=7))
        assert taken(bus, 1) == []
        time.move(timedelta(seconds=2))

        assert [job.key for job in lost] == ["k"]
        assert taken(bus, 2) == ["k"]
