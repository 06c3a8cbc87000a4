"""The log side in memory for one event loop.

Publishers live on any thread; a frame reaches the loop through ``call_soon_threadsafe``, one wake-up for many frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from bus.position import Position
from bus.store.base import (
    CONFIRMED,
    NO_LIMITS,
    Appended,
    Batch,
    Confirmed,
    Ended,
    Frame,
    OwnLimits,
    Page,
    Stale,
    Whisper,
)
from bus.store.memory.logs import Log

__all__ = ["MemoryLoopStore"]

BACKLOG = 10_000
"""Frames that may wait for a busy loop; past that they are dropped and the hub is told to read on from the log."""


class Blocking(Protocol):
    """What this door needs of the store."""

    def append(self, batches: Sequence[Batch]) -> list[list[Appended] | Stale | Ended]: ...
    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Position | Ended: ...
    def close_log(self, log: str, epoch: str, own: OwnLimits) -> Position: ...
    def read(self, log: str, epoch: str, after: int, limit: int) -> Page: ...
    def seek(self, log: str, epoch: str, at_ms: int) -> Position: ...
    def attach(self, log: str, listener: Inbox) -> Log: ...
    def detach(self, log: Log, listener: Inbox) -> None: ...


class MemoryLoopStore:
    """See :class:`bus.store.base.LoopStore`. Every call is a few microseconds under the store's lock."""

    def __init__(self, store: Blocking) -> None:
        self._store = store

    async def append(self, batches: Sequence[Batch]) -> list[list[Appended] | Stale | Ended]:
        return self._store.append(batches)

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Position | Ended:
        return self._store.announce(log, epoch, whispers)

    async def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        return self._store.close_log(log, epoch, own)

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        return self._store.read(log, epoch, after, limit)

    async def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        return self._store.seek(log, epoch, at_ms)

    async def subscribe(self, log: str) -> AsyncIterator[Frame | Confirmed]:
        inbox = Inbox(asyncio.get_running_loop())
        attached = self._store.attach(log, inbox)
        try:
            yield CONFIRMED
            while True:
                for frame in await inbox.next_frames():
                    yield frame
        finally:
            self._store.detach(attached, inbox)

    async def close(self) -> None:
        """Nothing to close; subscriptions end with their iterators."""


class Inbox:
    """Frames on their way from a publisher's thread to a loop, bounded."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[Frame | Confirmed] = deque()
        self._arrived = asyncio.Event()
        self._waking = False

    def put(self, frame: Frame) -> None:
        """Take a frame in; called under the store's lock, from any thread."""
        if len(self._frames) >= BACKLOG:
            self._frames.clear()
            self._frames.append(CONFIRMED)
        self._frames.append(frame)
        if not self._waking:
            self._waking = True
            # A loop that ended without closing its bus is not the publisher's trouble.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def next_frames(self) -> list[Frame | Confirmed]:
        """All that has arrived, waiting for the first."""
        await self._arrived.wait()
        self._arrived.clear()
        self._waking = False
        frames = []
        with contextlib.suppress(IndexError):  # no look before the leap: a publisher's thread may just have cleared it
            while True:
                frames.append(self._frames.popleft())
        return frames
