"""Time limits of coroutines: one timer for all those that have the same limit.

Nearly all have the same one (Dramatiq's ten minutes) and nearly none reaches it. A timer for each would be a seventh of
what a waiting job holds, and the loop would set it and take it back for every job that is done in a blink.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

__all__ = ["NO_LIMIT", "Limits"]

NO_LIMIT = float("inf")
EXACT_S = 0.0005
FEW = 16
"""Timers that may stand though nobody needs them just now: nearly always there is one, and somebody soon does."""


class Limited(Protocol):
    """What may not run for longer than its limit."""

    limit_s: float
    """So many seconds."""

    def time_over(self) -> None:
        """It has run for so long."""


class Limits:
    """Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # not the loop's: uvloop's time stands still within a turn, however long that is
        self._running: dict[float, dict[Limited, float]] = {}  # by limit, with when they began, first ones first
        self._timers: dict[float, asyncio.TimerHandle] = {}

    @property
    def timers(self) -> int:
        """How many are set: one for each limit that somebody had lately."""
        return len(self._timers)

    def begin(self, one: Limited, loop: asyncio.AbstractEventLoop) -> None:
        """Tell it when its time is over, unless it has ended by then."""
        if not one.limit_s < NO_LIMIT:  # nor is what is no number a limit
            return
        self._running.setdefault(one.limit_s, {})[one] = self._clock()
        if one.limit_s not in self._timers:
            self._look_later(one.limit_s, loop, one.limit_s)

    def end(self, one: Limited) -> None:
        """It has ended. Safe twice, and without a beginning."""
        running = self._running.get(one.limit_s)
        if running is not None:
            running.pop(one, None)
            if not running and len(self._timers) > FEW:
                self._timers.pop(one.limit_s).cancel()
                del self._running[one.limit_s]

    def close(self) -> None:
        """Tell nobody any more. Safe twice."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._running.clear()

    def _look_later(self, in_s: float, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        # In a context of its own: the caller's holds its job, and the timer would hold that for as long as it stands.
        self._timers[limit_s] = loop.call_later(in_s, self._look, loop, limit_s, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        running, latest = self._running[limit_s], self._clock() - limit_s
        while running:
            first, began_at = next(iter(running.items()))
            if began_at - latest > EXACT_S:
                self._look_later(began_at - latest, loop, limit_s)
                return
            del running[first]
            first.time_over()
        del self._running[limit_s], self._timers[limit_s]
