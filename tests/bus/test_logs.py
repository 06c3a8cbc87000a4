"""Logs of their own: how they end, how long that is remembered, what they keep, and what the store frees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import (
    Bus,
    BusUnavailable,
    Closed,
    Delivery,
    Event,
    InvalidLog,
    InvalidSettings,
    LogClosed,
    Publication,
)
from bus.bindings import Binding
from bus.clock import Clock
from bus.store.base import Ended, OwnLimits, Post, Store, Whisper
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import CALM_LEASE_MS, append, batch, post, write
from tests.servers import Server
from tests.waiting import eventually

DAY_MS = 24 * 3600 * 1000


@contextmanager
def redis_store(url: str, namespace: str) -> Iterator[RedisStore]:
    store = RedisStore(url, namespace, lease_ms=CALM_LEASE_MS)
    store.open()
    try:
        yield store
    finally:
        store.close()


# What is forgotten, and when.


def test_a_look_at_a_log_that_nobody_writes_to_leaves_no_trace(server: Server, redis_url: str, namespace: str) -> None:
    top = f"callboard:{{{namespace}}}:top:"
    with redis_store(redis_url, namespace) as store, server.client() as client:
        store.read("read", "e1", 0, 10)
        store.announce("told", "e2", [Whisper("global", b"a")])
        store.seek("sought", "e3", 0)
        assert all(0 < client.pttl(top + log) <= DAY_MS for log in ("read", "told", "sought"))

        for log in ("read", "told", "sought"):
            write(store, b"b", log=log)
            store.read(log, "e4", 0, 10)
        assert [client.pttl(top + log) for log in ("read", "told", "sought")] == [-1] * 3
        assert store.read("told", "e5", 0, 10).epoch == "e2"


def test_of_a_closed_log_nothing_stays_for_ever(server: Server, redis_url: str, namespace: str) -> None:
    prefix = f"callboard:{{{namespace}}}:"
    with redis_store(redis_url, namespace) as store, server.client() as client:
        write(store, b"a", log="run:1")
        append(store, batch(post(), log="run:2", own=OwnLimits(ttl_ms=60 * DAY_MS)))
        write(store, b"a", log="open")
        for log in ("run:1", "run:2", "run:3"):
            store.close_log(log, "e")

        lasts = {key.decode().removeprefix(prefix): client.pttl(key) for key in client.scan_iter()}
        assert lasts["top:open"] == -1
        for log in ("run:1", "run:3"):
            assert 29.9 * DAY_MS < lasts[f"top:{log}"] <= 30 * DAY_MS
        assert lasts["log:run:2"] > 59.9 * DAY_MS
        numbers, entries = (client.pexpiretime(f"{prefix}{kind}:run:2") for kind in ("top", "log"))
        assert numbers >= entries, "numbers are forgotten before their entries"
        assert 0 < lasts["log:run:1"] <= 3_601_000
        assert client.smembers(prefix + "logs") == {b"open"}
        assert store.logs() == ["open", "run:1", "run:2", "run:3"]


def test_the_list_of_closed_logs_is_swept(server: Server, redis_url: str, namespace: str) -> None:
    prefix = f"callboard:{{{namespace}}}:"
    with redis_store(redis_url, namespace) as store, server.client() as client:
        store.close_log("run:1", "e")
        client.zadd(prefix + "ended", {"run:1": 1})  # a month later
        client.delete(prefix + "top:run:1")
        assert store.logs() == []

        store.close_log("run:2", "e")

        assert client.zrange(prefix + "ended", 0, -1) == [b"run:2"]


def test_a_log_that_was_forgotten_may_begin_again(server: Server, redis_url: str, namespace: str) -> None:
    with redis_store(redis_url, namespace) as store, server.client() as client:
        append(store, batch(post(), log="run:1", own=OwnLimits(cap=1)))
        store.close_log("run:1", "e")
        client.delete(f"callboard:{{{namespace}}}:top:run:1")

        (first, _) = append(store, batch(post(), post(), log="run:1", epoch="again"))

        assert (first.position.epoch, first.position.seq) == ("again", 1)
        page = store.read("run:1", "e", 0, 10)
        assert (page.closed, len(page.entries)) == (False, 2)
        assert store.logs() == ["run:1"]


@pytest.mark.parametrize("ttl_days", [1, 60])
def test_memory_forgets_what_a_server_would(ttl_days: int) -> None:
    clock = Clock()
    store = MemoryStore(clock, lease_ms=CALM_LEASE_MS)
    append(store, batch(post(), log="run:1", own=OwnLimits(ttl_ms=ttl_days * DAY_MS)))
    store.close_log("run:1", "e")
    write(store, b"a", log="open")

    clock.travel(ttl_days * DAY_MS - 1000)
    assert len(store.read("run:1", "e", 0, 10).entries) == 1
    clock.travel(1500)
    page = store.read("run:1", "e", 0, 10)
    assert page.entries == []
    if ttl_days == 1:
        assert (page.closed, page.top) == (True, 1)
        refused = store.append(batch(post(), log="run:1"))
        assert isinstance(refused, Ended)

    clock.travel(30 * DAY_MS)
    assert store.logs() == ["open"]
    assert repr(store) == "<MemoryStore with 1 logs>"
    (first,) = append(store, batch(post(), log="run:1", epoch="again"))
    assert (first.position.epoch, first.position.seq) == ("again", 1)


def test_memory_frees_entries_of_closed_logs_when_others_are_used() -> None:
    clock = Clock()
    store = MemoryStore(clock, lease_ms=CALM_LEASE_MS)
    append(store, batch(post(b"x" * 1000), log="run:1", ttl_ms=DAY_MS))
    store.close_log("run:1", "e")

    clock.travel(DAY_MS + 1000)
    write(store, b"a", log="other")
    clock.travel(-DAY_MS)  # were it there still, it would be young enough now

    assert store.read("run:1", "e", 0, 10).entries == []


# A clock that is set back.


def test_times_are_found_in_a_log_whose_clock_was_set_back() -> None:
    clock = Clock()
    store = MemoryStore(clock, lease_ms=CALM_LEASE_MS)
    times = []
    for step in (0, 5000, 5000, -8000, 5000, 5000):
        clock.travel(step)
        times.append(clock.now_ms())
        write(store, b"a")

    for at_ms in range(min(times) - 1000, max(times) + 2000, 500):
        seq = store.seek("main", "e", at_ms).seq
        assert seq == 0 or times[seq - 1] < at_ms + 100
        assert seq == len(times) or times[seq] >= at_ms - 100


# Through a bus.


class Step(Event, type="logs.step"):
    n: int


async def steps(bus: Bus, log: str) -> list[int]:
    """What a log keeps."""
    return [item.envelope.data["n"] async for item in bus.history(log=log) if isinstance(item, Delivery)]


async def test_a_handle_publishes_listens_and_reads_as_the_bus_does(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        run = bus.log("run:42")
        async with run.listen("agent:*") as listener:
            one = await run.publish(Step(n=1), topics=["agent:a"], id="one")
            (two,) = await run.publish_many([Publication(Step(n=2), topics=["agent:a"])])
            three = await asyncio.to_thread(run.publish_sync, Step(n=3), topics=["other"])
            (four,) = await asyncio.to_thread(run.publish_many_sync, [Publication(Step(n=4), topics=["agent:a"])])
            live = await run.publish(Step(n=5), topics=["agent:a"], ephemeral=True)

            heard = [await anext(listener) for _ in range(4)]

        assert [item.envelope.data["n"] for item in heard if isinstance(item, Delivery)] == [1, 2, 4, 5]
        assert [each.position.seq for each in (one, two, three, four, live)] == [1, 2, 3, 4, 4]
        assert one.id == "one"
        kept = [item async for item in run.history("other")]
        assert [item.position for item in kept if isinstance(item, Delivery)] == [three.position]
        assert bus.store.logs() == ["run:42"]
        assert (run.name, repr(run)) == ("run:42", "<Log run:42>")


async def test_limits_of_a_handle_hold_for_every_publisher(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, Bus(url, namespace=namespace, cap=100) as other:
        await bus.log("run:42", cap=3).publish(Step(n=0))
        for n in range(1, 6):
            await other.publish(Step(n=n), log="run:42")
            await other.publish(Step(n=n), log="plain")
        assert await steps(bus, "run:42") == [3, 4, 5]
        assert await steps(bus, "plain") == [1, 2, 3, 4, 5]

        await bus.log("run:42", cap=1, ttl=timedelta(hours=1)).publish(Step(n=6))
        await other.publish(Step(n=7), log="run:42")
        assert await steps(bus, "run:42") == [7]


async def test_an_age_of_a_handle_holds_for_every_publisher(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await bus.log("run:42", ttl=0.03).publish(Step(n=1))
        await bus.publish(Step(n=2), log="run:42")

        async def nothing_is_kept() -> bool:
            return await steps(bus, "run:42") == []

        await eventually(nothing_is_kept, "the events to pass their age")


async def test_a_closed_log_refuses_what_is_new_and_says_so(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        run = bus.log("run:42")
        first = await run.publish(Step(n=1), id="first")

        position = await run.close()

        assert position == first.position == await run.close() == await asyncio.to_thread(run.close_sync)
        for late in (
            run.publish(Step(n=2), id="late"),
            bus.publish(Step(n=2), log="run:42", id="late"),
            asyncio.to_thread(bus.publish_sync, Step(n=2), log="run:42", id="late"),
            bus.publish_many([Publication(Step(n=0), id="before"), Publication(Step(n=2), log="run:42", id="late")]),
        ):
            with pytest.raises(
                LogClosed, match="'run:42' is closed and takes no more events: publish to another log"
            ) as caught:
                await late
            assert (caught.value.log, caught.value.position, caught.value.id) == ("run:42", position, "late")
        again = await run.publish(Step(n=1), id="first")
        assert (again.duplicate, again.position) == (True, first.position)
        assert await steps(bus, "run:42") == [1]
        assert await steps(bus, "main") == [0]
        assert (await bus.publish(Step(n=2), id="late")).duplicate is False


async def test_a_refused_event_queues_no_work(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await asyncio.to_thread(bus.bind, [Binding.make(handler="h", types=("logs.step",))])
        await bus.log("run:42").close()

        with pytest.raises(LogClosed):
            await bus.publish(Step(n=1), log="run:42")

        assert bus.store.queues() == []


async def test_whoever_comes_late_sees_the_end_whatever_was_killed(
    server: Server, redis_url: str, namespace: str
) -> None:
    async with Bus(redis_url, namespace=namespace) as bus:
        run = bus.log("run:42", cap=2)
        for n in range(5):
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            await run.publish(Step(n=n))
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        position = await run.close()

        async with Bus(redis_url, namespace=namespace) as late, late.using() as side:
            for after in (0, 3, 5):
                page = await side.store.read("run:42", "e", after, 10)
                assert (page.closed, page.top, page.top_token) == (True, position.seq, position.token)
            async with late.log("run:42").listen(after="0") as listener:
                items = [item async for item in listener]
            assert items[-1] == Closed(position, "log")
            assert [item.envelope.data["n"] for item in items if isinstance(item, Delivery)] == [3, 4]


def test_a_thread_hears_a_log_to_its_end(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    run = bus.log("run:42")
    with run.listen_sync() as listener:
        run.publish_sync(Step(n=1))
        run.close_sync()
        items = list(listener)
    bus.close_sync()

    assert [type(item) for item in items] == [Delivery, Closed]


async def test_closing_is_tried_again_until_the_deadline(namespace: str, start_server: Callable[..., Server]) -> None:
    server = start_server()
    async with Bus(server.url, namespace=namespace, deadline_s=0.3) as bus:
        await bus.publish(Step(n=1))
        server.stop()

        with pytest.raises(BusUnavailable):
            await bus.log("run:42").close()
        with pytest.raises(BusUnavailable):
            await asyncio.to_thread(bus.log("run:42").close_sync)


@pytest.mark.parametrize(
    "bad", [{"cap": 0}, {"cap": 1.5}, {"cap": True}, {"ttl": 0}, {"ttl": "1h"}, {"ttl": timedelta(0)}]
)
def test_limits_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        Bus("memory://").log("run:42", **bad)


def test_a_log_has_a_name_that_can_be() -> None:
    with pytest.raises(InvalidLog, match="run 42"):
        Bus("memory://").log("run 42")


async def test_a_handle_is_for_its_own_log(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        with pytest.raises(InvalidLog, match="leave log= out"):
            await bus.log("run:42").publish_many([Publication(Step(n=1)), Publication(Step(n=2), log="run:43")])

        assert bus.store.logs() == []


async def test_limits_that_come_later_in_a_call_are_kept_as_well(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        limited = Publication(Step(n=2), log="run:42", own=OwnLimits(cap=2))
        await bus.publish_many([Publication(Step(n=1), log="run:42"), limited])
        await bus.publish(Step(n=3), log="run:42")

        assert await steps(bus, "run:42") == [2, 3]


# Whatever is done to a log, and in whatever order.

examples = count()
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("repeat"), st.integers(0, 10)),
        st.tuples(st.just("limit"), st.integers(1, 3)),
        st.tuples(st.just("announce"), st.just(0)),
        st.tuples(st.just("close"), st.just(0)),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_a_log_grows_by_one_until_it_ends_and_then_says_so_for_ever(
    acts: list[tuple[str, int]], mode: str, url: str, namespace: str
) -> None:
    name = f"{namespace}.{next(examples)}"
    store: Store = (
        MemoryStore(Clock(), lease_ms=CALM_LEASE_MS)
        if mode == "memory"
        else RedisStore(url, name, lease_ms=CALM_LEASE_MS)
    )
    try:
        _play(store, acts)
    finally:
        store.close()


def _play(store: Store, acts: list[tuple[str, int]]) -> None:
    written: list[Post] = []
    cap, first, ended = 10_000, 1, False
    for act, number in acts:
        match act:
            case "append" | "limit":
                posts = [post() for _ in range(number if act == "append" else 1)]
                own = OwnLimits(cap=number) if act == "limit" else OwnLimits()
                answer = store.append(batch(*posts, own=own))
                assert isinstance(answer, Ended) is ended
                if not ended:
                    written += posts
                    cap = number if act == "limit" else cap
                    first = max(first, len(written) - cap + 1)
            case "repeat" if number < len(written):
                answer = store.append(batch(written[number]))
                assert isinstance(answer, list)
                assert (answer[0].position.seq, answer[0].duplicate) == (number + 1, True)
            case "announce":
                assert isinstance(store.announce("main", "e1", [Whisper("global", b"")]), Ended) is ended
            case "close":
                assert store.close_log("main", "e1").seq == len(written)
                ended = True
        page = store.read("main", "e1", 0, 10_000)
        kept = list(range(first, len(written) + 1))
        assert (page.closed, page.top, [entry.seq for entry in page.entries]) == (ended, len(written), kept)
