"""Logs of their own: how they end, how long that is remembered, what they keep, and what the store frees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bus.clock import Clock
from bus.store.base import Ended, OwnLimits
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import CALM_LEASE_MS, append, batch, post, write
from tests.servers import Server

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
        assert lasts["top:run:2"] > lasts["log:run:2"] > 59.9 * DAY_MS, "numbers are forgotten before their entries"
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

        assert (first.epoch, first.seq) == ("again", 1)
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
        (refused,) = store.append([batch(post(), log="run:1")])
        assert isinstance(refused, Ended)

    clock.travel(30 * DAY_MS)
    assert store.logs() == ["open"]
    assert repr(store) == "<MemoryStore with 1 logs>"
    (first,) = append(store, batch(post(), log="run:1", epoch="again"))
    assert (first.epoch, first.seq) == ("again", 1)


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
