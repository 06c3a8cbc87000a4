"""The queue between a worker's consumers and its threads, in place of Dramatiq's."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, PriorityQueue
from typing import Any, Final, Protocol

__all__ = ["Elsewhere", "Standby", "WorkQueue"]

_NOTHING: Final = object()


class Elsewhere(Protocol):
    """Where some messages run that need no thread."""

    def is_for(self, message: Any) -> bool:
        """Whether it runs there."""

    def begin(self, message: Any) -> None:
        """Run it, and count it as done in the queue. Never blocks."""


class Standby(Protocol):
    """Where one idle thread waits, and puts what it hears of into the queue: it is its own then (see ``broker/wings.py``)."""

    @property
    def open_to(self) -> bool:
        """Whether one should wait there now."""

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for so long, until something was put into the queue, or until called; ``False`` where nobody can."""

    def call(self) -> None:
        """End the wait. Never blocks."""


class WorkQueue(PriorityQueue[Any]):
    """A worker's queue that keeps the async jobs from its threads, and counts them as any others: ``join`` waits for them.

    It never fills up. Of each priority the first to come is the first to be served. A thread that waits is handed its item: a
    condition would wake it to look for one, a dozen steps further on. The last who began to wait is the first to be served, for
    what it needs may be in a cache still; but the one that stands by is left there as long as another one waits.
    """

    def __init__(self, elsewhere: Elsewhere, standby: Standby) -> None:
        super().__init__()
        self._elsewhere = elsewhere
        self._standby = standby
        self._waiting: list[_Waiting] = []
        self._standing: _Standing | None = None

    def _init(self, maxsize: int) -> None:  # noqa: ARG002 - as its base's
        self._lines: dict[int, deque[Any]] = {}
        """What waits, by its priority, the most urgent first."""

    def _qsize(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        """As its base's; never blocks, for there is always room."""
        goes_elsewhere = self._elsewhere.is_for(item.message)
        with self.mutex:
            self.unfinished_tasks += 1
            if not goes_elsewhere:
                self._serve(item)
        if goes_elsewhere:
            self._elsewhere.begin(item.message)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        """As its base's."""
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        me: _Waiting | None = None
        line: deque[Any] | None = None
        first: Any = _NOTHING
        try:
            with self.mutex:
                line = next(filter(None, self._lines.values()), None)
                if line is not None:
                    first = line[0]  # known before it is taken, or who is struck between the two would take it along
                    line.popleft()
                    return first
                if not block:
                    raise Empty  # noqa: TRY301 - nothing was begun yet
                me = self._comer()
                self._join(me)
            if not me.wait(timeout) or me is self._standing:
                with self.mutex:
                    self._leave(me)
        except BaseException:  # a time limit that strikes late ends the thread, and must not take an item along
            with self.mutex:
                if me is not None:
                    self._leave(me)
                    first = me.item
                elif line and line[0] is first:
                    first = _NOTHING  # it was not taken yet
                if first is not _NOTHING:
                    self._serve(first, again=True)
            raise
        if me.item is _NOTHING:
            raise Empty
        return me.item

    def task_done(self) -> None:
        """As its base's, without a condition's detour for all but the last."""
        with self.mutex:
            if self.unfinished_tasks > 1:
                self.unfinished_tasks -= 1
                return
        super().task_done()

    def muster(self) -> None:
        """Somebody should stand by: whoever waits elsewhere comes back empty-handed, and finds that place when it asks again."""
        with self.mutex:
            if self._standing is None and self._waiting:
                self._waiting.pop().serve(_NOTHING)

    def _comer(self) -> _Waiting:
        """Who is to wait, and where. Under ``mutex``."""
        return _Standing(self._standby) if self._standing is None and self._standby.open_to else _Waiting()

    def _join(self, one: _Waiting) -> None:
        """Let it wait. Under ``mutex``."""
        if isinstance(one, _Standing):
            self._standing = one
        else:
            self._waiting.append(one)

    def _leave(self, one: _Waiting) -> None:
        """Let it wait no more. Safe where it was served already. Under ``mutex``."""
        if one is self._standing:
            self._standing = None
        elif one in self._waiting:
            self._waiting.remove(one)

    def _serve(self, item: Any, *, again: bool = False) -> None:
        """Hand it to whoever waits, or keep it; ``again``: it stood before the others. Under ``mutex``."""
        standing = self._standing
        if standing is not None and standing.item is _NOTHING and (standing.puts or not self._waiting):
            standing.serve(item)  # and nobody takes its place before it has left it, or the call would be for that one
        elif self._waiting:
            self._waiting.pop().serve(item)
        else:
            line = self._lines.get(item.priority)
            if line is None:
                line = self._new_line(item.priority)
            (line.appendleft if again else line.append)(item)

    def _new_line(self, priority: int) -> deque[Any]:
        """Where what has this priority waits. A heap would compare it with half a dozen others on its way in and out."""
        self._lines = dict(sorted({**self._lines, priority: deque()}.items()))
        return self._lines[priority]


class _Waiting:
    """A thread that waits for an item."""

    __slots__ = ("item", "served")

    def __init__(self) -> None:
        self.item: Any = _NOTHING
        self.served = threading.Lock()
        self.served.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Wait to be served, for so long. Returns whether it was."""
        return self.served.acquire(timeout=-1 if timeout is None else timeout)

    def serve(self, item: Any) -> None:
        self.item = item
        self.served.release()


class _Standing(_Waiting):
    """One that stands by."""

    __slots__ = ("_standby", "_thread")

    def __init__(self, standby: Standby) -> None:
        super().__init__()
        self._standby = standby
        self._thread = threading.get_ident()

    @property
    def puts(self) -> bool:
        """Whether it is the one that asks."""
        return threading.get_ident() == self._thread

    def wait(self, timeout: float | None) -> bool:
        # One wait, however long it was: whoever asks comes again, and a test's clock may stand still.
        return self.item is not _NOTHING if self._standby.wait(timeout) else super().wait(timeout)

    def serve(self, item: Any) -> None:
        super().serve(item)
        if not self.puts:
            self._standby.call()
