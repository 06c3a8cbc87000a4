"""redis-py as it is: PUBLISH and SUBSCRIBE, nothing numbered or kept. Listeners get bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import redis
import redis.asyncio

from tests.benchmarks import child
from tests.benchmarks.hearing.load import (
    BATCH,
    CHANNEL,
    at_leisure,
    body,
    count,
    ended_at,
    latencies_ms,
    now_ns,
    sent_ns,
)

__all__ = ["hear_all", "hear_all_shared", "hear_latencies", "publish_at_leisure", "publish_in_batches"]


def hear_latencies(url: str, namespace: str, many: int) -> list[float]:
    """One listener; its answer are the latencies."""

    async def hear() -> list[float]:
        async with AsyncExitStack() as stack:
            (subscription,) = await _subscribed(stack, url, 1)
            child.say("ready")
            return await latencies_ms(_bodies(subscription), sent_ns, many)

    return asyncio.run(hear())


def hear_all(url: str, namespace: str, many: int, listeners: int) -> int:
    """A subscription for each listener, as redis-py has it; its answer is when the last one had all."""

    async def hear() -> int:
        async with AsyncExitStack() as stack:
            subscriptions = await _subscribed(stack, url, listeners)
            child.say("ready")
            return await ended_at([count(_bodies(each), many) for each in subscriptions])

    return asyncio.run(hear())


def hear_all_shared(url: str, namespace: str, many: int, listeners: int) -> int:
    """One subscription and a queue for each listener, by hand: what is to be had without any promise."""

    async def hear() -> int:
        queues = [asyncio.Queue[bytes]() for _ in range(listeners)]

        async def share(subscription: Any) -> None:
            async for message in _bodies(subscription):
                for queue in queues:
                    queue.put_nowait(message)

        async with AsyncExitStack() as stack:
            (subscription,) = await _subscribed(stack, url, 1)
            sharing = asyncio.create_task(share(subscription))
            child.say("ready")
            ended_ns = await ended_at([count(_queued(queue), many) for queue in queues])
            sharing.cancel()
        return ended_ns

    return asyncio.run(hear())


async def _subscribed(stack: AsyncExitStack, url: str, many: int) -> list[Any]:
    client: Any = await stack.enter_async_context(redis.asyncio.Redis.from_url(url, max_connections=many + 1))
    subscriptions = []
    for _ in range(many):
        subscription = await stack.enter_async_context(client.pubsub())
        await subscription.subscribe(CHANNEL)
        while (await subscription.get_message(timeout=1) or {}).get("type") != "subscribe":
            pass
        subscriptions.append(subscription)
    return subscriptions


async def _bodies(subscription: Any) -> AsyncIterator[bytes]:
    async for message in subscription.listen():
        yield message["data"]


async def _queued(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await queue.get()


def publish_at_leisure(url: str, namespace: str, many: int) -> None:
    """PUBLISH now and then."""

    async def publish() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await at_leisure(lambda when_ns: client.publish(CHANNEL, body(when_ns)), many)

    asyncio.run(publish())


def publish_in_batches(url: str, namespace: str, many: int, channel: str = CHANNEL) -> int:
    """PUBLISH in pipelines; its answer is when it began."""
    message = body()
    with redis.Redis.from_url(url) as client:
        client.ping()
        started_ns = now_ns()
        for _ in range(0, many, BATCH):
            pipeline = client.pipeline(transaction=False)
            for _ in range(BATCH):
                pipeline.publish(channel, message)
            pipeline.execute()
    return started_ns
