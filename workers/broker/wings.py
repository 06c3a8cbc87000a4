"""The wings: where one thread of an idle worker waits for its cue.

A job that finds its workers idle has a long way from the bell: a ring, a take, and another thread to wake. So while the process
holds nothing, one of its threads waits on the store itself (see :meth:`bus.store.base.Store.cues`), which hands it the next
job with the call that queues it. Whatever else comes takes the usual way; so does the job after that one, until the process
holds nothing again.

What is handed over comes under a *standing* ticket. It is another one at each beat, and open for two: what was lost on its way
is known to be lost then, and goes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bus import BusError
from bus.store.base import Cues
from workers.broker.bell import Bell
from workers.broker.books import Books

__all__ = ["Wings"]

RENEW_S = 0.9
"""How long a standing ticket is used at least: beats may follow each other closely."""
RETRY_S = 5.0
NEVER = float("-inf")

log = logging.getLogger("callboard.workers")


class Wings:
    """``open`` is for the bell's thread, ``wait`` for one worker thread at a time, the rest for any."""

    def __init__(self, books: Books, bell: Bell, lease_ms: int) -> None:
        self._books = books
        self._bell = bell
        self._lease_s = lease_ms / 1000
        self._cues: Cues | None = None
        self._changing = threading.Lock()
        self._closings = 0
        self._waits = False
        self.reserve: Callable[[], None] = lambda: None
        """Has a thread come that waits elsewhere."""
        self._standing: dict[int, float] = {}  # each ticket with the time from which it is used, oldest first
        self._open_again_at = NEVER

    def open(self) -> None:
        """Have the store know where we hear. Nothing to do where that is so, or was in vain not long ago. Blocks for a round trip."""
        now, closings = time.monotonic(), self._closings
        if self._cues is not None or now < self._open_again_at:
            return
        self._open_again_at = now + RETRY_S
        try:
            cues = self._books.store().cues(self._books.worker)
        except BusError as error:
            log.debug("no thread can stand by, so jobs take the way over the bell: %s", error)
            return
        if cues is None:
            self._open_again_at = -NEVER
            return
        with self._changing:
            late = closings != self._closings
            if not late:
                self._cues = cues
        if late:
            cues.close()  # it took so long that its worker has ended
        else:
            self.fill()

    def close(self) -> None:
        """Hang up, and call whoever waits. Safe twice; usable again."""
        with self._changing:
            cues, self._cues = self._cues, None
            self._closings += 1
            self._open_again_at = NEVER
        if cues is not None:
            cues.close()

    # -- the thread that waits -----------------------------------------------------------------------------------------

    @property
    def open_to(self) -> bool:
        """Whether a thread that has nothing to do should wait here: no other one is about to be woken for what was fetched.

        A look without a lock, for it is a matter of speed alone.
        """
        return self._cues is not None and self._books.rooms.threads.empty and not self._books.quiet

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for so long, or until called; pass on what was handed over. ``False`` where nobody can wait here (any more)."""
        cues = self._cues
        if cues is None:
            return False
        self._waits = True
        try:
            taken = cues.hear(timeout_s)
            if taken is not None and self._is_fresh(taken.ticket):
                self._bell.bring(taken)
        except BusError as error:
            log.debug("a thread stands by no longer: %s", error)
            if self._cues is cues:
                self.close()
            return False
        finally:
            self._waits = False
        return True

    def fill(self) -> None:
        """This process holds nothing (any more), so the store may hand it a job: if nobody waits here, have somebody come.

        Mostly the thread that worked last is back already; it may be busy still with what it does after a job.
        """
        if self._cues is not None and not self._waits:
            self.reserve()

    def call(self) -> None:
        """There is something else to do for the thread that waits. Never blocks."""
        cues = self._cues
        if cues is not None:
            cues.call()

    # -- the standing ticket -------------------------------------------------------------------------------------------

    def renew(self) -> int:
        """The ticket under which this process stands by from this beat on, or 0. Under ``changed``."""
        now, newest = time.monotonic(), next(reversed(self._standing), 0)
        if not self._waits or self._books.quiet:
            self._give_up(0)  # nobody would hear it
            return 0
        if not newest or now - self._standing[newest] >= RENEW_S:
            newest = self._books.open_ticket()
            self._standing[newest] = now
            self._give_up(2)
        return newest

    def _is_fresh(self, ticket: int) -> bool:
        """Whether what comes under it is ours. Otherwise we may have been frozen, and it is another worker's by now."""
        used_since = self._standing.get(ticket)
        return used_since is not None and time.monotonic() < used_since + self._lease_s

    def _give_up(self, all_but: int) -> None:
        """What still comes under an older ticket is not ours."""
        while len(self._standing) > all_but:
            oldest = next(iter(self._standing))
            del self._standing[oldest]
            self._books.close_ticket(oldest)
