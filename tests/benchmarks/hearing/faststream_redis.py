"""FastStream: a handler for each listener, on a channel (nothing kept) or on a stream. Handlers get what JSON says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis.asyncio
from faststream.redis import RedisBroker

from tests.benchmarks import child
from tests.benchmarks.hearing.load import BATCH, CHANNEL, PATIENCE_S, at_leisure, message, now_ns

__all__ = ["hear_all", "hear_latencies", "publish_at_leisure", "publish_in_batches"]

WAKE_UP = -1
"""The moment of sending of messages that are not measured."""


def hear_latencies(url: str, namespace: str, many: int, *, stream: bool) -> list[float]:
    """One listener; its answer are the latencies."""
    found: list[float] = []

    def heard(said: dict[str, Any]) -> bool:
        if said["sent_ns"]:
            found.append((now_ns() - said["sent_ns"]) / 1e6)
        return len(found) == many

    asyncio.run(_hear(url, 1, heard, stream=stream))
    return found


def hear_all(url: str, namespace: str, many: int, listeners: int, *, stream: bool) -> int:
    """Its answer is when the last listener had all."""
    left = many * listeners

    def heard(said: object) -> bool:
        nonlocal left
        left -= 1
        return left == 0

    asyncio.run(_hear(url, listeners, heard, stream=stream))
    return now_ns()


async def _hear(url: str, listeners: int, heard: Callable[[Any], bool], *, stream: bool) -> None:
    broker = RedisBroker(url, logger=None, max_connections=listeners + 10)
    awake: set[int] = set()
    over = asyncio.Event()

    def declare(number: int) -> None:
        async def handle(said: Any) -> None:
            if said["sent_ns"] == WAKE_UP:
                awake.add(number)
            elif heard(said):
                over.set()

        broker.subscriber(**_place(stream=stream))(handle)

    for number in range(listeners):
        declare(number)
    await broker.start()
    async with asyncio.timeout(PATIENCE_S):
        # It does not say when it listens; and one that reads a stream forgets, until its first message, what it missed.
        while len(awake) < listeners:
            await broker.publish(message(WAKE_UP), **_place(stream=stream))
            await asyncio.sleep(0.2)
        child.say("ready")
        await over.wait()
    await broker.stop()


def _place(*, stream: bool) -> dict[str, Any]:
    return {"stream" if stream else "channel": CHANNEL}


def publish_at_leisure(url: str, namespace: str, many: int, *, stream: bool) -> None:
    """Its own publish, now and then."""

    async def publish() -> None:
        async with RedisBroker(url, logger=None) as broker:
            await at_leisure(lambda when_ns: broker.publish(message(when_ns), **_place(stream=stream)), many)

    asyncio.run(publish())


def publish_in_batches(url: str, namespace: str, many: int, *, stream: bool) -> int:
    """Its own publish in pipelines; its answer is when it began."""

    async def publish() -> int:
        async with RedisBroker(url, logger=None) as broker, redis.asyncio.Redis.from_url(url) as client:
            await broker.ping(timeout=5)
            started_ns = now_ns()
            for _ in range(0, many, BATCH):
                pipeline = client.pipeline(transaction=False)
                for _ in range(BATCH):
                    await broker.publish(message(), **_place(stream=stream), pipeline=pipeline)
                await pipeline.execute()
            return started_ns

    return asyncio.run(publish())
