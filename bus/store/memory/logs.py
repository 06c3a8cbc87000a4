"""Logs in memory. Callers hold the store's lock around every method."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import dropwhile, islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from bus.position import ROOT_TOKEN, Position
from bus.store.base import NO_LIMITS, Announced, Entry, Frame, Limits, OwnLimits, Page, Post, Whisper

__all__ = ["Log", "Seen"]

T = TypeVar("T")


class Listener(Protocol):
    """Whoever wants to hear of announcements."""

    def put(self, frame: Frame) -> None:
        """Take one in; must not block."""


class _Kept(NamedTuple):
    at_ms: int
    entry: Entry


class Log:
    """One log. Its epoch is the first that was offered; entries never have a hole between the first kept and the top."""

    __slots__ = (
        "_kept",
        "closed",
        "epoch",
        "forgotten_ms",
        "listeners",
        "own",
        "top",
        "top_token",
        "ttl_ms",
        "written",
    )

    def __init__(self) -> None:
        self.listeners: set[Listener] = set()
        self.begin()

    def begin(self) -> None:
        """A life of its own, with nothing of the one before but those who listen."""
        self.epoch = ""
        self.top = 0
        self.top_token = ROOT_TOKEN
        self.ttl_ms = 0
        self.own = NO_LIMITS
        self.written = False
        self.closed = False
        self.forgotten_ms = 0
        """When the end of a closed one is forgotten."""
        self._kept: deque[_Kept] = deque()

    @property
    def position(self) -> Position:
        """Its top."""
        return Position(self.epoch, self.top, self.top_token)

    def append(self, post: Post, limits: Limits, own: OwnLimits, now_ms: int) -> Entry:
        """Number and keep one event, within the cap and the age."""
        self.written = True
        self._take_over(own)
        self.ttl_ms = limits.ttl_ms if self.own.ttl_ms is None else self.own.ttl_ms
        entry = Entry(self.top + 1, post.token, self.top_token, post.topics, post.body)
        self.top, self.top_token = entry.seq, entry.token
        self._kept.append(_Kept(now_ms, entry))
        self.trim(now_ms, limits.cap if self.own.cap is None else self.own.cap)
        return entry

    def _take_over(self, own: OwnLimits) -> None:
        if own != NO_LIMITS:
            kept = self.own
            self.own = OwnLimits(
                kept.cap if own.cap is None else own.cap, kept.ttl_ms if own.ttl_ms is None else own.ttl_ms
            )

    def trim(self, now_ms: int, cap: int | None = None) -> None:
        """Let go of what is too much or too old."""
        kept = self._kept
        while kept and ((cap is not None and len(kept) > cap) or now_ms - kept[0].at_ms > self.ttl_ms):
            kept.popleft()

    def close(self, own: OwnLimits, now_ms: int, remembered_ms: int) -> Position:
        """End it, and tell the live listeners."""
        self.written = self.closed = True
        self._take_over(own)
        if own.ttl_ms is not None:
            self.ttl_ms = own.ttl_ms
        self.trim(now_ms, own.cap)
        self.forgotten_ms = now_ms + max(remembered_ms, self.ttl_ms + 1000)
        self._tell(Frame(self.epoch, Entry(self.top, self.top_token, ROOT_TOKEN, "", b""), end=True))
        return self.position

    def announce(self, entry: Entry) -> None:
        """Tell the live listeners, in order."""
        self._tell(Frame(self.epoch, entry))

    def whisper(self, whispers: Iterable[Whisper]) -> Announced:
        """Announce what has no number."""
        for topics, body in whispers:
            self._tell(Frame(self.epoch, Entry(self.top, self.top_token, ROOT_TOKEN, topics, body), ephemeral=True))
        return Announced(self.position, len(self.listeners))

    def _tell(self, frame: Frame) -> None:
        for listener in tuple(self.listeners):
            listener.put(frame)

    def read(self, after: int, limit: int, now_ms: int) -> Page:
        """Entries after ``after``, from the first that is not past its age."""
        first_kept = self._kept[0].entry.seq if self._kept else self.top + 1
        start = max(0, after + 1 - first_kept)
        # After the first that counts nothing is left out, whatever the clock did meanwhile: a page has no hole.
        fresh = dropwhile(lambda kept: now_ms - kept.at_ms > self.ttl_ms, islice(self._kept, start, None))
        entries = [kept.entry for kept in islice(fresh, limit)]
        return Page(self.epoch, self.top, self.top_token, entries, self.closed)

    def seek(self, at_ms: int, now_ms: int) -> Position:
        """See :meth:`bus.store.base.Store.seek`. What is past its age is not kept, whether or not it is there still."""
        at = bisect_left(self._kept, max(at_ms, now_ms - self.ttl_ms), key=lambda kept: kept.at_ms)
        if at == len(self._kept):
            return self.position
        following = self._kept[at].entry
        return Position(self.epoch, following.seq - 1, following.prev)


class Seen(Generic[T]):
    """Ids that were used, with what became of them, each for a window of time."""

    __slots__ = ("_by_id", "_ends")

    def __init__(self) -> None:
        self._by_id: dict[str, T] = {}
        self._ends: list[tuple[int, str]] = []

    def get(self, id: str, now_ms: int) -> T | None:
        """What the id became, if it was within the window."""
        while self._ends and self._ends[0][0] <= now_ms:
            self._by_id.pop(heapq.heappop(self._ends)[1], None)
        return self._by_id.get(id)

    def add(self, id: str, became: T, ends_ms: int) -> None:
        """Remember an id that :meth:`get` does not know."""
        self._by_id[id] = became
        heapq.heappush(self._ends, (ends_ms, id))
