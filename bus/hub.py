"""The hub: one for each event loop and log, the only one there that holds a live subscription.

It stands at a position and takes a live frame only if it is the very next one: same epoch, number one higher, and
naming our token as the one before it. Anything else is a possible hole, and so is every (re)confirmed subscription; then
it reads on from the log until it has caught up, so that what it hands to its listeners has no hole and no repeat.

::

               start
                 │
                 ▼        confirmed            caught up
    ┌───────> connecting ───────────> repairing ─────────> live ──┐ next frame: hand out
    │            ▲                      ▲   │                │    │
    │            │ backoff              └───┼── odd frame ───┤ <──┘
    │            └──────────────────────────┴── link lost ───┘
    └ close() from anywhere ends it

Where the log cannot close the hole, every listener is told to fall behind: it reads from the log at its own cursor and
finds its own gap there. The hub itself goes on from the log's top.

Between taking a frame and handing it out there is no ``await``; only repairs wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator
from typing import Protocol, cast

from bus import codec, ids
from bus.delivery import Delivery, follow
from bus.errors import BusClosed, BusError, BusUnavailable
from bus.position import Position
from bus.store.base import Confirmed, Entry, Frame, LoopStore

__all__ = ["PAGE", "Hub", "Tuned", "deliver"]

PAGE = 256
"""Entries read from the log at once: the memory that a repair may take."""

FIRST_BACKOFF_S = 0.02
LAST_BACKOFF_S = 2.0
CLOSE_S = 2.0

log = logging.getLogger("callboard.bus")


class Tuned(Protocol):
    """A listener, as the hub sees it."""

    @property
    def lag(self) -> int:
        """How many events it is behind."""

    def wants(self, topics: list[str]) -> bool:
        """Whether an event with these topics is for it."""

    def hand(self, delivery: Delivery, before: Position) -> None:
        """Take one in, which came after ``before``; must not block."""

    def fall_behind(self) -> None:
        """Read on from the log by itself."""

    def confirm(self, top: Position) -> None:
        """The log was read up to its top; whoever has read further stands in a branch of it that is lost."""

    def end(self) -> None:
        """The hub has closed."""


class Hub:
    """See the module. ``start`` and ``close`` bear being called twice; everything belongs to the loop it started on."""

    def __init__(self, store: LoopStore, name: str) -> None:
        self.name = name
        self.state = "connecting"
        self.position: Position | None = None
        self.listeners: set[Tuned] = set()
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._failure: BusUnavailable | None = None

    def __repr__(self) -> str:
        return f"<Hub {self.name} {self.state} at {self.position} with {len(self.listeners)} listeners>"

    async def start(self) -> None:
        """Run, and return once attached.

        Raises the first :class:`~bus.errors.BusUnavailable` if it cannot attach, or :class:`~bus.errors.BusClosed` if it
        was closed meanwhile.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"callboard hub {self.name}")
        await self._ready.wait()
        if self.position is None and self._failure is not None:
            await self.close()
            raise self._failure
        if self.state == "closed":
            raise BusClosed

    async def close(self) -> None:
        """End every listener, then the task and its connection, within a deadline. Safe twice."""
        self.state = "closed"
        self._ready.set()  # whoever waits for the start is told
        for listener in tuple(self.listeners):
            listener.end()
        self.listeners.clear()
        task, self._task = self._task, None
        if task is None or task is asyncio.current_task():
            return
        # Again and again: before Python 3.12 a cancellation that races the end of a read can be swallowed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while not task.done():
                    task.cancel()
                    await asyncio.wait((task,), timeout=0.1)

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while self.state != "closed":
            try:
                async with contextlib.aclosing(
                    cast("AsyncGenerator[Frame | Confirmed]", self._store.subscribe(self.name))
                ) as frames:
                    async for frame in frames:
                        await self._take_in(frame)
                        backoff_s = FIRST_BACKOFF_S
            except BusUnavailable as error:
                self._lost(error)
            except Exception:
                # A defect must not end the live side of the process for good: say so, and connect anew.
                log.exception("the live link of log %r failed; it will be opened again", self.name)
                self._lost(BusUnavailable("the live link failed"))
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    def _lost(self, error: BusUnavailable) -> None:
        if self.state == "live":
            log.warning("the live link of log %r was lost and is being repaired: %s", self.name, error)
        if self.state != "closed":
            self.state = "connecting"
        self._failure = error
        self._ready.set()

    async def _take_in(self, frame: Frame | Confirmed) -> None:
        if isinstance(frame, Confirmed) or not self._file(frame):
            self.state = "repairing"
            await self._repair()
            for listener in tuple(self.listeners):
                listener.confirm(cast("Position", self.position))
            self.state = "live"
            self._ready.set()

    def _file(self, frame: Frame) -> bool:
        """Hand a live frame out if it is the next one. ``False`` asks for a repair."""
        at, entry = self.position, frame.entry
        if at is None:
            return False
        if frame.ephemeral:
            self._hand_out(Position(frame.epoch, entry.seq, entry.token), entry, ephemeral=True)
            return True
        if frame.epoch != at.epoch:
            return False
        if entry.seq == at.seq + 1 and entry.prev == at.token:
            self._hand_out(Position(at.epoch, entry.seq, entry.token), entry)
            return True
        # What a repair has read already comes again from the subscription; any other number is a hole or a fork.
        return entry.seq < at.seq or (entry.seq == at.seq and entry.token == at.token)

    async def _repair(self) -> None:
        """Read on from the log until nothing is missing, or start again from its top."""
        if self.position is None:
            top = await self._store.read(self.name, ids.epoch(), 0, 0)
            self.position = Position(top.epoch, top.top, top.top_token)
            return
        while True:
            at = self.position
            # A new epoch is offered, never ours: a log that lost its data must not go on under the old name.
            page = await self._store.read(self.name, ids.epoch(), at.seq, PAGE)
            gap = follow(at, page)
            if gap is not None:
                log.warning("log %r cannot be repaired from %s on (%s)", self.name, at, gap.reason)
                for listener in tuple(self.listeners):
                    listener.fall_behind()
                self.position = Position(page.epoch, page.top, page.top_token)
                return
            for entry in page.entries:
                self._hand_out(Position(page.epoch, entry.seq, entry.token), entry)
            if self.position.seq >= page.top:
                return

    def _hand_out(self, position: Position, entry: Entry, *, ephemeral: bool = False) -> None:
        """To every listener that wants it; decoded once, and not at all if nobody does."""
        before = cast("Position", self.position)
        if not ephemeral:
            self.position = position
        topics = entry.topics.split(" ") if entry.topics else []
        wanting = [listener for listener in self.listeners if listener.wants(topics)]
        if wanting:
            delivery = deliver(position, entry, ephemeral=ephemeral)
            for listener in wanting if delivery is not None else ():
                listener.hand(cast("Delivery", delivery), before)


def deliver(position: Position, entry: Entry, *, ephemeral: bool = False) -> Delivery | None:
    """Decode an entry. ``None`` for bytes that are no event (a foreign writer's): logged, and of no use to anybody."""
    try:
        # Whatever its size: what another process was allowed to publish is not for us to drop.
        envelope = codec.decode(entry.body, max_bytes=len(entry.body))
    except BusError as error:
        log.error("event %s cannot be read and is left out: %s", position, error)
        return None
    try:
        return Delivery(position, envelope, codec.read(envelope), ephemeral)
    except BusError as error:
        log.warning("event %s is handed on as plain data: %s", position, error)
        return Delivery(position, envelope, envelope.data, ephemeral)
