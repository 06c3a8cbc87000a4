"""broadcaster: one subscription and an unbounded queue for each listener. Listeners get text."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import redis.asyncio
from broadcaster import Broadcast

from tests.benchmarks import child
from tests.benchmarks.hearing.load import CHANNEL, at_leisure, body, count, ended_at, latencies_ms, sent_ns

__all__ = ["hear_all", "hear_latencies", "publish_at_leisure"]


def hear_latencies(url: str, namespace: str, many: int) -> list[float]:
    """One listener; its answer are the latencies."""

    async def hear() -> list[float]:
        async with Broadcast(url) as broadcast, broadcast.subscribe(CHANNEL) as subscriber:
            await _subscribed(url)
            child.say("ready")
            return await latencies_ms(aiter(subscriber), lambda event: sent_ns(event.message), many)

    return asyncio.run(hear())


def hear_all(url: str, namespace: str, many: int, listeners: int) -> int:
    """Its answer is when the last listener had all."""

    async def hear() -> int:
        async with AsyncExitStack() as stack:
            broadcast = await stack.enter_async_context(Broadcast(url))
            subscribers = [await stack.enter_async_context(broadcast.subscribe(CHANNEL)) for _ in range(listeners)]
            await _subscribed(url)
            child.say("ready")
            return await ended_at([count(aiter(each), many) for each in subscribers])

    return asyncio.run(hear())


async def _subscribed(url: str) -> None:
    """It does not say when it is subscribed; the server does."""
    async with redis.asyncio.Redis.from_url(url) as client:
        while [each[1] for each in await client.pubsub_numsub(CHANNEL)] != [1]:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


def publish_at_leisure(url: str, namespace: str, many: int) -> None:
    """Its own publish, now and then."""

    async def publish() -> None:
        async with Broadcast(url) as broadcast:
            await at_leisure(lambda when_ns: broadcast.publish(CHANNEL, body(when_ns)), many)

    asyncio.run(publish())
