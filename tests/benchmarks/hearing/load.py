"""The load that all systems carry, and how what is heard is counted. Needs nothing but Python."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

__all__ = [
    "AGENT",
    "BATCH",
    "CHANNEL",
    "PATIENCE_S",
    "TEXT",
    "at_leisure",
    "body",
    "count",
    "ended_at",
    "latencies_ms",
    "message",
    "now_ns",
    "sent_ns",
]

CHANNEL = "global"
AGENT = "agent-001"
TEXT = "x" * 150
"""With an agent's id and the JSON around it about 200 bytes, as in :mod:`tests.benchmarks.systems`."""
BATCH = 500
WARM_UP = 20
PAUSE_S = 0.005
PATIENCE_S = 150.0

T = TypeVar("T")


def now_ns() -> int:
    """CLOCK_MONOTONIC, which is the same in all processes."""
    return time.monotonic_ns()


def message(when_ns: int = 0) -> dict[str, Any]:
    """What is said, with the moment of its sending; 0 where it only warms up or is only counted."""
    return {"agent_id": AGENT, "text": TEXT, "sent_ns": when_ns}


def body(when_ns: int = 0) -> bytes:
    """The same as JSON, for those that carry bytes."""
    return json.dumps(message(when_ns)).encode()


def sent_ns(heard: bytes | str) -> int:
    """When it was sent."""
    return int(json.loads(heard)["sent_ns"])


async def at_leisure(send: Callable[[int], Awaitable[Any]], many: int) -> None:
    """Send one after the other, with pauses in which all come to rest."""
    for number in range(WARM_UP + many):
        await send(now_ns() if number >= WARM_UP else 0)
        await asyncio.sleep(PAUSE_S)


async def latencies_ms(messages: AsyncIterator[T], sent: Callable[[T], int], many: int) -> list[float]:
    """How long after its sending each message was in the listener's hands, without the warm-up."""
    found: list[float] = []
    async with asyncio.timeout(PATIENCE_S):
        async for message in messages:
            when_ns = sent(message)
            if when_ns:
                found.append((now_ns() - when_ns) / 1e6)
            if len(found) == many:
                break
    return found


async def count(messages: AsyncIterator[Any], many: int) -> None:
    """Take so many, as fast as they come."""
    left = many
    async for _ in messages:
        left -= 1
        if not left:
            return


async def ended_at(listeners: list[Awaitable[None]]) -> int:
    """When the last of the listeners had all of its messages. One that never has them is an error."""
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*listeners)
    return now_ns()
