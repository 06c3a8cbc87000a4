"""A listener: an iterator over the events of a log that match its patterns, without a gap and without a repeat.

It is either *attached* (the hub hands it deliveries into a bounded mailbox) or *behind* (it reads the log by itself, at
its own pace). It joins by attaching at the hub's position H and reading (cursor, H] from the log first: the two ranges
do not overlap, so there is nothing to merge. What a full mailbox does is its policy (see ``mailbox.py``); by default the
listener is behind again, so a slow one costs nobody anything and, inside the retention window, misses nothing.

::

    entered ──cursor is the hub's──> attached ──mailbox full, or the hub found a hole──> behind
       └──────────any other──> behind ──read up to the hub's position──> attached
                                  └───┐                                     │
       the log was closed and read ───┴──> ended: what waits, then Closed <─┴── hub ended, bus closed
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from types import TracebackType
from typing import Literal, NamedTuple, Self

from bus import ids
from bus.delivery import Closed, Delivery, EndReason, Item
from bus.errors import BusClosed, BusUnavailable
from bus.hub import Hub, Tuned
from bus.mailbox import Found, Mailbox
from bus.position import Position
from bus.reader import Reader
from bus.store.base import LoopStore
from bus.topics import Matcher

__all__ = ["After", "Joined", "Listener", "start_of"]

RETRY_S = 0.1

After = Position | Literal["0"] | datetime | None
"""Where to begin: after a position, ``"0"`` for all that is kept, at a time, ``None`` for from now on."""


class Joined(NamedTuple):
    """What a listener is given when it opens: its hub, the store of its loop, and how to give both back."""

    hub: Hub
    store: LoopStore
    leave: Callable[[], Awaitable[None]]


async def start_of(store: LoopStore, log: str, after: After) -> Position | Literal["0"]:
    """The position to begin after; of a time, that of the last event before it, and of ``None`` the log's last."""
    if after is None:
        top = await store.read(log, ids.epoch(), 0, 0)
        return Position(top.epoch, top.top, top.top_token)
    if not isinstance(after, datetime):
        return after
    return await store.seek(log, ids.epoch(), int(after.timestamp() * 1000))


class Listener(Tuned):
    """Made by :meth:`bus.Bus.listen`; use it as ``async with bus.listen(...) as listener: async for item in listener``.

    Entering it attaches it; leaving it frees everything. It belongs to one task at a time. Where the bus or the log is
    closed, or its policy disconnects it, the last item is a :class:`~bus.delivery.Closed`, after all that waited.
    """

    def __init__(
        self,
        join: Callable[[], Awaitable[Joined]],
        log: str,
        matcher: Matcher,
        after: After,
        mailbox: Mailbox,
        *,
        disconnects: bool = False,
    ) -> None:
        self._join = join
        self._log = log
        self._matcher = matcher
        self._after = after
        self._mailbox = mailbox
        self._disconnects = disconnects
        self._joined: Joined | None = None
        self._reader: Reader | None = None
        self._attached = False
        self._read_to = 0  # where the log had been read further than the hub: up to there its frames are repeats
        self._end: EndReason | None = None
        self._told = False
        self._left = False
        self._arrived = asyncio.Event()

    def __repr__(self) -> str:
        state = "ended" if self._left or self._end else "attached" if self._attached else "behind"
        state = state if self._reader else "not entered"
        return f"<Listener {' '.join(self._matcher.patterns)} {state} at {self.position}, {len(self._mailbox)} waiting>"

    async def __aenter__(self) -> Self:
        if self._joined is not None or self._left:
            raise BusClosed("this listener was entered before: call bus.listen() again for another")
        joined = self._joined = await self._join()
        hub = joined.hub
        hub.listeners.add(self)
        try:
            after = await start_of(joined.store, self._log, self._after)
        except BaseException:
            await self.close()
            raise
        self._reader = Reader(joined.store, self._log, self._matcher, after, hub.decoder)
        # What we were given is proven by reading on from it; the log's own top needs no proof.
        if self._end is None and isinstance(after, Position) and (self._after is None or after == hub.position):
            self._join_at(hub, after)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def position(self) -> Position | None:
        """The cursor to resume from: the last event that was handed out or filtered away. ``None`` before the first."""
        return self._mailbox.before or self._seen

    @property
    def _seen(self) -> Position | None:
        """The last event that was looked at, by the reader or, while attached, by the hub for us."""
        cursor = self._reader.cursor if self._reader else None
        at = self._joined.hub.position if self._joined and self._attached else None
        if at is None or cursor is None or (at.epoch == cursor.epoch and at.seq <= cursor.seq):
            return cursor
        return at

    @property
    def lag(self) -> int:
        """How many events of the log this listener is behind its hub; those that do not match it count as well."""
        at, top = self.position, self._joined.hub.position if self._joined and not self._end else None
        return max(0, top.seq - at.seq) if at is not None and top is not None else 0

    async def close(self) -> None:
        """Leave: what still waits is dropped, and the iterator ends. Safe twice."""
        joined = self._joined
        if joined is None or self._left:
            return
        if self._reader is not None:
            self._reader.cursor = self.position  # so that it can still be asked for
        self._left = True
        self._mailbox.clear()
        self._detach(joined.hub)
        joined.hub.listeners.discard(self)
        await joined.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._reader is None:
            raise BusClosed("enter the listener first: async with bus.listen(...) as listener")
        while not self._mailbox:
            if self._left or self._told:
                raise StopAsyncIteration
            if self._end is not None:
                self._told = True
                return Closed(self.position, self._end)
            if self._attached:
                self._arrived.clear()
                await self._arrived.wait()
            else:
                await self._catch_up(self._reader)
        return self._mailbox.take()

    async def _catch_up(self, reader: Reader) -> None:
        """Read one page; once at the hub's position, attach. There is no ``await`` between that look and attaching."""
        assert self._joined is not None  # it was entered  # noqa: S101
        hub, at = self._joined.hub, reader.cursor
        await asyncio.sleep(0)  # a page from memory takes no time to wait for, and others want their turn
        try:
            page = await reader.page()
        except BusUnavailable:
            await hub.pause(RETRY_S)  # the hub says so in its state and its log
            return
        if self._left:
            return  # while we read; whoever closed it has seen the last item
        for found in page:
            self._mailbox.put(found)
        if self._end or hub.position is None or reader.cursor is None or not reader.caught_up:
            return
        if reader.closed:
            self.end("log")
        elif not self._join_at(hub, reader.cursor) and reader.cursor == at:
            await hub.pause(0.01)  # the hub stands in another life or branch of the log and is about to notice

    def _join_at(self, hub: Hub, cursor: Position) -> bool:
        """Attach if the hub stands where we do, or before it.

        Its frames may still be on their way: those up to our cursor are skipped.
        """
        at = hub.position
        joins = (
            at is not None
            and at.epoch == cursor.epoch
            and at.seq <= cursor.seq
            and (at.seq < cursor.seq or at == cursor)
        )
        if joins:
            self._attach(hub)
        return joins

    def _attach(self, hub: Hub) -> None:
        assert self._reader is not None  # noqa: S101 - only an entered listener attaches
        if hub.state in ("ended", "closed"):
            self.end("log" if hub.state == "ended" else "bus")
            return
        self._read_to = self._reader.cursor.seq if self._reader.cursor else 0
        self._attached = True
        hub.attach(self)

    def _detach(self, hub: Hub) -> None:
        self._attached = False
        hub.detach(self)
        self._arrived.set()

    # -- what the hub calls --------------------------------------------------------------------------------------------

    def wants(self, topics: list[str]) -> bool:
        """See :class:`bus.hub.Tuned`."""
        return self._matcher.matches(topics)

    def hand(self, found: Found) -> None:
        """See :class:`bus.hub.Tuned`; what does not fit is the policy's affair."""
        item = found.item
        assert self._reader is not None  # noqa: S101 - only an entered listener is attached
        if found.before.seq < self._read_to:
            return  # read from the log already; and what was whispered before that comes too late
        mailbox = self._mailbox
        if mailbox.fits(found):
            mailbox.put(found)
            self._arrived.set()
        elif isinstance(item, Delivery) and item.ephemeral:
            return  # live only
        elif self._disconnects:
            self.end("overflow")
            self._reader.cursor = found.before
        else:
            self.fall_behind()

    def fall_behind(self) -> None:
        """See :class:`bus.hub.Tuned`: drop what waits and read on after the last item that was handed out or filtered away."""
        if self._attached and self._reader is not None and self._joined is not None:
            hub, at = self._joined.hub, self.position
            self._reader.cursor = at
            if at is not None:
                self._reader.trail.go_on(hub.trail, at.seq)
            self._mailbox.clear()
            self._detach(hub)

    def reached(self, position: Position) -> bool:
        """See :class:`bus.hub.Tuned`. Whatever the topics of that event: it tells our branch from another."""
        if position.seq == self._read_to:
            self.confirm(position)
        return position.seq >= self._read_to

    def confirm(self, top: Position) -> None:
        """See :class:`bus.hub.Tuned`. Reading on by itself finds the gap, or none if the log has just grown."""
        cursor = self._reader.cursor if self._reader else None
        if cursor is not None and cursor.epoch == top.epoch and cursor.seq >= top.seq and cursor != top:
            self.fall_behind()

    def end(self, reason: EndReason) -> None:
        """See :class:`bus.hub.Tuned`; what waits may still be read."""
        if self._end is None and self._joined is not None:
            if self._reader is not None:
                self._reader.cursor = self._seen
            self._end = reason
            self._detach(self._joined.hub)
