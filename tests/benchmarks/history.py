"""What a history costs: a publish that numbers, keeps, deduplicates and announces, beside a bare PUBLISH; and its bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import redis
import redis.asyncio

from bus import Bus, Publication
from tests.benchmarks import child
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.hearing.load import AGENT, BATCH, CHANNEL, TEXT, body
from tests.benchmarks.systems import Noted
from tests.benchmarks.waiting_room import used

__all__ = ["BYTES", "COST"]

WARM_UP = 50
TOPICS = (CHANNEL, f"agent:{AGENT}")

STORED = Work("bytes per stored event", "bytes", more_is_better=False)
BLOCKING = Work("publish with nobody there, blocking", "events/s", more_is_better=True)
ASYNC = Work("publish with nobody there, async", "events/s", more_is_better=True)


# -- in the child ------------------------------------------------------------------------------------------------------


def publish_redis(url: str, namespace: str, many: int) -> float:
    """PUBLISH, one after the other."""
    with redis.Redis.from_url(url) as client:
        return _rate(lambda: client.publish(CHANNEL, body()), many)


def publish_ours(url: str, namespace: str, many: int) -> float:
    """The same with ours, on a thread."""
    bus = Bus(url, namespace=namespace).open_sync()
    rate = _rate(lambda: bus.publish_sync(_noted(), topics=TOPICS), many)
    bus.close_sync()
    return rate


def publish_redis_async(url: str, namespace: str, many: int) -> float:
    """PUBLISH, awaited one after the other."""

    async def publish() -> float:
        async with redis.asyncio.Redis.from_url(url) as client:
            return await _async_rate(lambda: client.publish(CHANNEL, body()), many)

    return asyncio.run(publish())


def publish_ours_async(url: str, namespace: str, many: int) -> float:
    """The same with ours, on a loop."""

    async def publish() -> float:
        async with Bus(url, namespace=namespace) as bus:
            return await _async_rate(lambda: bus.publish(_noted(), topics=TOPICS), many)

    return asyncio.run(publish())


def _rate(publish: Callable[[], Any], many: int) -> float:
    for _ in range(WARM_UP):
        publish()
    started = time.perf_counter()
    for _ in range(many):
        publish()
    return many / (time.perf_counter() - started)


async def _async_rate(publish: Callable[[], Awaitable[Any]], many: int) -> float:
    for _ in range(WARM_UP):
        await publish()
    started = time.perf_counter()
    for _ in range(many):
        await publish()
    return many / (time.perf_counter() - started)


def store_redis(url: str, namespace: str, many: int) -> None:
    """The bare event in a stream."""
    with redis.Redis.from_url(url) as client:
        for _ in range(0, many, BATCH):
            pipeline = client.pipeline(transaction=False)
            for _ in range(BATCH):
                pipeline.xadd(namespace, {"d": body()})
            pipeline.execute()


def store_ours(url: str, namespace: str, many: int, *, window_s: float) -> None:
    """Ours: its envelope, its number, its tokens, and the mark of its id for the window."""
    bus = Bus(url, namespace=namespace, window_s=window_s)
    for _ in range(0, many, BATCH):
        bus.publish_many_sync([Publication(_noted(), TOPICS) for _ in range(BATCH)])
    bus.close_sync()


def _noted() -> Noted:
    return Noted(agent_id=AGENT, text=TEXT)


# -- in the parent -----------------------------------------------------------------------------------------------------


def _cost(bench: Bench, *, blocking: Callable[..., float], on_a_loop: Callable[..., float]) -> Numbers:
    many = bench.many(1_000, 5_000)
    return {BLOCKING.name: bench.run(blocking, many=many), ASYNC.name: bench.run(on_a_loop, many=many)}


def _bytes(bench: Bench, *, piece: Callable[..., None], settle_s: float = 0, **arguments: float) -> Numbers:
    where, many = bench.fresh(), bench.many(2_000, 10_000)
    before = used(bench)
    child.run(piece, where | {"many": many} | arguments)
    time.sleep(settle_s)
    return {STORED.name: (used(bench) - before) / many}


COST = Family(
    (BLOCKING, ASYNC),
    (
        Case("redis-py PUBLISH", partial(_cost, blocking=publish_redis, on_a_loop=publish_redis_async)),
        Case("callboard", partial(_cost, blocking=publish_ours, on_a_loop=publish_ours_async)),
    ),
)
BYTES = Family(
    (STORED,),
    (
        Case("redis-py XADD of the bare event", partial(_bytes, piece=store_redis)),
        Case("callboard, within the window", partial(_bytes, piece=store_ours, window_s=300)),
        # The marks of ids are gone; the server needs a moment to clear them away.
        Case("callboard, after the window", partial(_bytes, piece=store_ours, window_s=0.5, settle_s=3)),
    ),
)
