"""What a listener does when it is too slow, when its log or its bus ends, and where else it may begin."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from bus import Bus, Closed, Delivery, Event, Gap, InvalidPosition, InvalidSettings, Listener, Publication, ids
from bus.clock import Clock
from bus.decoding import Decoder
from bus.delivery import Item
from bus.hub import Hub
from bus.listener import Joined
from bus.mailbox import QUEUE, QUEUE_BYTES, Found, Mailbox
from bus.position import ROOT_TOKEN, Position
from bus.reader import Reader
from bus.topics import Matcher
from tests.servers import Server
from tests.waiting import eventually


class Note(Event, type="ends.note"):
    n: int
    who: str = "a"
    text: str = ""


def notes(first: int, last: int, *, text: str = "") -> list[Publication]:
    return [Publication(Note(n=n, text=text)) for n in range(first, last + 1)]


def numbers(items: Iterable[Item]) -> list[int]:
    found = []
    for item in items:
        assert isinstance(item, Delivery), item
        assert isinstance(item.event, Note)
        found.append(item.event.n)
    return found


async def take(listener: Listener, count: int) -> list[int]:
    return numbers([await anext(listener) for _ in range(count)])


async def rest_of(listener: Listener) -> list[Item]:
    return [item async for item in listener]


def waiting(listener: Listener) -> int:
    """How many items wait in its memory, as it says itself."""
    found = re.search(r"(\d+) waiting", repr(listener))
    assert found is not None
    return int(found[1])


async def end(bus: Bus, log: str = "main") -> None:
    await asyncio.to_thread(bus.store.close_log, log, ids.epoch())


# Too slow.


async def test_a_slow_listener_is_bounded_in_bytes_and_misses_nothing(url: str, namespace: str) -> None:
    text = "x" * 100_000
    async with Bus(url, namespace=namespace) as bus, bus.listen() as slow, bus.listen() as quick:
        for first in range(1, 100, 10):
            await bus.publish_many(notes(first, first + 9, text=text))
            await take(quick, 10)
            assert waiting(slow) * len(text) <= QUEUE_BYTES

        assert await take(slow, 100) == list(range(1, 101))


async def test_latest_keeps_the_newest_of_each_key_in_their_order(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(policy="latest", key="who") as states:
        await bus.publish_many([Publication(Note(n=n, who="abc"[n % 3])) for n in range(9)])
        await bus.publish_many([Publication(Note(n=n, who="a")) for n in range(9, 12)])
        await eventually(lambda: (at := bus.status().position) is not None and at.seq == 12, "the hub to hear all")
        assert waiting(states) == 3

        assert await take(states, 3) == [7, 8, 11]


async def test_latest_without_a_field_goes_by_the_key_of_the_publish(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(policy="latest") as states, bus.listen() as all_:
        await bus.publish(Note(n=1), key="one")
        await bus.publish(Note(n=2))
        await bus.publish(Note(n=3))
        await bus.publish(Note(n=4), key="one")
        await take(all_, 4)

        assert await take(states, 3) == [2, 3, 4]  # what has no key is never replaced


async def test_latest_catches_up_when_there_are_too_many_keys(url: str, namespace: str) -> None:
    many = QUEUE + 200
    async with Bus(url, namespace=namespace) as bus, bus.listen(policy="latest", key="n") as states:
        for first in range(1, many, 100):
            await bus.publish_many(notes(first, first + 99))
        await eventually(lambda: states.lag >= many, "the hub to have heard them")

        assert await take(states, many) == list(range(1, many + 1))


async def test_latest_resumes_where_it_stood(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        async with bus.listen(policy="latest", key="who") as states, bus.listen() as all_:
            await bus.publish_many([Publication(Note(n=n, who="ab"[n % 2])) for n in range(6)])
            await take(all_, 6)
            assert await take(states, 1) == [4]
            cursor = states.position

        async with bus.listen(after=cursor) as again:
            assert await take(again, 1) == [5]


async def test_disconnect_ends_a_slow_listener_with_the_place_to_go_on_from(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as quick:
        async with bus.listen(policy="disconnect") as slow:
            for first in range(1, QUEUE + 200, 100):
                await bus.publish_many(notes(first, first + 99))
                await take(quick, 100)

            *heard, closed = await rest_of(slow)

        assert numbers(heard) == list(range(1, QUEUE + 1))
        assert isinstance(closed, Closed)
        assert closed.reason == "overflow"
        async with bus.listen(after=closed.position) as again:
            assert await take(again, 3) == [QUEUE + 1, QUEUE + 2, QUEUE + 3]


def test_a_policy_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(InvalidSettings, match="policy="):
        Bus("memory://").listen(policy="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidSettings, match="key="):
        Bus("memory://").listen(key="who")


# The end of a log.


async def test_a_closed_log_ends_its_listeners_after_the_last_event(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        async with bus.listen(log="run") as attached, bus.listen(log="run", after="0") as behind:
            waits = asyncio.create_task(rest_of(attached))
            await bus.publish_many([Publication(Note(n=n), log="run") for n in range(1, 4)])
            await end(bus, "run")

            *heard, closed = await waits
            *read, also_closed = await rest_of(behind)

        assert numbers(heard) == numbers(read) == [1, 2, 3]
        assert isinstance(heard[-1], Delivery)
        assert closed == also_closed == Closed(heard[-1].position, "log")


@pytest.mark.parametrize("after", [None, "0"])
async def test_who_comes_late_to_a_closed_log_sees_its_end_at_once(url: str, namespace: str, after: str | None) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish(Note(n=1), log="run")
        await end(bus, "run")

        async with bus.listen(log="run", after=after) as late, bus.listen(log="run", after=after) as later:
            for listener in (late, later):
                *heard, closed = await rest_of(listener)
                assert numbers(heard) == ([1] if after else [])
                assert isinstance(closed, Closed)
                assert closed.reason == "log"


async def test_the_end_of_a_log_that_was_never_written_to_is_seen(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(log="run") as early:
        waits = asyncio.create_task(rest_of(early))
        await end(bus, "run")

        assert [type(item) for item in await waits] == [Closed]


async def test_the_end_of_a_log_outlives_its_events(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, cap=3) as bus:
        await bus.publish_many([Publication(Note(n=n), log="run") for n in range(1, 10)])
        await end(bus, "run")
        async with bus.listen(log="run", after="0") as late:
            *heard, closed = await rest_of(late)
        assert numbers(heard) == [7, 8, 9]
        assert isinstance(closed, Closed)


@pytest.mark.slow
async def test_an_end_that_is_told_while_the_link_is_down_is_seen(
    server: Server, redis_url: str, namespace: str
) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen(log="run") as listener:
        waits = asyncio.create_task(rest_of(listener))
        with server.client() as client:
            assert client.client_kill_filter(_type="pubsub") == 1
            bus.publish_sync(Note(n=1), log="run")
            await end(bus, "run")

        *heard, closed = await waits
        assert numbers(heard) == [1]
        assert isinstance(closed, Closed)


async def test_what_is_closed_is_said_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(log="run") as listener:
        await end(bus, "run")

        assert isinstance(await anext(listener), Closed)
        with pytest.raises(StopAsyncIteration):
            await anext(listener)


# Beginning at a time.


class Hands(Clock):
    """A clock that only moves by hand."""

    now = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.now


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


async def test_a_listener_begins_with_what_was_published_from_a_time_on() -> None:
    clock = Hands()
    async with Bus("memory://", clock=clock) as bus:
        for n in range(10):
            clock.now += 1000
            await bus.publish(Note(n=n))

        async with bus.listen(after=at(clock.now - 3000)) as listener:
            assert await take(listener, 4) == [6, 7, 8, 9]
        async with bus.listen(after=at(clock.now - 3001)) as listener:
            assert await take(listener, 4) == [6, 7, 8, 9]
        kept = [item async for item in bus.history(after=at(clock.now))]
        assert numbers(kept) == [9]


async def test_a_time_before_all_that_is_kept_begins_there(url: str, namespace: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=9)
    async with Bus(url, namespace=namespace, cap=3) as bus:
        await bus.publish_many(notes(1, 5))
        async with bus.listen(after=long_ago) as listener:
            assert await take(listener, 3) == [3, 4, 5]


async def test_a_time_to_come_is_from_now_on(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish(Note(n=1))
        async with bus.listen(after=datetime.now(UTC) + timedelta(hours=1)) as listener:
            await bus.publish(Note(n=2))
            assert await take(listener, 1) == [2]


async def test_a_time_on_an_empty_log_is_its_beginning(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(after=datetime.now(UTC)) as listener:
        await bus.publish(Note(n=1))
        assert await take(listener, 1) == [1]


def test_a_time_without_a_zone_is_refused_at_once() -> None:
    with pytest.raises(InvalidPosition, match="time zone"):
        Bus("memory://").listen(after=datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is wrong with it


# Forks.


async def test_a_fork_is_told_from_where_the_branches_part(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as attached, bus.listen(after="0") as behind:
        await bus.publish_many(notes(1, 600))
        assert await take(behind, 600) == list(range(1, 601))  # read from the log, then from the hub
        with server.client() as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
            await bus.publish_many(notes(601, 700))
            assert await take(attached, 700) == list(range(1, 701))
            assert await take(behind, 100) == list(range(601, 701))

            client.flushall()
            for key, value in older.items():
                client.restore(key, 0, value)
            await bus.publish_many(notes(1001, 1003))

        for listener in (attached, behind):
            gap = await anext(listener)
            assert gap == Gap(601, 700, "fork")
            assert await take(listener, 3) == [1001, 1002, 1003]


# Hubs.


async def test_a_hub_without_listeners_ends_after_a_while(
    server: Server, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.sides.LINGER_S", 0.01)
    async with Bus(redis_url, namespace=namespace) as bus:
        for n in range(3):
            async with bus.listen(log=f"run:{n}"):
                pass
        with server.client() as client:
            await eventually(lambda: not client.client_list(_type="pubsub"), "the hubs to end")

        async with bus.listen(log="run:0") as again:
            await bus.publish(Note(n=1), log="run:0")
            assert await take(again, 1) == [1]


async def test_a_hub_that_is_wanted_again_goes_on(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus:
        with server.client() as client:
            async with bus.listen():
                before = {each["id"] for each in client.client_list(_type="pubsub")}
            async with bus.listen():
                assert {each["id"] for each in client.client_list(_type="pubsub")} == before


async def test_all_logs_of_a_loop_are_heard_on_one_connection(server: Server, redis_url: str, namespace: str) -> None:
    async with (
        Bus(redis_url, namespace=namespace) as bus,
        bus.listen(log="a") as a,
        bus.listen(log="b") as b,
        bus.listen(log="b") as c,
    ):
        with server.client() as client:
            assert len(client.client_list(_type="pubsub")) == 1
        await bus.publish(Note(n=1), log="a")
        await bus.publish(Note(n=2), log="b")
        assert [await take(each, 1) for each in (a, b, c)] == [[1], [2], [2]]


async def test_status_says_since_when_a_link_is_lost(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen():
        before = bus.status()
        assert (before.state, before.connected) == ("live", True)
        with server.client() as client:
            client.client_kill_filter(_type="pubsub")
        lost = await eventually(lambda: status if (status := bus.status()).state != "live" else None, "the loss")
        assert lost is not None
        assert not lost.connected
        assert lost.since is not None
        assert before.since is not None
        assert before.since <= lost.since <= datetime.now(UTC)
        await eventually(lambda: bus.status().state == "live", "the repair")


async def test_a_whisper_takes_nobody_back_who_has_read_past_the_hub() -> None:
    """The hub's frames are late: the listener has read event 1 from the log, and hears a whisper from before it."""
    bus = Bus("memory://")
    receipt = await bus.publish(Note(n=1))
    door = bus.store.on_loop()
    hub = Hub(door, "main")
    hub.position = Position(receipt.position.epoch, 0, ROOT_TOKEN)

    async def join() -> Joined:
        return Joined(hub, door, leave)

    async def leave() -> None: ...

    async with Listener(join, "main", Matcher(("**",)), "0", Mailbox()) as listener:
        assert await take(listener, 1) == [1]
        whisper = Decoder().deliver(hub.position, bus.store.read("main", "", 0, 1).entries[0], ephemeral=True)
        assert whisper is not None

        listener.hand(Found(hub.position, whisper))

        assert waiting(listener) == 0  # too late: out of order it would take the cursor back
        assert listener.position == receipt.position
    bus.close_sync()


async def test_what_is_read_while_the_listener_is_closed_is_handed_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    page = Reader.page

    async def late(reader: Reader) -> list[Found]:
        found = await page(reader)
        asked.set()
        await answered.wait()
        return found

    monkeypatch.setattr(Reader, "page", late)
    async with Bus("memory://") as bus:
        await bus.publish_many(notes(1, 3))
        async with bus.listen(after="0") as listener:
            reads = asyncio.create_task(rest_of(listener))
            await asked.wait()
            await listener.close()
            answered.set()

            assert await reads == []
