"""The watch on the event loop: who blocks it, and for how long.

One handler that computes, sleeps or waits for a socket without ``await`` holds up all the others. A thread asks the loop
for a sign of life some times a second while there is work; where none comes for too long, it looks which task is in the
way, and says so once, with the place, while it lasts, and how long it was, afterwards. It looks several times: a thousand
tasks that are resumed at once may keep the loop for as long, each of them but a moment, and then none of them is blamed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from workers.whereabouts import frame_of, place_of

__all__ = ["Watch"]

BLOCKED_S = 0.25
"""How long a handler may keep the loop, by default, before the log tells."""
CHECKS = 5
"""Signs of life asked for in that time."""
IDLE_S = 1.0
"""How often to ask where nothing runs."""

MOSTLY = 0.7
"""So much of the threshold one step has to last, as far as looks tell, to be the one that blocks."""

_OURS = str(Path(__file__).parent) + os.sep
_LOOPS = {asyncio.base_events.__file__, asyncio.events.__file__, f"{_OURS}thread.py"}
"""Where a step is called from: asyncio's loop, or the thread that uvloop's runs on."""

log = logging.getLogger("callboard.workers")


class _Seen(NamedTuple):
    """One step of the loop, as looks tell: it may have lasted longer by the time between two of them."""

    lasted_s: float
    who: str
    where: str


class Watch:
    """``start`` and ``stop`` bear being called twice."""

    def __init__(self, blocked_s: float = BLOCKED_S) -> None:
        self.blocked_s = blocked_s
        """The threshold, in seconds."""
        self.running: Callable[[], int] = lambda: 0
        """How many handlers run."""
        self._busy = False
        self._look = threading.Event()
        self._signed = threading.Event()
        self._signed.set()  # nothing is waited for
        self._asked_at = self._seen_at = time.monotonic()
        self._lag_s = 0.0
        self._thread: threading.Thread | None = None

    @property
    def lag_s(self) -> float:
        """How late the last sign of life came, or how late the next one is already."""
        return self._lag_s if self._signed.is_set() else max(self._lag_s, time.monotonic() - self._asked_at)

    def start(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread) -> None:
        """Watch a loop that runs on a thread."""
        if self._thread is None:
            self._lag_s = 0.0
            self._signed.set()
            self._thread = threading.Thread(
                target=self._keep, args=(loop, runs_on), name="callboard watch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._look.set()
            self._signed.set()
            thread.join(1)

    def work(self, *, begins: bool) -> None:
        """Handlers begin to run, or none does any more. Cheap; from any thread."""
        self._busy = begins
        if begins:
            self._look.set()

    def _keep(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread) -> None:
        while self._goes_on():
            self._signed.clear()
            self._asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(self._sign)
            except RuntimeError:
                return  # closed
            # It may have been blocked already when we asked, but not for longer than we rest while there is work.
            since = max(self._seen_at, self._asked_at - self.blocked_s / CHECKS)
            if not self._signed.wait(self.blocked_s / CHECKS):
                self._look_on(loop, runs_on, since)
            self._look.wait(self.blocked_s / CHECKS if self._busy else IDLE_S)
            self._look.clear()

    def _look_on(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread, since: float) -> None:
        """The sign is late. See who is in the way until it comes; say so once it is too late, and how long it was, afterwards."""
        running, told, longest = self.running(), False, _Seen(0.0, "", "")
        step, began_at = _step(loop, runs_on), since
        while self._goes_on() and not self._signed.wait(self.blocked_s / CHECKS):
            now, before, step = time.monotonic(), step, _step(loop, runs_on)
            if step is not before:
                began_at = now
            elif now - began_at > longest.lasted_s:
                # Between two tasks it is nobody's fault here: the process does not get the processor, or a thread keeps the GIL.
                who = step.get_name() if isinstance(step, asyncio.Task) else "something else than a handler"
                longest = _Seen(now - began_at, who, place_of(frame_of(runs_on)))
            if not told and now - since >= self.blocked_s and self._is_long(longest):
                told = True
                log.warning(
                    "%s blocks the event loop, for %.2f s now, at %s", longest.who, longest.lasted_s, longest.where
                )
        lasted_s = self._seen_at - since
        if self._goes_on() and (told or lasted_s >= self.blocked_s):
            self._tell(lasted_s, longest, running, told=told)

    def _tell(self, lasted_s: float, longest: _Seen, running: int, *, told: bool) -> None:
        """It is over."""
        if told:
            log.warning("the event loop goes on, after %.2f s (%s blocked it)", lasted_s, longest.who)
        elif self._is_long(longest):
            log.warning("%s blocked the event loop, for %.2f s, at %s", longest.who, lasted_s, longest.where)
        else:
            text = "the event loop was busy for %.2f s with many short steps (%d handlers were running): none of them blocked it"
            log.warning(text, lasted_s, running)

    def _is_long(self, seen: _Seen) -> bool:
        return seen.lasted_s >= self.blocked_s * MOSTLY

    def _goes_on(self) -> bool:
        """Whether the thread that asks is the one that watches still."""
        return self._thread is threading.current_thread()

    def _sign(self) -> None:
        """On the loop: it is alive."""
        self._seen_at = time.monotonic()
        self._lag_s = self._seen_at - self._asked_at
        self._signed.set()


def _step(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> object:
    """What the loop does right now: the same object for as long as it is in one step of a task, or in one callback.

    Callbacks of our own are a new one at each look: they begin and end the jobs of a crowd, which is nobody's fault.
    """
    task = asyncio.current_task(loop)
    if task is not None:
        return task
    frame = frame_of(thread)
    while frame is not None and frame.f_back is not None and frame.f_back.f_code.co_filename not in _LOOPS:
        frame = frame.f_back
    return object() if frame is None or frame.f_code.co_filename.startswith(_OURS) else frame
