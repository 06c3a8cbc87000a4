"""Logs in memory. Callers hold the store's lock around every method."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import dropwhile, islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from bus.position import ROOT_TOKEN, Position
from bus.store.base import Entry, Frame, Limits, Page, Post

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

    __slots__ = ("_kept", "epoch", "listeners", "top", "top_token", "ttl_ms", "written")

    def __init__(self) -> None:
        self.epoch = ""
        self.top = 0
        self.top_token = ROOT_TOKEN
        self.ttl_ms = 0
        self.written = False
        self.listeners: set[Listener] = set()
        self._kept: deque[_Kept] = deque()

    def append(self, post: Post, limits: Limits, now_ms: int) -> Entry:
        """Number and keep one event, within the cap and the age."""
        self.written = True
        self.ttl_ms = limits.ttl_ms
        entry = Entry(self.top + 1, post.token, self.top_token, post.topics, post.body)
        self.top, self.top_token = entry.seq, entry.token
        self._kept.append(_Kept(now_ms, entry))
        while len(self._kept) > limits.cap or now_ms - self._kept[0].at_ms > limits.ttl_ms:
            self._kept.popleft()
        return entry

    def announce(self, entry: Entry, *, ephemeral: bool = False) -> None:
        """Tell the live listeners, in order."""
        frame = Frame(self.epoch, entry, ephemeral)
        for listener in tuple(self.listeners):
            listener.put(frame)

    def whisper(self, topics: str, body: bytes) -> Position:
        """Announce something that has no number."""
        self.announce(Entry(self.top, self.top_token, ROOT_TOKEN, topics, body), ephemeral=True)
        return Position(self.epoch, self.top, self.top_token)

    def read(self, after: int, limit: int, now_ms: int) -> Page:
        """Entries after ``after``, from the first that is not past its age."""
        first_kept = self._kept[0].entry.seq if self._kept else self.top + 1
        start = max(0, after + 1 - first_kept)
        # After the first that counts nothing is left out, whatever the clock did meanwhile: a page has no hole.
        fresh = dropwhile(lambda kept: now_ms - kept.at_ms > self.ttl_ms, islice(self._kept, start, None))
        return Page(self.epoch, self.top, self.top_token, [kept.entry for kept in islice(fresh, limit)])


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
