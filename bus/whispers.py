"""Ephemeral events on their way out: what comes fast is gathered, and goes in one round trip for each window of 50 ms.

The first on a log goes at once. What follows within the window waits for its end, or until there is too much of it; then
the next window begins. So a single one is as quick as can be, a stream of tokens costs 20 round trips a second instead
of thousands, and nobody hears a token more than a window late.

::

    quiet ── first ──> sending ── told ──> window open ── another ──> gathering
      ^                   ^                     │                        │
      └───────────────────┼──── its end ────────┘                        │
                          └──── its end, too much, or a flush ───────────┘

Both doors keep the order of what comes through them, one batch of a log after the other, and hand out the log's last known
position for what they only gather. Live only: what cannot be told is lost. Whoever still waits is given the error; of
what was merely gathered it is logged, once, for the next one then goes at once again and its publisher is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bus import ids
from bus.errors import BusError, BusUnavailable, LogClosed
from bus.position import Position
from bus.store.base import Announced, Ended, Whisper

__all__ = ["LoopWhispers", "ThreadWhispers"]

WINDOW_S = 0.05
MOST = 500
"""Whispers in one script call, so that none holds the server up for long. A publisher that fills it waits for it."""
MOST_BYTES = 1 << 20
"""The same in bytes; one that is larger goes alone."""

log = logging.getLogger("callboard.bus")

Told = Position | BusError
"""What became of a batch."""


class _Burst:
    """What was said on one log, and how much of it is gone. Counts tell a publisher whether its own is."""

    __slots__ = ("_size", "_waiting", "gone", "position", "said")

    def __init__(self) -> None:
        self.said = 0
        self.gone = 0
        self.position: Position | None = None
        """The last known one; ``None`` where the next publisher has to wait for an answer."""
        self._waiting: list[Whisper] = []
        self._size = 0

    def add(self, whisper: Whisper) -> Position | None:
        """Gather it: its position, or ``None`` if its publisher has to wait until it is gone."""
        self._waiting.append(whisper)
        self._size += len(whisper.body)
        self.said += 1
        return None if len(self._waiting) >= MOST or self._size >= MOST_BYTES else self.position

    def take(self) -> list[Whisper]:
        """The next batch."""
        size = count = 0
        for whisper in self._waiting[:MOST]:
            size += len(whisper.body)
            if count and size > MOST_BYTES:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._size -= sum(len(whisper.body) for whisper in taken)
        return taken

    def end(self, name: str, batch: list[Whisper], answer: Announced | Ended | BusError) -> Told:
        """A batch is gone: keep what became of it, and log what nobody waits to hear."""
        told = LogClosed(name, answer.position) if isinstance(answer, Ended) else _told(answer)
        if isinstance(told, BusError) and self.position is not None:
            log.warning("%d ephemeral events on log %r were not told: %s", len(batch), name, told)
        self.position = None if isinstance(told, BusError) else told
        self.gone += len(batch)
        return told


def _told(answer: Announced | BusError) -> Told:
    return answer.position if isinstance(answer, Announced) else answer


def _for_its_publisher(known: Position | None, told: Told) -> Position:
    """What a publisher that waited is answered: an error only if it would not have been gathered either way."""
    if not isinstance(told, BusError):
        return told
    if known is None:
        raise told
    return known


class LoopAnnouncing(Protocol):
    """The store, as a loop's door sees it."""

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended: ...


class Announcing(Protocol):
    """The store, as the threads' door sees it."""

    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended: ...


# -- for a loop --------------------------------------------------------------------------------------------------------


class _LoopBurst(_Burst):
    __slots__ = ("sending", "timer")

    def __init__(self) -> None:
        super().__init__()
        self.sending: asyncio.Task[Told] | None = None
        self.timer: asyncio.TimerHandle | None = None


class LoopWhispers:
    """The door of one event loop; everything belongs to that loop. No timer and no task outlives :meth:`close`."""

    def __init__(self, store: LoopAnnouncing) -> None:
        self._store = store
        self._bursts: dict[str, _LoopBurst] = {}

    def __bool__(self) -> bool:
        """Whether anything was said of late."""
        return bool(self._bursts)

    async def say(self, name: str, whisper: Whisper) -> Position:
        """Tell it, or gather it and return at once.

        Raises :class:`~bus.errors.BusUnavailable` or :class:`~bus.errors.LogClosed`, if it was not merely gathered.
        """
        burst = self._bursts.get(name)
        if burst is None:
            burst = self._bursts[name] = _LoopBurst()
        known = burst.position
        position = burst.add(whisper)
        if position is not None:
            return position  # the window's end sends it
        return _for_its_publisher(known, await self._gone(name, burst))

    async def flush(self, name: str) -> None:
        """Return once all is gone that was said on a log until now. Raises nothing; bounded by the store's deadline."""
        burst = self._bursts.get(name)
        if burst is not None and burst.gone < burst.said:
            await self._gone(name, burst)

    async def close(self) -> None:
        """Flush all, and leave no timer and no task behind. Safe twice; usable afterwards."""
        for name, burst in tuple(self._bursts.items()):
            if burst.gone < burst.said:
                await self._gone(name, burst)
            if burst.timer is not None:
                burst.timer.cancel()
            if self._bursts.get(name) is burst:
                del self._bursts[name]

    async def _gone(self, name: str, burst: _LoopBurst) -> Told:
        """Wait until all is gone that was said until now (something was): what became of the last batch of it.

        Each batch has a task of its own: whoever is cancelled loses nobody else's words.
        """
        number = burst.said
        while True:
            if burst.sending is None:
                self._send(name, burst)
            sending = burst.sending
            assert sending is not None  # noqa: S101
            await asyncio.wait([sending])
            if burst.gone >= number:
                return sending.result()

    def _send(self, name: str, burst: _LoopBurst) -> None:
        burst.sending = asyncio.create_task(self._tell(name, burst), name=f"callboard whispers {name}")

    async def _tell(self, name: str, burst: _LoopBurst) -> Told:
        batch = burst.take()
        answer: Announced | Ended | BusError = BusUnavailable("the loop ended first")
        try:
            answer = await self._store.announce(name, ids.epoch(), batch)
        except BusError as error:
            answer = error
        finally:
            told = burst.end(name, batch, answer)
            burst.sending = None
            self._begin_window(name, burst)
        return told

    def _begin_window(self, name: str, burst: _LoopBurst) -> None:
        if burst.timer is not None:
            burst.timer.cancel()
        burst.timer = asyncio.get_running_loop().call_later(WINDOW_S, self._end_window, name, burst)

    def _end_window(self, name: str, burst: _LoopBurst) -> None:
        burst.timer = None
        if burst.sending is not None:
            return  # when it has been told the next window begins
        if burst.gone < burst.said:
            self._send(name, burst)
        elif self._bursts.get(name) is burst:
            del self._bursts[name]


# -- for threads -------------------------------------------------------------------------------------------------------


class _ThreadBurst(_Burst):
    __slots__ = ("sending", "timer", "told", "until")

    def __init__(self) -> None:
        super().__init__()
        self.sending = threading.Lock()
        self.timer: threading.Timer | None = None
        self.told: Told | None = None
        self.until = 0.0

    def is_quiet(self, now: float) -> bool:
        return self.gone == self.said and now >= self.until


class ThreadWhispers:
    """The door of all threads. What is gathered is sent by a timer's thread; none outlives :meth:`close`. Bears a fork."""

    def __init__(self, store: Callable[[], Announcing]) -> None:
        self._store = store
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._bursts: dict[str, _ThreadBurst] = {}
        self._pid = os.getpid()  # the last one: other threads look at it first

    def __bool__(self) -> bool:
        """Whether anything was said of late."""
        return bool(self._bursts)

    def say(self, name: str, whisper: Whisper) -> Position:
        """As :meth:`LoopWhispers.say`; blocks where it has to wait."""
        if self._pid != os.getpid():
            self._start()  # what the parent gathered the parent sends
        now = time.monotonic()
        with self._lock:
            burst = self._burst(name, now)
            known = burst.position
            position = burst.add(whisper)
            number = burst.said
            if position is not None:
                if burst.timer is None:
                    burst.timer = threading.Timer(max(0.0, burst.until - now), self._end_window, (name, burst))
                    burst.timer.name = f"callboard whispers {name}"
                    burst.timer.start()
                return position
        return _for_its_publisher(known, self._gone(name, burst, number))

    def _burst(self, name: str, now: float) -> _ThreadBurst:
        burst = self._bursts.get(name)
        if burst is None or burst.is_quiet(now):
            self._bursts = {each: its for each, its in self._bursts.items() if not its.is_quiet(now)}
            burst = self._bursts[name] = _ThreadBurst()
        return burst

    def flush(self, name: str) -> None:
        """As :meth:`LoopWhispers.flush`; blocks for a round trip where there is something to send."""
        burst = self._bursts.get(name)
        if burst is not None and self._pid == os.getpid() and burst.gone < burst.said:
            self._gone(name, burst, burst.said)

    def close(self) -> None:
        """Flush all, and leave no timer behind. Safe twice; usable afterwards. Blocks as :meth:`flush` does."""
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            bursts, self._bursts = self._bursts, {}
        for name, burst in bursts.items():
            with self._lock:
                timer, burst.timer = burst.timer, None
            if timer is not None:
                timer.cancel()
            if burst.gone < burst.said:
                self._gone(name, burst, burst.said)
            if timer is not None and timer is not threading.current_thread():
                timer.join()

    def _gone(self, name: str, burst: _ThreadBurst, number: int) -> Told:
        """Return once as many are gone: what became of the last batch. One batch at a time, in order."""
        with burst.sending:
            while burst.gone < number:
                self._tell(name, burst)
            assert burst.told is not None  # noqa: S101
            return burst.told

    def _tell(self, name: str, burst: _ThreadBurst) -> None:
        with self._lock:
            batch = burst.take()
        answer: Announced | Ended | BusError = BusUnavailable("the thread was interrupted")
        try:
            answer = self._store().announce(name, ids.epoch(), batch)
        except BusError as error:
            answer = error
        finally:
            with self._lock:
                burst.told = burst.end(name, batch, answer)
                burst.until = time.monotonic() + WINDOW_S

    def _end_window(self, name: str, burst: _ThreadBurst) -> None:
        with self._lock:
            burst.timer, number = None, burst.said
        self._gone(name, burst, number)
