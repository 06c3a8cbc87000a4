"""Reading a log page by page from a cursor, with the proof that nothing is missing, or a gap that says what is.

After a fork (the server went on from an older state of the log) the reader looks for the last event that both branches
share, as far back as its trail goes, and reads on from there; where that is unknown, from all that is kept.
"""

from __future__ import annotations

from typing import Literal

from bus import ids
from bus.decoding import Decoder
from bus.delivery import Gap, follow
from bus.mailbox import Found
from bus.position import Position
from bus.store.base import LoopStore, Page
from bus.topics import Matcher
from bus.trail import Trail

__all__ = ["PAGE", "Reader"]

PAGE = 256
"""Entries read from the log at once: the memory that catching up may take."""


class Reader:
    """Filters what it reads. ``cursor`` is the last event looked at, ``None`` before all that is kept."""

    def __init__(
        self, store: LoopStore, log: str, matcher: Matcher, after: Position | Literal["0"], decoder: Decoder
    ) -> None:
        self.cursor: Position | None = None if after == "0" else Position.parse(after)
        self.top: int | None = None
        self.closed = False
        """Whether the log has ended, as far as the last page knew."""
        self.trail = Trail()
        self._store = store
        self._log = log
        self._matcher = matcher
        self._decoder = decoder

    async def page(self) -> list[Found]:
        """The next items; an empty list may only mean that nothing in this page matched: see ``caught_up``."""
        at = self.cursor
        page, gap = await self._next(at)
        found = [Found(at, gap)] if at is not None and gap is not None else []
        for entry in page.entries:
            if self._matcher.matches(entry.topics.split(" ") if entry.topics else ()):
                delivery = self._decoder.deliver(Position(page.epoch, entry.seq, entry.token), entry)
                if delivery is not None:
                    before = Position(page.epoch, entry.seq - 1, entry.prev)
                    found.append(Found(before, delivery, len(entry.body)))
        self._move(page)
        return found

    async def _next(self, at: Position | None) -> tuple[Page, Gap | None]:
        while True:
            page = await self._read(at)
            gap = follow(at, page) if at is not None else None
            if at is None or gap is None or gap.reason == "trimmed":
                return page, gap
            anew = await (self._on_branch(at) if gap.reason == "fork" else self._in_life(at))
            if anew is not None:  # otherwise the log has changed once more between two looks at it
                return anew

    async def _in_life(self, at: Position) -> tuple[Page, Gap] | None:
        """In another life of the log what followed "our" number is unknown: begin at what is kept."""
        page = await self._read(None)
        gap = follow(at, page)
        if gap is None or gap.reason != "epoch":
            return None
        self.trail.forget()
        return page, gap

    async def _on_branch(self, at: Position) -> tuple[Page, Gap] | None:
        """On another branch begin after the last event that ours shares with it; where that is unknown, at what is kept."""
        common = await self._last_common(at)
        page = await self._read(common)
        missing = follow(common, page) if common is not None else None
        if page.epoch != at.epoch or (missing is not None and missing.reason != "trimmed"):
            return None
        self.trail.cut(common.seq if common else 0)  # only now: a read that fails is tried again, with all that we knew
        if common is not None:
            return page, Gap(common.seq + 1, max(at.seq, missing.last if missing else 0), "fork")
        return page, Gap(min(page.entries[0].seq if page.entries else page.top + 1, at.seq), at.seq, "fork")

    async def _read(self, at: Position | None) -> Page:
        # A new epoch is offered, never ours: a log that lost its data must not go on under the old name.
        return await self._store.read(self._log, ids.epoch(), at.seq if at else 0, PAGE)

    async def _last_common(self, at: Position) -> Position | None:
        """The last event that the log shares with the way we have come, by going back page by page."""
        first, end = self.trail.first, at.seq
        while first is not None and end >= first:
            start = max(0, end - PAGE, first - 1)
            page = await self._store.read(self._log, ids.epoch(), start, end - start)
            branch = [(entry.seq, entry.token) for entry in page.entries]
            branch += [(entry.seq - 1, entry.prev) for entry in page.entries[:1]]
            branch += [(page.top, page.top_token)]
            common = self.trail.last_in_common(page.epoch, branch) if page.epoch == at.epoch else None
            if common is not None or start == end:
                return common
            end = start
        return None

    def _move(self, page: Page) -> None:
        self.top, self.closed = page.top, page.closed
        for entry in page.entries:
            self.trail.note(entry.seq, entry.token)
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
