"""The half of :mod:`bus.testing.faulty` that stands between a store and its listeners: subscriptions that can be broken."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Literal, cast

from bus.errors import BusUnavailable
from bus.position import Position
from bus.store.base import (
    NO_LIMITS,
    Announced,
    Appended,
    Batch,
    Confirmed,
    Ended,
    Frame,
    Heard,
    LoopStore,
    OwnLimits,
    Page,
    Stale,
    Store,
    Whisper,
)

__all__ = ["Door", "Faults", "Line"]

REMEMBERED = 1_000
"""Frames of the past that can be sent once more."""


class Faults:
    """What is broken at the moment, and every subscription that it is broken for."""

    def __init__(self) -> None:
        self.lines: set[Line] = set()
        self.held: list[tuple[Line, Frame]] | None = None
        self.told: deque[Frame] = deque(maxlen=REMEMBERED)
        self.passed: Callable[[Heard], None] = lambda _: None
        self.slowness = 0
        self.failing: dict[Literal["read", "subscribe"], int] = {"read": 0, "subscribe": 0}

    def heard(self, line: Line, frame: Frame) -> None:
        """The store beneath has sent a frame."""
        self.told.append(frame)
        self.send(line, frame)

    def send(self, line: Line, frame: Frame) -> None:
        """Have a frame pass, or wait behind those that do."""
        if self.held is None:
            line.say(frame)
        else:
            self.held.append((line, frame))

    def may_fail(self, what: Literal["read", "subscribe"]) -> None:
        """Raise if this was told to."""
        if self.failing[what]:
            self.failing[what] -= 1
            raise BusUnavailable(f"a {what} was told to fail")


class Line:
    """One subscription: a task takes frames from the store beneath, and what passes the faults waits here."""

    def __init__(self, faults: Faults, subscribe: Callable[[], AsyncIterator[Heard]]) -> None:
        self._faults = faults
        self._subscribe = subscribe
        self._waiting: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def heard(self) -> AsyncIterator[Heard]:
        """What passes, until the line is cut; then :class:`~bus.errors.BusUnavailable`."""
        self._faults.lines.add(self)
        try:
            self._listen(confirmed=False)
            while (one := await self._waiting.get()) is not None:
                self._faults.passed(one)
                yield one
            raise BusUnavailable("the subscription was cut")
        finally:
            self._faults.lines.discard(self)
            await self._hang_up()

    def say(self, one: Heard) -> None:
        """Let something pass."""
        self._waiting.put_nowait(one)

    def cut(self) -> None:
        """End it; what was on its way is lost."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    def move(self) -> None:
        """Listen to another store from now on, without a word to the listener."""
        for task in self._tasks:
            task.cancel()
        self._listen(confirmed=True)

    def _listen(self, *, confirmed: bool) -> None:
        task = self._loop.create_task(self._take_in(confirmed=confirmed), name="callboard faulty line")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_in(self, *, confirmed: bool) -> None:
        """``confirmed``: the first confirmation is our own affair."""
        try:
            async with contextlib.aclosing(cast("AsyncGenerator[Heard]", self._subscribe())) as frames:
                async for one in frames:
                    if isinstance(one, Frame):
                        self._faults.heard(self, one)
                    elif confirmed and isinstance(one, Confirmed):
                        confirmed = False
                    else:
                        self.say(one)
        except BusUnavailable:
            self.cut()

    async def _hang_up(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Door:
    """A :class:`bus.store.base.LoopStore` that asks the store which is beneath at the moment."""

    def __init__(self, faults: Faults, store: Callable[[], Store]) -> None:
        self._faults = faults
        self._store = store
        self._beneath: dict[Store, LoopStore] = {}

    async def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        """As the store beneath."""
        return await self._open().append(batch)

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        """As the store beneath."""
        return await self._open().announce(log, epoch, whispers)

    async def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        """As the store beneath."""
        return await self._open().close_log(log, epoch, own)

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        """As the store beneath, unless it was told to fail or to take its time."""
        self._faults.may_fail("read")
        page = await self._open().read(log, epoch, after, limit)
        for _ in range(self._faults.slowness):
            await asyncio.sleep(0)
        return page

    async def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        """As the store beneath, unless reads were told to fail."""
        self._faults.may_fail("read")
        return await self._open().seek(log, epoch, at_ms)

    async def subscribe(self, log: str) -> AsyncIterator[Heard]:
        """What passes of what the store beneath says, unless it was told to fail."""
        self._faults.may_fail("subscribe")
        line = Line(self._faults, lambda: self._open().subscribe(log))
        async with contextlib.aclosing(cast("AsyncGenerator[Heard]", line.heard())) as passing:
            async for one in passing:
                yield one

    async def close(self) -> None:
        """Close every door that was opened beneath. Safe twice."""
        while self._beneath:
            _, loop_store = self._beneath.popitem()
            await loop_store.close()

    def _open(self) -> LoopStore:
        store = self._store()
        if store not in self._beneath:
            self._beneath[store] = store.on_loop()
        return self._beneath[store]
