"""Listening: where one begins, what one gets, and that nothing is missing, repeated or lost without a word."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal, NamedTuple, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus import (
    Bus,
    BusClosed,
    Closed,
    Delivery,
    Event,
    Gap,
    InvalidLog,
    InvalidPosition,
    InvalidTopic,
    Listener,
    Publication,
    codec,
)
from bus.delivery import Item, follow
from bus.hub import Hub
from bus.listener import Joined as Joining
from bus.mailbox import QUEUE, Mailbox
from bus.position import ROOT_TOKEN, Position
from bus.store.base import CONFIRMED, Confirmed, Entry, Frame, Page, Whisper
from bus.topics import Matcher
from tests.servers import Server
from tests.waiting import eventually


class Step(Event, type="listen.step"):
    n: int


async def take(listener: Listener, count: int) -> list[Delivery]:
    """The next deliveries; a gap is a failure."""
    found = []
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        found.append(item)
    return found


async def take_steps(listener: Listener, count: int) -> list[int]:
    return steps(await take(listener, count))


def steps(items: Iterable[Item]) -> list[int]:
    found = []
    for item in items:
        assert isinstance(item, Delivery), item
        assert isinstance(item.event, Step)
        found.append(item.event.n)
    return found


async def rest_of(listener: Listener) -> list[Item]:
    return [item async for item in listener]


def numbered(first: int, last: int, *topics: str) -> list[Publication]:
    return [Publication(Step(n=n), topics=topics or ("global",)) for n in range(first, last + 1)]


async def hub_at(bus: Bus, position: Position) -> None:
    await eventually(lambda: bus.status().position == position, f"the hub to stand at {position}")


def waiting(listener: Listener) -> int:
    """How many items wait in its memory, as it says itself."""
    found = re.search(r"(\d+) waiting", repr(listener))
    assert found is not None
    return int(found[1])


# Where one begins.


async def test_a_listener_joins_from_now_on(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish_many(numbered(1, 3))
        async with bus.listen() as listener:
            await bus.publish_many(numbered(4, 6))

            assert await take_steps(listener, 3) == [4, 5, 6]


async def test_after_0_begins_with_all_that_is_kept_and_goes_on_live(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish_many(numbered(1, 700))
        async with bus.listen(after="0") as listener:
            await bus.publish_many(numbered(701, 702))

            assert await take_steps(listener, 702) == list(range(1, 703))


async def test_after_a_position_is_exclusive(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        receipts = await bus.publish_many(numbered(1, 10))
        async with (
            bus.listen(after=receipts[3].position) as listener,
            bus.listen(after=str(receipts[3].position)) as two,
        ):
            await bus.publish_many(numbered(11, 11))

            assert await take_steps(listener, 7) == list(range(5, 12))
            assert await take_steps(two, 7) == list(range(5, 12))


async def test_after_the_top_is_from_now_on(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        receipts = await bus.publish_many(numbered(1, 3))
        async with bus.listen(after=receipts[-1].position) as listener:
            await bus.publish_many(numbered(4, 4))

            assert await take_steps(listener, 1) == [4]


async def test_a_listener_resumes_from_where_another_stood(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        async with bus.listen() as listener:
            await bus.publish_many(numbered(1, 500))
            await take(listener, 123)
            position = listener.position
        async with bus.listen(after=position) as resumed:
            assert await take_steps(resumed, 377) == list(range(124, 501))


async def test_what_was_filtered_away_counts_as_seen(url: str, namespace: str) -> None:
    """A quiet listener of a busy log may resume without a gap, although the last event it was handed is long gone."""
    async with Bus(url, namespace=namespace, cap=10) as bus, bus.listen("rare") as listener, bus.listen("**") as all_:
        await bus.publish_many([*numbered(1, 1, "rare"), *numbered(2, 50)])
        assert await take_steps(listener, 1) == [1]
        await take(all_, 50)  # so the hub has seen them too

        position = listener.position
        async with bus.listen("rare", after=position) as resumed:
            await bus.publish_many(numbered(51, 51, "rare"))

            assert await take_steps(resumed, 1) == [51]


async def test_logs_are_apart(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as main, bus.listen(log="run:1") as run:
        await bus.publish(Step(n=1), log="run:1")
        await bus.publish(Step(n=2))

        assert await take_steps(main, 1) == [2]
        assert await take_steps(run, 1) == [1]


@pytest.mark.parametrize("after", ["1", "x", "-1", "a-1", "a-01-b", "A-1-b", "a-1-b\n", ""])
def test_what_is_no_position_is_refused_at_once(after: str) -> None:
    with pytest.raises(InvalidPosition, match="is not a position"):
        Bus("memory://").listen(after=after)


def test_malformed_patterns_and_logs_are_refused_at_once() -> None:
    bus = Bus("memory://")

    with pytest.raises(InvalidTopic):
        bus.listen("agent:a*")
    with pytest.raises(InvalidTopic):
        bus.listen("$reserved")
    with pytest.raises(InvalidLog):
        bus.listen(log="no good")


# What workers tell, on a log of its own.


async def test_a_listener_to_workers_hears_them_and_nothing_else(url: str, namespace: str) -> None:
    told = codec.wrap(Step(n=1), id=None, source="/here", now_ms=1, topics=("$worker:one:handler",), key=None)
    async with (
        Bus(url, namespace=namespace) as bus,
        bus.listen("$worker:**") as all_workers,
        bus.listen("$worker:*:handler", "$worker:two:*") as one_handler,
        bus.listen("**", "*:one:handler") as everything,
    ):
        for topic in ("$worker:one", "$worker:one:handler"):
            bus.store.announce("$worker", "e", [Whisper(topic, codec.encode(told))])
        await bus.publish(Step(n=2))

        assert await take_steps(all_workers, 2) == [1, 1]
        assert await take_steps(one_handler, 1) == [1]
        assert await take_steps(everything, 1) == [2]
        assert bus.store.logs() == ["main"]
        assert [item async for item in bus.history("$worker:**")] == []


def test_patterns_of_workers_go_neither_with_others_nor_with_a_log() -> None:
    bus = Bus("memory://")

    with pytest.raises(InvalidTopic, match=r"'agent:a1'.*own: listen to the two apart"):
        bus.listen("$worker:**", "agent:a1")
    with pytest.raises(InvalidLog, match="leave log= out"):
        bus.listen("$worker:**", log="main")
    with pytest.raises(InvalidLog, match="leave log= out"):
        bus.log("run:1").listen("$worker:**")
    with pytest.raises(InvalidTopic, match=r"or listen to '\$worker:\*\*'"):
        bus.listen("$workers:**")


@pytest.mark.parametrize("where", [{"topics": ["$worker:one"]}, {"log": "$worker"}])
async def test_only_workers_tell(where: dict[str, Any]) -> None:
    async with Bus("memory://") as bus:
        for ephemeral in (False, True):
            with pytest.raises((InvalidTopic, InvalidLog)):
                await bus.publish(Step(n=1), ephemeral=ephemeral, **where)
            with pytest.raises((InvalidTopic, InvalidLog)):
                bus.publish_sync(Step(n=1), ephemeral=ephemeral, **where)


# What one gets.


async def test_patterns_choose_and_several_that_match_are_one_delivery(url: str, namespace: str) -> None:
    async with (
        Bus(url, namespace=namespace) as bus,
        bus.listen("agent:*") as one,
        bus.listen("agent:**", "alerts", "agent:a1") as many,
        bus.listen("**") as every,
        bus.listen("alerts") as exact,
    ):
        for n, topics in enumerate([["agent:a1", "agent:a2", "alerts"], ["agent:a1:log"], ["alerts"], ["other"]]):
            await bus.publish(Step(n=n), topics=topics)
        await bus.publish(Step(n=9), topics=["agent:end", "alerts"])

        assert await take_steps(one, 2) == [0, 9]
        assert await take_steps(many, 4) == [0, 1, 2, 9]
        assert await take_steps(every, 5) == [0, 1, 2, 3, 9]
        assert await take_steps(exact, 3) == [0, 2, 9]


async def test_a_publisher_that_listens_to_itself_hears_each_event_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        for n in range(1, 4):
            await bus.publish(Step(n=n))
            assert await take_steps(listener, 1) == [n]


async def test_all_listeners_of_a_process_share_one_delivery(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen("a") as one, bus.listen("*") as two:
        await bus.publish(Step(n=1), topics=["a"])

        assert (await take(one, 1))[0] is (await take(two, 1))[0]


async def test_bytes_that_are_no_event_are_left_out(url: str, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        await asyncio.to_thread(bus.store.announce, "main", "0", [Whisper("global", b"no envelope")])
        await bus.publish(Step(n=1))

        assert await take_steps(listener, 1) == [1]
    assert "cannot be read and is left out" in caplog.text


# History.


async def test_history_filters_and_stops_at_the_top(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        receipts = await bus.publish_many([*numbered(1, 300, "a"), *numbered(301, 600, "b", "a:x")])

        assert steps([item async for item in bus.history()]) == list(range(1, 601))
        assert steps([item async for item in bus.history("b")]) == list(range(301, 601))
        assert steps([item async for item in bus.history("a", "b", limit=3)]) == [1, 2, 3]
        assert steps([item async for item in bus.history(after=receipts[597].position)]) == [599, 600]
        assert [item async for item in bus.history(after=receipts[-1].position)] == []
        assert [item async for item in bus.history("c")] == []
        assert [item async for item in bus.history(limit=0)] == []
        assert [item async for item in bus.history(log="empty")] == []


async def test_history_needs_no_opened_bus(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    await bus.publish(Step(n=1))

    assert steps([item async for item in bus.history()]) == [1]

    bus.close_sync()


async def test_history_shows_the_same_gaps(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, cap=10) as bus:
        receipts = await bus.publish_many(numbered(1, 25))

        gap, *rest = [item async for item in bus.history(after=receipts[2].position)]

    assert gap == Gap(4, 15, "trimmed")
    assert steps(rest) == list(range(16, 26))


# Slow listeners.


async def test_a_listener_that_never_reads_holds_nobody_up_and_loses_nothing(url: str, namespace: str) -> None:
    async with (
        Bus(url, namespace=namespace) as bus,
        bus.listen() as slow,
        bus.listen() as quick,
        bus.listen("*") as also_quick,
    ):
        readers = [asyncio.create_task(take_steps(each, 5000)) for each in (quick, also_quick)]
        for first in range(1, 5000, 100):
            await bus.publish_many(numbered(first, first + 99))
        everything = list(range(1, 5001))

        assert await asyncio.gather(*readers) == [everything, everything]
        assert waiting(slow) <= QUEUE
        assert bus.status().lag == 5000

        found = []
        for _ in range(5000):
            found += await take_steps(slow, 1)
            assert waiting(slow) <= QUEUE
        assert found == everything
        assert bus.status().lag == 0


async def test_a_slow_listener_beyond_what_the_log_keeps_is_told_exactly_what_it_missed(
    url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace, cap=50) as bus, bus.listen() as slow, bus.listen() as quick:
        await bus.publish_many(numbered(1, 5))
        assert await take_steps(slow, 5) == [1, 2, 3, 4, 5]
        reader = asyncio.create_task(take(quick, QUEUE + 105))
        for first in range(6, QUEUE + 106, 50):
            receipts = await bus.publish_many(numbered(first, first + 49))
            await hub_at(bus, receipts[-1].position)
        await reader

        gap = await anext(slow)

        assert gap == Gap(6, QUEUE + 55, "trimmed")
        assert await take_steps(slow, 50) == list(range(QUEUE + 56, QUEUE + 106))


async def test_falling_behind_over_what_was_filtered_away_is_no_gap(url: str, namespace: str) -> None:
    """Its last event is trimmed, but nothing that matches is: so there is nothing to tell."""
    async with Bus(url, namespace=namespace, cap=2 * QUEUE) as bus, bus.listen("rare") as slow, bus.listen() as quick:
        await bus.publish_many(numbered(1, 1, "rare"))
        assert await take_steps(slow, 1) == [1]
        reader = asyncio.create_task(take(quick, 2 * QUEUE))
        await bus.publish_many(numbered(2, 2 * QUEUE + 1))
        await reader
        await bus.publish_many(numbered(1, QUEUE + 100, "rare", "global"))
        await take(quick, QUEUE + 100)  # so that the hub has handed them all out, and the slow one fell behind

        assert await take_steps(slow, QUEUE + 100) == list(range(1, QUEUE + 101))


async def test_a_listener_that_catches_up_lets_others_run(url: str, namespace: str) -> None:
    turns = 0
    caught_up = asyncio.Event()

    async def other() -> None:
        nonlocal turns
        while not caught_up.is_set():
            turns += 1
            await bus.publish(Step(n=0), topics=["other"])
            await asyncio.sleep(0)  # in memory a publish has nothing to wait for

    async with Bus(url, namespace=namespace) as bus:
        await bus.publish_many(numbered(1, 5000))
        task = asyncio.create_task(other())
        async with bus.listen(after="0") as listener:
            await take(listener, 5000)
        caught_up.set()
        await task

    assert turns > 5


# Joining.


class Joined(NamedTuple):
    first: int
    """The number of the first event that it may see."""
    numbers: list[int]


async def test_listeners_that_join_mid_stream_have_no_gap_and_no_repeat(url: str, namespace: str) -> None:
    last = 2000

    async def join(after: str | None) -> Joined:
        async with bus.listen(after=after) as listener:
            first = 1 if after == "0" else Position.parse(listener.position).seq + 1  # type: ignore[arg-type]
            numbers: list[int] = []
            while first <= last and (not numbers or numbers[-1] < last):
                (delivery,) = await take(listener, 1)
                numbers.append(delivery.position.seq)
            return Joined(first, numbers)

    def publish() -> None:
        for n in range(last):
            bus.publish_sync(Step(n=n))

    async with Bus(url, namespace=namespace) as bus, bus.listen() as lead:
        publisher = asyncio.create_task(asyncio.to_thread(publish))
        joiners = []
        for _ in range(last // 100):
            (seen,) = (await take(lead, 100))[-1:]
            joiners += [asyncio.create_task(join(after)) for after in (None, "0", str(seen.position))]
        await publisher
        joined = await asyncio.gather(*joiners)

    assert len(joined) == 60
    assert [each.numbers for each in joined] == [list(range(each.first, last + 1)) for each in joined]


async def test_a_cancelled_wait_loses_no_event(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        for n in range(20):
            waits = asyncio.create_task(take_steps(listener, 1))
            for _ in range(n % 4):
                await asyncio.sleep(0)
            waits.cancel()
            await asyncio.wait((waits,))
            await bus.publish(Step(n=n))

            assert await take_steps(listener, 1) == [n]


async def test_cancelling_while_it_catches_up_loses_no_event(url: str, namespace: str) -> None:
    cancelled = 0
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish_many(numbered(1, 300))
        for turn in range(40):
            async with bus.listen(after="0") as listener:
                reads = asyncio.create_task(take_steps(listener, 1))
                for _ in range(turn % 4):  # before it starts, at its first wait, inside its read
                    await asyncio.sleep(0)
                if turn >= 20:
                    await asyncio.wait((reads,), timeout=0.0001 * (turn - 20))
                reads.cancel()
                await asyncio.wait((reads,))
                cancelled += reads.cancelled()
                found = [] if reads.cancelled() else reads.result()

                assert found + await take_steps(listener, 300 - len(found)) == list(range(1, 301))
    assert cancelled >= 10


# Gaps.


async def test_a_trimmed_log_is_told_before_the_next_event(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, cap=10) as bus:
        receipts = await bus.publish_many(numbered(1, 25))

        async with bus.listen(after=receipts[2].position) as listener:
            assert await anext(listener) == Gap(4, 15, "trimmed")
            assert await take_steps(listener, 10) == list(range(16, 26))
        async with bus.listen(after=receipts[14].position) as just_inside:
            assert await take_steps(just_inside, 10) == list(range(16, 26))
        async with bus.listen(after="0") as all_that_is_kept:
            assert await take_steps(all_that_is_kept, 10) == list(range(16, 26))


async def test_a_gap_is_told_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, cap=10) as bus:
        receipts = await bus.publish_many(numbered(1, 25, "other"))
        async with bus.listen(after=receipts[2].position) as listener:
            assert await anext(listener) == Gap(4, 15, "trimmed")
            assert listener.position == receipts[-1].position
            for first in range(26, QUEUE + 126, 10):
                receipts = await bus.publish_many(numbered(first, first + 9))
                await hub_at(bus, receipts[-1].position)

            # Its queue ran over while the log moved on: that is another gap, and the first is not in it.
            assert await anext(listener) == Gap(26, QUEUE + 115, "trimmed")
            assert await take_steps(listener, 10) == list(range(QUEUE + 116, QUEUE + 126))


async def test_a_cursor_of_another_life_is_told_and_then_what_is_kept(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, cap=10) as bus:
        await bus.publish_many(numbered(1, 5))
        async with bus.listen(after=Position("otherlife", 7, "token")) as listener:
            assert await anext(listener) == Gap(8, 0, "epoch")
            assert await take_steps(listener, 5) == [1, 2, 3, 4, 5]
        async with bus.listen(after=Position("otherlife", 2, "token")) as listener:
            assert await anext(listener) == Gap(3, 0, "epoch")
            assert await take_steps(listener, 5) == [1, 2, 3, 4, 5]

        await bus.publish_many(numbered(6, 25))
        async with bus.listen(after=Position("otherlife", 7, "token")) as listener:
            assert await anext(listener) == Gap(8, 15, "epoch")
            assert await take_steps(listener, 10) == list(range(16, 26))


async def test_a_cursor_of_another_life_on_an_empty_log_is_told_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(after=Position("otherlife", 7, "token")) as listener:
        assert await anext(listener) == Gap(8, 0, "epoch")
        assert listener.position is not None
        assert listener.position.epoch != "otherlife"

        await bus.publish_many(numbered(1, QUEUE + 300))
        await eventually(lambda: waiting(listener) == 0 and bus.status().lag, "its queue to run over")

        assert await take_steps(listener, QUEUE + 300) == list(range(1, QUEUE + 301))


async def test_a_cursor_of_another_branch_is_told_and_then_what_is_kept(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        receipts = await bus.publish_many(numbered(1, 5))
        epoch = receipts[0].position.epoch
        for position, gap in [
            (Position(epoch, 3, "other"), Gap(1, 3, "fork")),  # another event under our number
            (Position(epoch, 5, "other"), Gap(1, 5, "fork")),  # the same, at the top
            (Position(epoch, 9, "other"), Gap(1, 9, "fork")),  # a number that was not given out again yet
        ]:
            async with bus.listen(after=position) as listener:
                assert await anext(listener) == gap
                assert await take_steps(listener, 5) == [1, 2, 3, 4, 5]


async def test_a_log_that_lost_its_data_under_a_listener(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish_many(numbered(1, 5))
        assert await take_steps(listener, 5) == [1, 2, 3, 4, 5]

        with server.client() as client:
            client.flushall()
        await bus.publish_many(numbered(11, 13))

        assert await anext(listener) == Gap(6, 0, "epoch")
        assert await take_steps(listener, 3) == [11, 12, 13]


@pytest.mark.parametrize("published", [0, 5])
async def test_a_log_that_lost_its_data_and_is_read_before_it_is_written(
    published: int, server: Server, redis_url: str, namespace: str
) -> None:
    """A reader must not carry the old life's name into the new one: the loss would look like nothing, or like a fork."""
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish_many(numbered(1, published))
        assert await take_steps(listener, published) == list(range(1, published + 1))

        with server.client() as client:
            client.flushall()
            assert client.client_kill_filter(_type="pubsub") == 1  # so the hub reads, as after any reconnect
            assert await anext(listener) == Gap(published + 1, 0, "epoch")
        await bus.publish_many(numbered(11, 13))

        assert await take_steps(listener, 3) == [11, 12, 13]


async def test_a_server_that_goes_on_from_an_older_state(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener, bus.listen("other") as other:
        await bus.publish_many(numbered(1, 5))
        with server.client() as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
            await bus.publish_many(numbered(6, 8))
            assert await take_steps(listener, 8) == list(range(1, 9))

            client.flushall()
            for key, value in older.items():
                client.restore(key, 0, value)
            assert client.client_kill_filter(_type="pubsub") == 1  # a promotion cuts them off
        assert await anext(listener) == Gap(6, 8, "fork")
        await bus.publish_many([*numbered(16, 19), *numbered(20, 20, "global", "other")])

        # Both branches share the first five, and it has heard them.
        assert await take_steps(listener, 5) == list(range(16, 21))
        items = [await anext(other)]
        if isinstance(items[0], Gap):
            items = [await anext(other)]
        assert steps(items) == [20]


# The proof that there is no hole: ``follow`` against a log that is a list.


class Case(NamedTuple):
    old: list[str]
    """The tokens of the log as it was when the reader stood in it."""
    at: int
    new: list[str]
    """The tokens of the log as it is read now: it may have grown, or parted from the old one."""
    trimmed: int
    limit: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    old = [f"a{n}" for n in range(1, draw(st.integers(0, 8)) + 1)]
    shared = draw(st.integers(0, len(old)))
    new = old[:shared] + [f"b{n}" for n in range(shared + 1, shared + draw(st.integers(0, 8)) + 1)]
    at = draw(st.integers(0, len(old)))
    return Case(old, at, new, draw(st.integers(0, len(new))), draw(st.integers(1, 10)))


def page(case: Case, epoch: str = "e") -> Page:
    """What a store answers to a reader at ``case.at``."""
    tokens = [ROOT_TOKEN, *case.new]
    seqs = range(max(case.at, case.trimmed) + 1, len(case.new) + 1)[: case.limit]
    entries = [Entry(seq, tokens[seq], tokens[seq - 1], "", b"") for seq in seqs]
    return Page(epoch, len(case.new), tokens[-1], entries)


def stands(case: Case) -> Position:
    return Position("e", case.at, [ROOT_TOKEN, *case.old][case.at])


@given(cases())
def test_follow_tells_a_gap_exactly_where_there_is_one(case: Case) -> None:
    gap = follow(stands(case), page(case))

    ours_is_kept = case.old[: case.at] == case.new[: case.at]
    if ours_is_kept and case.trimmed <= case.at:
        assert gap is None
    elif ours_is_kept:
        assert gap == Gap(case.at + 1, case.trimmed, "trimmed")
    elif len(case.new) < case.at:
        assert gap == Gap(len(case.new) + 1, case.at, "fork")
    elif case.trimmed <= case.at:
        assert gap == Gap(case.at, case.at, "fork")
    else:  # whatever would show the fork is trimmed, so that is all that can be said; and it is said
        assert gap == Gap(case.at + 1, case.trimmed, "trimmed")


@given(cases())
def test_follow_never_joins_two_lives(case: Case) -> None:
    gap = follow(stands(case), page(case, epoch="another"))

    assert gap is not None
    assert (gap.first, gap.reason) == (case.at + 1, "epoch")


# The hub on a link that loses, repeats and confuses frames, on a server that loses its log or goes on from an older one.

BODY = codec.encode(codec.wrap({"type": "listen.plain"}, id="x", source="/", now_ms=0, topics=("global",), key=None))


class Scripted:  # a LoopStore
    """A loop's store that plays a script, one step for each look of the hub at its link."""

    def __init__(self, script: list[str]) -> None:
        self.begun = asyncio.Event()
        self._script = script
        self._epoch = "life0"
        self._log: list[Entry] = []
        self.previous: dict[str, str] = {}
        """Of every event that was ever written, the one before it."""

    def _write(self, token: str = "") -> Frame:
        token = token or f"token{len(self.previous)}"
        self.previous[token] = self._log[-1].token if self._log else ROOT_TOKEN
        self._log.append(Entry(len(self._log) + 1, token, self.previous[token], "global", BODY))
        return Frame(self._epoch, self._log[-1])

    async def subscribe(self, log: str) -> AsyncIterator[Frame | Confirmed]:  # noqa: ARG002 - the signature of a store
        yield CONFIRMED
        await self.begun.wait()
        for step in self._script:
            match step:
                case "heard":
                    yield self._write()
                case "lost":
                    self._write()
                case "repeated" if self._log:
                    yield Frame(self._epoch, self._log[-1])
                case "older" if self._log:
                    yield Frame(self._epoch, self._log[len(self._log) // 2])
                case "confirmed":
                    yield CONFIRMED
                case "fork":
                    del self._log[len(self._log) // 2 :]
                case "life":
                    self._log.clear()
                    self._epoch = f"life{len(self.previous) + 1}"
                case _:
                    await asyncio.sleep(0)  # the listeners' turn
        yield CONFIRMED
        yield self._write("end")
        await asyncio.Event().wait()

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:  # noqa: ARG002
        await asyncio.sleep(0)
        top = self._log[-1].token if self._log else ROOT_TOKEN
        return Page(self._epoch, len(self._log), top, self._log[after : after + limit])

    async def append(self, batch: object) -> NoReturn:
        raise NotImplementedError

    async def announce(self, log: str, epoch: str, whispers: object) -> NoReturn:
        raise NotImplementedError

    async def close_log(self, log: str, epoch: str, own: object = None) -> NoReturn:
        raise NotImplementedError

    async def seek(self, log: str, epoch: str, at_ms: int) -> NoReturn:
        raise NotImplementedError

    async def close(self) -> None: ...


scripts = st.lists(
    st.sampled_from(
        ["heard", "heard", "heard", "lost", "lost", "repeated", "older", "confirmed", "fork", "life", "turn"]
    ),
    max_size=30,
)


@given(scripts)
@example(["heard", "heard", "fork", "lost", "heard"])  # the next number, but after another event than ours
@example(
    ["heard", "turn", "lost", "turn", "lost", "fork"]
)  # a listener has read further than its hub, on a lost branch
async def test_whatever_a_link_does_each_event_follows_the_one_before_or_a_gap(script: list[str]) -> None:
    store = Scripted(script)
    hub = Hub(store, "main")

    async def join() -> Joining:
        await hub.start()
        return Joining(hub, store, leave)

    async def leave() -> None: ...

    async def listen(after: Literal["0"] | None) -> list[Item]:
        told: list[Item] = []
        async with Listener(join, "main", Matcher(("**",)), after, Mailbox()) as listener:
            store.begun.set()
            while not told or not isinstance(told[-1], Delivery) or told[-1].position.token != "end":
                told.append(await anext(listener))
        return told

    heard = await asyncio.gather(listen(None), listen("0"))
    await hub.close()

    for told in heard:
        previous: str | None = None
        for item in told:
            if isinstance(item, Delivery):
                assert previous in (None, store.previous[item.position.token]), told
            previous = item.position.token if isinstance(item, Delivery) else None
        if not {"fork", "life"} & set(script):
            assert [item.position.token for item in told if isinstance(item, Delivery)] == list(store.previous)


# Its life.


async def test_leaving_frees_the_listener(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        async with bus.listen(), bus.listen("a") as listener:
            assert bus.status().listeners == 2
            await listener.close()
            await listener.close()
            assert bus.status().listeners == 1
            with pytest.raises(StopAsyncIteration):
                await anext(listener)
        assert bus.status().listeners == 0


async def test_iterating_ends_when_the_bus_closes(url: str, namespace: str) -> None:
    bus = await Bus(url, namespace=namespace).open()
    async with bus.listen() as listener, bus.listen() as idle:
        receipt = await bus.publish(Step(n=1))
        assert await take_steps(listener, 1) == [1]
        rest = asyncio.create_task(rest_of(listener))
        await asyncio.sleep(0)

        await bus.close()

        assert await rest == [Closed(receipt.position, "bus")]
        *waited, closed = await rest_of(idle)
        assert steps(waited) == [1]  # what waited for it may still be read
        assert closed == Closed(receipt.position, "bus")
        assert bus.status().listeners == 0


async def test_a_listener_that_joins_while_the_bus_closes_is_told(url: str, namespace: str) -> None:
    for turns in range(12):
        bus = await Bus(url, namespace=namespace).open()
        listener = bus.listen()
        joins = asyncio.create_task(listener.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)

        await bus.close()

        try:
            await joins
        except BusClosed:
            pass
        else:
            assert [type(item) for item in await rest_of(listener)] == [Closed]
            await listener.close()
        bus.close_sync()


async def test_a_listener_is_entered_once_and_before_it_is_read(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        listener = bus.listen()
        with pytest.raises(BusClosed, match="enter the listener first"):
            await anext(listener)
        async with listener:
            with pytest.raises(BusClosed, match="entered before"):
                await listener.__aenter__()
        with pytest.raises(BusClosed, match="entered before"):
            await listener.__aenter__()


async def test_a_listener_works_without_opening_the_bus(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    async with bus.listen() as listener:
        await bus.publish(Step(n=1))
        assert await take_steps(listener, 1) == [1]

    bus.close_sync()


async def test_status_tells_how_far_behind_the_slowest_is(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, bus.listen():
        receipts = await bus.publish_many(numbered(1, 3))
        await take(listener, 3)

        status = bus.status()

        assert (status.connected, status.listeners, status.position) == (True, 2, receipts[-1].position)
        assert (status.lag, listener.lag) == (3, 0)
