"""The watch on the event loop: who blocks it, and for how long.

One handler that computes, sleeps or waits for a socket without ``await`` holds up all the others. A thread asks the loop
for a sign of life some times a second while there is work; where none comes for too long, it looks which task is in the
way, and says so once, with the place, while it lasts, and how long it was, afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time

__all__ = ["Watch"]

BLOCKED_S = 0.25
"""How long a handler may keep the loop, by default, before the log tells."""
CHECKS = 5
"""Signs of life asked for in that time."""
IDLE_S = 1.0
"""How often to ask where nothing runs."""

log = logging.getLogger("callboard.workers")


class Watch:
    """``start`` and ``stop`` bear being called twice. ``busy`` says whether handlers run; set it through :meth:`work`."""

    def __init__(self, blocked_s: float = BLOCKED_S) -> None:
        self.blocked_s = blocked_s
        """The threshold, in seconds; changes count from the next check on."""
        self._busy = False
        self._look = threading.Event()
        self._ending = False
        self._asked_at = 0.0  # when the sign that is waited for was asked for, 0 where none is
        self._lag_s = 0.0
        self._seen_at = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def lag_s(self) -> float:
        """How late the last sign of life came, or how late the next one is already."""
        asked_at = self._asked_at
        return max(self._lag_s, time.monotonic() - asked_at) if asked_at else self._lag_s

    def start(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread) -> None:
        """Watch a loop that runs on a thread."""
        if self._thread is None:
            self._ending = False
            self._asked_at, self._lag_s, self._seen_at = 0.0, 0.0, time.monotonic()
            self._thread = threading.Thread(
                target=self._keep, args=(loop, runs_on), name="callboard watch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending = True
            self._look.set()
            thread.join(1)

    def work(self, *, begins: bool) -> None:
        """Handlers begin to run, or none does any more. Cheap; from any thread."""
        self._busy = begins
        if begins:
            self._look.set()

    def _keep(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread) -> None:
        told_of: str | None = None
        while not self._ending:
            now = time.monotonic()
            silent_s = now - self._seen_at
            if not self._asked_at:
                if told_of is not None:
                    log.warning("%s blocked the event loop for %.2f s in all", told_of, self._lag_s)
                    told_of = None
                self._asked_at = now
                try:
                    loop.call_soon_threadsafe(self._sign)
                except RuntimeError:
                    return  # closed
            elif told_of is None and silent_s >= self.blocked_s:
                told_of = _in_the_way(loop)
                log.warning("%s blocks the event loop, for %.2f s now, at %s", told_of, silent_s, _where(runs_on))
            self._look.wait(self.blocked_s / CHECKS if self._busy or self._asked_at else IDLE_S)
            if self._look.is_set():
                self._look.clear()
                if not self._asked_at:
                    self._seen_at = time.monotonic()

    def _sign(self) -> None:
        """On the loop: it is alive."""
        now = time.monotonic()
        self._lag_s = now - self._asked_at
        self._seen_at = now
        self._asked_at = 0.0


def _in_the_way(loop: asyncio.AbstractEventLoop) -> str:
    """Which task the loop is at right now, by its name: a handler's is the handler's own."""
    task = asyncio.current_task(loop)
    return task.get_name() if task is not None else "a callback"


def _where(thread: threading.Thread) -> str:
    """The line that a thread is at, as far in as there is one: code, no values."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented for this use
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown place"
