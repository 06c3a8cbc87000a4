"""Ours: numbered, logged, deduplicated and announced in one step. Listeners get typed events, of the right topics."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from bus import Bus, Delivery, Publication
from bus.delivery import Item
from tests.benchmarks import child
from tests.benchmarks.hearing.load import (
    AGENT,
    BATCH,
    CHANNEL,
    TEXT,
    at_leisure,
    count,
    ended_at,
    latencies_ms,
    now_ns,
)
from tests.benchmarks.systems import Noted

__all__ = ["hear_all", "hear_latencies", "publish_at_leisure", "publish_in_batches"]

TOPICS = (CHANNEL, f"agent:{AGENT}")


def hear_latencies(url: str, namespace: str, many: int) -> list[float]:
    """One listener; its answer are the latencies."""

    async def hear() -> list[float]:
        async with Bus(url, namespace=namespace) as bus, bus.listen(CHANNEL) as listener:
            child.say("ready")
            return await latencies_ms(aiter(listener), _sent_ns, many)

    return asyncio.run(hear())


def _sent_ns(item: Item) -> int:
    assert isinstance(item, Delivery), item
    assert isinstance(item.event, Noted), item
    return item.event.sent_ns


def hear_all(url: str, namespace: str, many: int, listeners: int) -> int:
    """Its answer is when the last listener had all."""

    async def hear() -> int:
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(Bus(url, namespace=namespace))
            joined = [await stack.enter_async_context(bus.listen(CHANNEL)) for _ in range(listeners)]
            child.say("ready")
            return await ended_at([count(aiter(each), many) for each in joined])

    return asyncio.run(hear())


def publish_at_leisure(url: str, namespace: str, many: int, *, ephemeral: bool = False) -> None:
    """A publish now and then."""

    async def publish() -> None:
        async with Bus(url, namespace=namespace) as bus:
            await at_leisure(lambda when_ns: bus.publish(_noted(when_ns), topics=TOPICS, ephemeral=ephemeral), many)

    asyncio.run(publish())


def publish_in_batches(url: str, namespace: str, many: int) -> int:
    """``publish_many``; its answer is when it began."""
    with_ids_of_their_own = [Publication(_noted(0), TOPICS) for _ in range(BATCH)]
    bus = Bus(url, namespace=namespace).open_sync()
    started_ns = now_ns()
    for _ in range(0, many, BATCH):
        bus.publish_many_sync(with_ids_of_their_own)
    bus.close_sync()
    return started_ns


def _noted(when_ns: int) -> Noted:
    return Noted(agent_id=AGENT, text=TEXT, sent_ns=when_ns)
