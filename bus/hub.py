"""The hub: one for each event loop and log, the only one there that hears the log's live frames.

It stands at a position and takes a live frame only if it is the very next one: same epoch, number one higher, and
naming our token as the one before it. Anything else is a possible hole, and so is every (re)confirmed subscription; then
it reads on from the log until it has caught up, so that what it hands to its listeners has no hole and no repeat. While
nothing is announced it compares its position with the log's now and then, whatever the link says of itself.

::

               start
                 │
                 ▼        confirmed            caught up
             connecting ──────────────> repairing ─────────> live ──┐ next frame: hand out
                 ┌──────────────────────▲   │ │  ▲             │    │
                 │      confirmed           │ │  └─ odd frame ─┤ <──┘
              degraded <────────────────────┘ │                │
               backoff <──────────────────────┼── link lost ───┘
                                              └─> ended: the log was closed, and all of it handed out
             close() from anywhere: closed

Where the log cannot close the hole, every listener is told to fall behind: it reads from the log at its own cursor and
finds its own gap there. The hub itself goes on from the log's top.

Between taking a frame and handing it out there is no ``await``; only repairs wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal, Protocol, cast

from bus import ids
from bus.decoding import Decoder
from bus.delivery import EndReason, follow
from bus.errors import BusClosed, BusUnavailable
from bus.mailbox import Found
from bus.position import Position
from bus.reader import PAGE
from bus.store.base import Entry, Frame, Heard, LoopStore, Quiet
from bus.trail import Trail

__all__ = ["Hub", "State", "Tuned"]

FIRST_BACKOFF_S = 0.02
LAST_BACKOFF_S = 2.0
CLOSE_S = 2.0
REMEMBERED = 1024
"""For how many sets of topics a hub remembers who wants them."""
COMPARED_EVERY = 2
"""Quiet moments (two seconds each) between two looks at the log."""

State = Literal["connecting", "repairing", "live", "degraded", "ended", "closed"]

log = logging.getLogger("callboard.bus")


class Tuned(Protocol):
    """A listener, as the hub sees it."""

    @property
    def lag(self) -> int:
        """How many events it is behind."""

    def wants(self, topics: list[str]) -> bool:
        """Whether an event with these topics is for it. Always the same answer for the same topics."""

    def hand(self, found: Found) -> None:
        """Take a delivery in; must not block. Only while it is attached."""

    def fall_behind(self) -> None:
        """Read on from the log by itself, and detach."""

    def reached(self, position: Position) -> bool:
        """The hub has come to there. Whether that is as far as this listener had read by itself, or further."""

    def confirm(self, top: Position) -> None:
        """The log was read up to its top; whoever has read further stands in a branch of it that is lost."""

    def end(self, reason: EndReason) -> None:
        """Nothing more comes from here."""


class Hub:
    """See the module. ``start`` and ``close`` bear being called twice; everything belongs to the loop it started on."""

    def __init__(
        self,
        store: LoopStore,
        name: str,
        decoder: Decoder | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.state: State = "connecting"
        self.since = datetime.now(UTC)
        """When that state began."""
        self.position: Position | None = None
        self.trail = Trail()
        self.decoder = decoder or Decoder()
        self.pause = pause
        """How it waits, and its listeners with it."""
        self.listeners: set[Tuned] = set()
        self._attached: set[Tuned] = set()
        self._ahead: set[Tuned] = set()  # of those attached, who may have read further than we stand
        self._wanting: dict[str, tuple[Tuned, ...]] = {}
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._failure: BusUnavailable | None = None
        self._quiets = 0

    def __repr__(self) -> str:
        return f"<Hub {self.name} {self.state} at {self.position} with {len(self.listeners)} listeners>"

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Run, and return once attached.

        Raises the first :class:`~bus.errors.BusUnavailable` if it cannot attach, or :class:`~bus.errors.BusClosed` if it
        was closed meanwhile.
        """
        if self.state == "ended":
            await self._look_again()
        if self._task is None and self.state != "closed":
            self._task = asyncio.create_task(self._run(), name=f"callboard hub {self.name}")
        await self._ready.wait()
        if self.position is None and self._failure is not None:
            await self.close()
            raise self._failure
        if self.state == "closed":
            raise BusClosed

    async def _look_again(self) -> None:
        """A log that had ended begins another life where its server lost the data, or forgot it in the end."""
        page = await self._store.read(self.name, ids.epoch(), 0, 0)
        if self.state == "ended" and not page.closed:
            self._enter("connecting")
            self._ready.clear()
            self._task = None

    async def close(self) -> None:
        """End every listener, then the task and its subscription, within a deadline. Safe twice."""
        self._enter("closed")
        self._ready.set()  # whoever waits for the start is told
        self.end_listeners()
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

    def end_listeners(self) -> None:
        """The bus was closed. What waits in them may still be read. Safe twice."""
        for listener in tuple(self.listeners):
            listener.end("bus")

    def _enter(self, state: State) -> None:
        if self.state not in (state, "closed"):
            self.state, self.since = state, datetime.now(UTC)

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while self.state not in ("ended", "closed"):
            try:
                async with contextlib.aclosing(
                    cast("AsyncGenerator[Heard]", self._store.subscribe(self.name))
                ) as heard:
                    async for one in heard:
                        await self._take_in(one)
                        backoff_s = FIRST_BACKOFF_S
                        if self.state == "ended":
                            return
            except BusUnavailable as error:
                self._lost(error)
            except Exception:
                # A defect must not end the live side of the process for good: say so, and connect anew.
                log.exception("the live link of log %r failed; it will be opened again", self.name)
                self._lost(BusUnavailable("the live link failed"))
            await self.pause(backoff_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    def _lost(self, error: BusUnavailable) -> None:
        if self.state in ("live", "repairing"):
            log.warning("the live link of log %r was lost and is being repaired: %s", self.name, error)
        self._enter("degraded")
        self._failure = error
        self._ready.set()

    # -- listeners -----------------------------------------------------------------------------------------------------

    def attach(self, listener: Tuned) -> None:
        """Hand it what comes from now on. Safe twice."""
        self._attached.add(listener)
        self._ahead.add(listener)
        self._wanting.clear()

    def detach(self, listener: Tuned) -> None:
        """Hand it nothing more. Safe twice."""
        self._attached.discard(listener)
        self._ahead.discard(listener)
        self._wanting.clear()

    def _who_wants(self, topics: str) -> tuple[Tuned, ...]:
        segments = topics.split(" ") if topics else []
        wanting = tuple(listener for listener in self._attached if listener.wants(segments))
        if len(self._wanting) >= REMEMBERED:
            self._wanting.clear()
        self._wanting[topics] = wanting
        return wanting

    # -- frames --------------------------------------------------------------------------------------------------------

    async def _take_in(self, heard: Heard) -> None:
        if isinstance(heard, Frame) and self._file(heard):
            return
        if isinstance(heard, Quiet) and await self._agrees():
            return
        self._enter("repairing")
        ended = await self._repair()
        for listener in tuple(self.listeners):
            listener.confirm(cast("Position", self.position))
        self._enter("live")
        if isinstance(heard, Frame) and heard.ephemeral:
            self._file(heard)  # it came after events that were not heard, and were read just now
        if ended:
            self._end()
        self._ready.set()

    def _end(self) -> None:
        """The log was closed. Those who are behind read it to its end by themselves."""
        self._enter("ended")
        for listener in tuple(self._attached):
            listener.end("log")

    def _file(self, frame: Frame) -> bool:
        """Hand a live frame out if it is the next one. ``False`` asks for a repair."""
        at, entry = self.position, frame.entry
        if at is None or frame.end:
            return False
        if frame.ephemeral:
            return self._whispered(frame, at)
        if frame.epoch != at.epoch:
            return False
        if entry.seq == at.seq + 1 and entry.prev == at.token:
            self._hand_out(Position(at.epoch, entry.seq, entry.token), entry)
            return True
        # What a repair has read already comes again from the subscription; any other number is a hole or a fork.
        if entry.seq == at.seq:
            return entry.token == at.token
        return entry.seq < at.seq and self.trail.token(entry.seq) in (None, entry.token)

    def _whispered(self, frame: Frame, at: Position) -> bool:
        """Hand out what has no number where it belongs. After a repair it may be late: then it is lost, never out of order."""
        came_after = Position(frame.epoch, frame.entry.seq, frame.entry.token)
        if came_after == at:
            self._hand_out(at, frame.entry, ephemeral=True)
        return frame.epoch != at.epoch or came_after.seq <= at.seq

    async def _agrees(self) -> bool:
        """Whether the log still stands where we do. A quiet link may have lost its other end; a log, its place."""
        self._quiets += 1
        at = self.position
        if at is None or self._quiets % COMPARED_EVERY:
            return True
        page = await self._store.read(self.name, ids.epoch(), at.seq, 0)
        return at == Position(page.epoch, page.top, page.top_token) and not page.closed

    async def _repair(self) -> bool:
        """Read on from the log until nothing is missing, or start again from its top. Whether the log has ended."""
        if self.position is None:
            top = await self._store.read(self.name, ids.epoch(), 0, 0)
            self._stand(Position(top.epoch, top.top, top.top_token))
            return top.closed
        while True:
            at = self.position
            # A new epoch is offered, never ours: a log that lost its data must not go on under the old name.
            page = await self._store.read(self.name, ids.epoch(), at.seq, PAGE)
            gap = follow(at, page)
            if gap is not None:
                log.warning("log %r cannot be repaired from %s on (%s)", self.name, at, gap.reason)
                for listener in tuple(self.listeners):
                    listener.fall_behind()
                self._stand(Position(page.epoch, page.top, page.top_token))
                return page.closed
            for entry in page.entries:
                self._hand_out(Position(page.epoch, entry.seq, entry.token), entry)
            if self.position.seq >= page.top:
                return page.closed

    def _stand(self, position: Position) -> None:
        """Go on from there, however one came to it."""
        self.position = position
        self.trail.forget()
        if position.seq:
            self.trail.note(position.seq, position.token)

    def _hand_out(self, position: Position, entry: Entry, *, ephemeral: bool = False) -> None:
        """To every listener that wants it; decoded once, and not at all if nobody does."""
        before = cast("Position", self.position)
        if not ephemeral:
            self.position = position
            self.trail.note(position.seq, position.token)
            if self._ahead:
                self._ahead -= {listener for listener in tuple(self._ahead) if listener.reached(position)}
        wanting = self._wanting.get(entry.topics)
        if wanting is None:
            wanting = self._who_wants(entry.topics)
        if wanting:
            delivery = self.decoder.deliver(position, entry, ephemeral=ephemeral)
            if delivery is not None:
                found = Found(before, delivery, len(entry.body))
                for listener in wanting:
                    listener.hand(found)
