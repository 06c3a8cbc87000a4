"""A listener: an iterator over the events of a log that match its patterns, without a gap and without a repeat.

It is either *attached* (the hub hands it deliveries into a bounded queue) or *behind* (it reads the log by itself, at
its own pace). It joins by attaching at the hub's position H and reading (cursor, H] from the log first: the two ranges
do not overlap, so there is nothing to merge. A queue that is full is dropped, and the listener is behind again; so a
slow one costs nobody anything and, inside the retention window, misses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, NamedTuple, Self

from bus import ids
from bus.delivery import Delivery, Gap, follow
from bus.errors import BusClosed, BusUnavailable
from bus.hub import PAGE, Hub, Tuned, deliver
from bus.position import Position
from bus.store.base import LoopStore, Page
from bus.topics import Matcher

__all__ = ["After", "Item", "Listener", "Reader"]

QUEUE = 1000
"""Deliveries that may wait in an attached listener; past that it reads from the log instead."""

After = Position | Literal["0"] | None
"""Where to begin: after a position, ``"0"`` for all that is kept, ``None`` for from now on."""

Item = Delivery | Gap


class Found(NamedTuple):
    """An item, and the position just before it: where to begin for this item to be the next."""

    before: Position
    item: Item


class Reader:
    """Reads a log page by page from a cursor, filters it, and notices gaps. ``cursor`` is the last event looked at."""

    def __init__(self, store: LoopStore, log: str, matcher: Matcher, after: Position | Literal["0"]) -> None:
        self.cursor: Position | None = None if after == "0" else Position.parse(after)
        self.top: int | None = None
        self._store = store
        self._log = log
        self._matcher = matcher

    async def page(self) -> list[Found]:
        """The next items; an empty list may only mean that nothing in this page matched: compare ``cursor`` and ``top``."""
        at = self.cursor
        # A new epoch is offered, never ours: a log that lost its data must not go on under the old name.
        page = await self._store.read(self._log, ids.epoch(), at.seq if at else 0, PAGE)
        gap = follow(at, page) if at is not None else None
        if gap is not None and gap.reason != "trimmed":
            # Another life, or another branch: what followed "our" number there is unknown, so begin at what is kept.
            page = await self._store.read(self._log, page.epoch, 0, PAGE)
            if at is not None and gap.reason == "epoch":
                gap = follow(at, page) or gap
        found = [Found(at, gap)] if at is not None and gap is not None else []
        for entry in page.entries:
            if self._matcher.matches(entry.topics.split(" ") if entry.topics else ()):
                delivery = deliver(Position(page.epoch, entry.seq, entry.token), entry)
                if delivery is not None:
                    found.append(Found(Position(page.epoch, entry.seq - 1, entry.prev), delivery))
        self._move(page)
        return found

    def _move(self, page: Page) -> None:
        self.top = page.top
        if page.entries:
            last = page.entries[-1]
            self.cursor = Position(page.epoch, last.seq, last.token)
        else:
            # Nothing after the cursor is kept: everything up to the top has been seen, or has been told as a gap.
            self.cursor = Position(page.epoch, page.top, page.top_token)

    @property
    def caught_up(self) -> bool:
        """Whether the last page ended at what was then the top."""
        return self.top is not None and self.cursor is not None and self.cursor.seq >= self.top


class Joined(NamedTuple):
    """What a listener is given when it opens: its hub and the store of its loop."""

    hub: Hub
    store: LoopStore


class Listener(Tuned):
    """Made by :meth:`bus.Bus.listen`; use it as ``async with bus.listen(...) as listener: async for item in listener``.

    Entering it attaches it; leaving it frees everything. It belongs to one task at a time. Iterating ends when the bus
    is closed.
    """

    def __init__(
        self,
        join: Callable[[], Awaitable[Joined]],
        leave: Callable[[], Awaitable[None]],
        log: str,
        matcher: Matcher,
        after: After,
    ) -> None:
        self._join = join
        self._leave = leave
        self._log = log
        self._matcher = matcher
        self._after = after
        self._hub: Hub | None = None
        self._reader: Reader | None = None
        self._queue: deque[Found] = deque()
        self._attached = False
        self._ended = False
        self._arrived = asyncio.Event()

    def __repr__(self) -> str:
        state = (
            "ended" if self._ended else "attached" if self._attached else "behind" if self._reader else "not entered"
        )
        return f"<Listener {' '.join(self._matcher.patterns)} {state} at {self.position}, {len(self._queue)} waiting>"

    async def __aenter__(self) -> Self:
        if self._hub is not None or self._ended:
            raise BusClosed("this listener was entered before: call bus.listen() again for another")
        joined = await self._join()
        self._hub = joined.hub
        position = joined.hub.position
        assert position is not None  # a hub that started stands somewhere  # noqa: S101
        after = self._after or position
        self._reader = Reader(joined.store, self._log, self._matcher, after)
        joined.hub.listeners.add(self)
        self._attached = after == position
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def position(self) -> Position | None:
        """The cursor to resume from: the last event that was handed out or filtered away. ``None`` before the first."""
        return self._queue[0].before if self._queue else self._seen

    @property
    def _seen(self) -> Position | None:
        """The last event that was looked at, by the reader or, while attached, by the hub for us."""
        cursor = self._reader.cursor if self._reader else None
        at = self._hub.position if self._hub and self._attached else None
        if at is None or cursor is None or (at.epoch == cursor.epoch and at.seq <= cursor.seq):
            return cursor
        return at

    @property
    def lag(self) -> int:
        """How many events of the log this listener is behind its hub; those that do not match it count as well."""
        hub, at = self._hub, self.position
        if hub is None or hub.position is None or at is None:
            return 0
        return max(0, hub.position.seq - at.seq)

    async def close(self) -> None:
        """Leave: what still waits is dropped. Safe twice; the iterator then ends."""
        if self._hub is None:
            return
        self._hub.listeners.discard(self)
        self.fall_behind()
        self.end()
        self._hub = None
        await self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._reader is None:
            raise BusClosed("enter the listener first: async with bus.listen(...) as listener")
        while not self._queue and not self._ended:
            if self._attached:
                self._arrived.clear()
                await self._arrived.wait()
            else:
                await self._catch_up(self._reader)
        if not self._queue or self._hub is None:
            raise StopAsyncIteration
        return self._queue.popleft().item

    async def _catch_up(self, reader: Reader) -> None:
        """Read one page; once at the hub's position, attach. There is no ``await`` between that look and attaching."""
        at = reader.cursor
        await asyncio.sleep(0)  # a page from memory takes no time to wait for, and others want their turn
        try:
            self._queue.extend(await reader.page())
        except BusUnavailable:
            await asyncio.sleep(0.1)  # the hub says so in its state and its log
            return
        hub, cursor = self._hub, reader.cursor
        if self._ended or hub is None or hub.position is None or cursor is None or not reader.caught_up:
            return
        # The log may be ahead of the hub, whose frames are still on their way: those up to our cursor are skipped.
        self._attached = hub.position.epoch == cursor.epoch and hub.position.seq <= cursor.seq
        if not self._attached and cursor == at:
            await asyncio.sleep(0.01)  # the hub stands in another life or branch of the log and is about to notice

    # -- what the hub calls --------------------------------------------------------------------------------------------

    def wants(self, topics: list[str]) -> bool:
        """See :class:`bus.hub.Tuned`; one that is behind wants nothing from the hub."""
        return self._attached and self._matcher.matches(topics)

    def hand(self, delivery: Delivery, before: Position) -> None:
        """See :class:`bus.hub.Tuned`; what does not fit into the queue is read from the log instead."""
        reader = self._reader
        if reader is None or reader.cursor is None:
            return
        if not delivery.ephemeral:
            if delivery.position.seq <= reader.cursor.seq and delivery.position.epoch == reader.cursor.epoch:
                if delivery.position.seq == reader.cursor.seq:
                    self.confirm(delivery.position)
                return  # read from the log already
            if len(self._queue) >= QUEUE:
                self.fall_behind()
                return
            reader.cursor = delivery.position
        elif len(self._queue) >= QUEUE:
            return  # ephemeral: live only
        self._queue.append(Found(before, delivery))
        self._arrived.set()

    def fall_behind(self) -> None:
        """Drop the queue and read on from the log, after the last item that was handed out or filtered away."""
        assert self._reader is not None  # noqa: S101 - only an entered listener is attached
        if self._attached:
            self._reader.cursor = self.position
            self._queue.clear()
            self._attached = False
            self._arrived.set()

    def confirm(self, top: Position) -> None:
        """See :class:`bus.hub.Tuned`. Reading on by itself finds the gap, or none if the log has just grown."""
        cursor = self._reader.cursor if self._reader else None
        if cursor is not None and cursor.epoch == top.epoch and cursor.seq >= top.seq and cursor != top:
            self.fall_behind()

    def end(self) -> None:
        """See :class:`bus.hub.Tuned`; what waits in the queue may still be read."""
        if self._reader is not None:
            self._reader.cursor = self._seen
        self._ended = True
        self._attached = False
        self._arrived.set()
