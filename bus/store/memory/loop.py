"""The log side in memory for one event loop.

Publishers live on any thread; a frame reaches the loop through ``call_soon_threadsafe``, one wake-up for many frames.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from bus.position import Position
from bus.store.base import (
    CONFIRMED,
    NO_LIMITS,
    Announced,
    Appended,
    Batch,
    Ended,
    Heard,
    OwnLimits,
    Page,
    Stale,
    Whisper,
)
from bus.store.inbox import Inbox
from bus.store.memory.logs import Log

__all__ = ["MemoryLoopStore"]


class Blocking(Protocol):
    """What this door needs of the store."""

    def append(self, batch: Batch) -> list[Appended] | Stale | Ended: ...
    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended: ...
    def close_log(self, log: str, epoch: str, own: OwnLimits) -> Position: ...
    def read(self, log: str, epoch: str, after: int, limit: int) -> Page: ...
    def seek(self, log: str, epoch: str, at_ms: int) -> Position: ...
    def attach(self, log: str, listener: Inbox) -> Log: ...
    def detach(self, log: Log, listener: Inbox) -> None: ...


class MemoryLoopStore:
    """See :class:`bus.store.base.LoopStore`. Every call is a few microseconds under the store's lock."""

    def __init__(self, store: Blocking) -> None:
        self._store = store

    async def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        return self._store.append(batch)

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        return self._store.announce(log, epoch, whispers)

    async def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        return self._store.close_log(log, epoch, own)

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        return self._store.read(log, epoch, after, limit)

    async def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        return self._store.seek(log, epoch, at_ms)

    async def subscribe(self, log: str) -> AsyncIterator[Heard]:
        inbox = Inbox(threads=True)
        attached = self._store.attach(log, inbox)
        try:
            yield CONFIRMED
            async for heard in inbox:
                yield heard
        finally:
            self._store.detach(attached, inbox)

    async def close(self) -> None:
        """Nothing to close; subscriptions end with their iterators."""
