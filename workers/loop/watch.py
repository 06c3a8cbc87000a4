"""The watch on the event loop: who blocks it, and for how long.

One handler that computes, sleeps or waits for a socket without ``await`` holds up all the others. A thread asks the loop
for a sign of life some times a second while there is work; where none comes for too long, it looks which task is in the
way, and says so once, with the place, while it lasts, and how long it was, afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from workers.whereabouts import frame_of, place_of

__all__ = ["Watch"]

BLOCKED_S = 0.25
"""How long a handler may keep the loop, by default, before the log tells."""
CHECKS = 5
"""Signs of life asked for in that time."""
IDLE_S = 1.0
"""How often to ask where nothing runs."""

log = logging.getLogger("callboard.workers")


class Watch:
    """``start`` and ``stop`` bear being called twice."""

    def __init__(self, blocked_s: float = BLOCKED_S) -> None:
        self.blocked_s = blocked_s
        """The threshold, in seconds."""
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
            if not self._signed.wait(max(0.0, since + self.blocked_s - time.monotonic())):
                self._tell(loop, runs_on, since)
            self._look.wait(self.blocked_s / CHECKS if self._busy else IDLE_S)
            self._look.clear()

    def _tell(self, loop: asyncio.AbstractEventLoop, runs_on: threading.Thread, since: float) -> None:
        """Say who blocks the loop; and for how long, once it is over."""
        task, where = asyncio.current_task(loop), place_of(frame_of(runs_on))
        # Between two tasks it is nobody's fault here: the process does not get the processor, or a thread keeps the GIL.
        who = task.get_name() if task is not None else "something else than a handler"
        log.warning("%s blocks the event loop, for %.2f s now, at %s", who, time.monotonic() - since, where)
        while self._goes_on() and not self._signed.wait(self.blocked_s):
            pass
        if self._goes_on():
            log.warning("the event loop goes on, after %.2f s (%s blocked it)", self._seen_at - since, who)

    def _goes_on(self) -> bool:
        """Whether the thread that asks is the one that watches still."""
        return self._thread is threading.current_thread()

    def _sign(self) -> None:
        """On the loop: it is alive."""
        self._seen_at = time.monotonic()
        self._lag_s = self._seen_at - self._asked_at
        self._signed.set()
