"""Live frames of one log on their way to a hub: bounded, and honest about what did not fit.

Whoever hears a frame puts it in and never waits. Where a hub does not keep up (it is repairing, or its loop is busy), the
inbox is emptied and holds a :data:`~bus.store.records.CONFIRMED` instead: read on from the log.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Self

from bus.errors import BusUnavailable
from bus.store.records import CONFIRMED, Frame, Heard

__all__ = ["Inbox"]

MOST = 10_000
MOST_BYTES = 16 << 20
TURN = 256
"""Frames handed out before others have their turn."""


class Inbox:
    """Made on the loop that reads it. ``put`` and ``fail`` may come from any thread where ``threads`` says so."""

    def __init__(self, *, threads: bool = False) -> None:
        self._wake = asyncio.get_running_loop().call_soon_threadsafe if threads else None
        self._lock = threading.Lock()
        self._waiting: list[Heard] = []
        self._taken: deque[Heard] = deque()  # the reader's alone
        self._bytes = 0
        self._failure: BusUnavailable | None = None
        self._arrived = asyncio.Event()
        self._waking = False

    def put(self, heard: Heard) -> None:
        """Take one in. Never blocks."""
        with self._lock:
            self._bytes += len(heard.entry.body) if isinstance(heard, Frame) else 0
            if len(self._waiting) >= MOST or self._bytes > MOST_BYTES:
                self._waiting, self._bytes = [CONFIRMED], 0
            self._waiting.append(heard)
            if self._waking:
                return
            self._waking = True
        self._ring()

    def fail(self, error: BusUnavailable) -> None:
        """The link is dead: the reader is told, after what has arrived."""
        with self._lock:
            self._failure = error
        self._ring()

    def _ring(self) -> None:
        if self._wake is None:
            self._arrived.set()
            return
        try:
            self._wake(self._arrived.set)
        except RuntimeError:
            return  # a loop that ended without closing its bus is not the publisher's trouble

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Heard:
        """The next one, until the link fails: then its ``BusUnavailable``. For one reader."""
        if not self._taken:
            await self._take()
        elif len(self._taken) % TURN == 0:
            await asyncio.sleep(0)  # or what gathered while the loop was busy would overflow every mailbox
        return self._taken.popleft()

    async def _take(self) -> None:
        while not self._taken:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                self._taken.extend(self._waiting)
                self._waiting, self._bytes, self._waking = [], 0, False
                failure = self._failure
            if failure is not None and not self._taken:
                raise BusUnavailable(str(failure)) from failure
            if failure is not None:
                self._arrived.set()  # for the next look
