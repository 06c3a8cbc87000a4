"""A worker process's lease: its right to the jobs that it took.

The lease belongs to the process, not to a consumer (Dramatiq closes and reopens those). Two threads keep it:

* the *keeper* beats: it renews the lease, names the jobs still held, and moves due work on time. What the store has in
  our name but is not in our hands goes back at once: it was lost in a reply, or the thread that worked on it is gone;
* the *bell* rests on the store's wake-ups for the queues that have room, and brings what it found. Nobody polls.

::

    consumer threads ──take/settle──> store <──beat── keeper
           ^                                  ──wait, take──> bell ──┐
           └────────────────── jobs, rings ──────────────────────────┘

All three write into the same *books*.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from bus import BusError, ids
from bus.store.base import Exchange, Settlement, Store
from workers.broker.bell import Bell, Waiter
from workers.broker.books import Books, Doer
from workers.broker.keeper import Keeper
from workers.broker.room import Rooms, Wish
from workers.broker.staff import Staff

__all__ = ["Lease"]

END_S = 2.0

log = logging.getLogger("callboard.workers")


class Lease:
    """Make one for each process that works. ``start`` and ``close`` bear being called twice."""

    def __init__(self, store: Callable[[], Store], lease_ms: int, staff: Staff, concurrency: int) -> None:
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{ids.token()}"
        self.books = Books(store, self.worker, staff, concurrency)
        self.changed = self.books.changed
        self._due = threading.Event()
        self._ending = threading.Event()
        self._bell = Bell(self.books, staff, self._due, self._ending)
        self._keeper = Keeper(self.books, self._bell, lease_ms, self._due, self._ending)
        self._threads: tuple[threading.Thread, ...] = ()

    def __repr__(self) -> str:
        return f"<Lease {self.worker} holding {len(self.books)}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, when_forgotten: Callable[[], None] | None = None) -> None:
        """Start the keeper and the bell.

        ``when_forgotten`` is called on the keeper's thread when the store no longer knew this worker: it may have lost the
        bindings too.
        """
        if when_forgotten is not None:
            self._keeper.when_forgotten = when_forgotten
        if self._threads:
            return
        self._ending.clear()
        self.books.quiet = False
        self._threads = (
            threading.Thread(target=self._bell.listen, name="callboard bell", daemon=True),
            threading.Thread(target=self._keeper.keep, name="callboard keeper", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @property
    def kept(self) -> bool:
        """Whether its threads keep it: a worker is at work in this process."""
        return bool(self._threads)

    @property
    def quiet(self) -> bool:
        """Whether it has stopped taking."""
        return self.books.quiet

    def be_quiet(self) -> None:
        """Take no more; what was taken may still be settled. Safe twice."""
        with self.changed:
            was_quiet, self.books.quiet = self.quiet, True
            self.changed.notify_all()
        if not was_quiet:
            self.refresh()  # the bell must not swallow rings that are for others now

    def close(self) -> None:
        """Settle what is waiting, hand the rest back and end the threads, each within a deadline. Safe twice.

        A job whose handler still runs is not handed back, or two of its lane would run at once: its lease ends by itself.
        """
        threads = self._threads
        if not threads:
            return
        self.books.quiet = True
        self._ending.set()
        self._due.set()
        self.refresh()
        deadline = time.monotonic() + END_S  # one for both: a server that hangs holds them up alike
        for thread in threads:  # first: what they still take, or tell, is to be undone by what follows
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            self.exchange()
            if self._hand_back_all_but_running():
                self.books.store().leave(self.worker)
        except BusError as error:
            log.warning("the worker could not say goodbye; its jobs run again when its lease ends: %s", error)
        self._threads = ()
        with self.changed:  # only now: a last beat that named nothing as held would hand back what still runs
            self._bell.clear()
            self.books.clear()

    def _hand_back_all_but_running(self) -> bool:
        """Whether nothing runs any more, so that leaving hands everything back."""
        with self.changed:
            running = self.books.withdraw_the_rest()
        if running:
            log.warning("%d job(s) still run and are left behind; they run again when their lease ends", running)
            self.exchange()
        return not running

    # -- taking and settling -------------------------------------------------------------------------------------------

    @property
    def rooms(self) -> Rooms:
        """How much may be taken. Under ``changed``."""
        return self.books.rooms

    def begin(self, job: str, ticket: int, doer: Doer) -> bool:
        """As :meth:`Books.begin`."""
        return self.books.begin(job, ticket, doer)

    def running(self) -> int:
        """How many jobs have begun and are not settled."""
        return self.books.running()

    @property
    def unsettled(self) -> int:
        """How many settlements wait. Under ``changed``."""
        return self.books.unsettled

    def settle(self, queue: str, settlement: Settlement) -> None:
        """As :meth:`Books.settle`."""
        self.books.settle(queue, settlement)

    def exchange(self, wishes: Sequence[Wish] = ()) -> Exchange:
        """As :meth:`Books.exchange`."""
        return self.books.exchange(wishes)

    # -- wake-ups ------------------------------------------------------------------------------------------------------

    def serve(self, queue: str, waiter: Waiter) -> None:
        """Have the bell ring for a queue while its consumer waits for work. Safe twice: the last consumer counts."""
        with self.changed:
            self._bell.serve(queue, waiter)
        self._due.set()  # the store learns at once whom it serves
        self.refresh()

    def unserve(self, queue: str, waiter: Waiter) -> None:
        """Its consumer has ended. Safe twice, and after another one has come."""
        with self.changed:
            self._bell.unserve(queue, waiter)

    def has_rung(self, queue: str) -> bool:
        """Whether work has come to a queue since it was last asked. Under ``changed``."""
        return self._bell.has_rung(queue)

    def awaits(self, queue: str, handlers: Iterable[str]) -> bool:
        """Whether the bell rests on these handlers' work right now."""
        return self._bell.awaits(queue, handlers)

    def ring(self, queue: str) -> None:
        """There may be work for a queue."""
        self._bell.ring(queue)

    def refresh(self) -> None:
        """Have the bell look again at which queues it rings for. Nothing to do where no bell runs."""
        if not self._threads:
            return
        try:
            self.books.store().poke(f"@{self.worker}")
        except BusError:
            log.debug("the bell was not refreshed; it looks again by itself")
