"""A worker process's lease: its right to the jobs that it took.

The lease belongs to the process, not to a consumer (Dramatiq closes and reopens those). Two threads keep it:

* the *keeper* beats: it renews the lease, names the jobs still held, and moves due work on time. What the store has in
  our name but is not in our hands goes back at once: it was lost in a reply, or the thread that worked on it is gone;
* the *bell* rests on the store's wake-ups for the queues that have room, and brings what it found. Nobody polls.

While the process holds nothing, a worker thread waits in the *wings* for a job that the store hands it.

::

    consumer threads ──take/settle──> store <──beat── keeper
           ^                                  ──wait, take──> bell ──┐
           └────────────────── jobs, rings ──────────────────────────┘

All three write into the same *books*. The keeper also says goodbye at the end: settles, hands the rest back, leaves. It has
one deadline for all of that, so a server that hangs holds a stop up once; then the lease is left to run out.
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
from workers.broker.books import Books
from workers.broker.keeper import Keeper
from workers.broker.room import Rooms, Wish
from workers.broker.staff import Staff
from workers.broker.wings import Wings

__all__ = ["Lease"]

GOODBYE_S = 2.0
"""How long the end waits for the server, all in all,"""
HASTY_S = 0.5
"""and where it did not answer the last beat."""

log = logging.getLogger("callboard.workers")


def _new_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{ids.token()}"


class Lease:
    """Make one for each process that works. ``start`` and ``close`` bear being called twice."""

    def __init__(self, store: Callable[[], Store], lease_ms: int, staff: Staff, concurrency: int) -> None:
        self.books = Books(store, _new_name(), staff, concurrency)
        self.changed = self.books.changed
        self.begin = self.books.begin
        self._due = threading.Event()
        self._ending = threading.Event()
        self._over_at = 0.0
        self._over = False
        self._bell = Bell(self.books, staff, self._due)
        self.wings = Wings(self.books, self._bell, lease_ms)
        self._bell.when_resting = self.wings.open
        self._keeper = Keeper(self.books, self._bell, self.wings, lease_ms, self._due)
        self._threads: tuple[threading.Thread, ...] = ()

    def __repr__(self) -> str:
        return f"<Lease {self.worker} holding {len(self.books)}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(
        self,
        when_forgotten: Callable[[], None] | None = None,
        when_buried: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """Start the keeper and the bell.

        Both are called on the keeper's thread: ``when_forgotten`` when the store no longer knew this worker (it may have
        lost the bindings too), ``when_buried`` with the jobs that a sweep of this process has found to be poison.
        """
        self._keeper.when_forgotten = when_forgotten or self._keeper.when_forgotten
        self._keeper.when_buried = when_buried or self._keeper.when_buried
        if self._threads:
            return
        self.renew()
        self.books.quiet = False
        ending = self._ending = threading.Event()  # of its own: its threads may hang there as well
        bell = threading.Thread(target=self._bell.listen, args=(ending,), name="callboard bell", daemon=True)
        keeper = threading.Thread(target=self._keep, args=(ending, bell), name="callboard keeper", daemon=True)
        self._threads = (bell, keeper)
        for thread in self._threads:
            thread.start()

    @property
    def worker(self) -> str:
        """What the store calls this process."""
        return self.books.worker

    def renew(self) -> str:
        """The name of the worker that starts next. Safe twice.

        After another one it is a new name: what the other left behind must not be handed back before its lease ends.
        """
        if self._over:
            self.books.worker, self._over = _new_name(), False
        return self.worker

    @property
    def kept(self) -> bool:
        """Whether its threads keep it: a worker is at work in this process."""
        return bool(self._threads)

    @property
    def quiet(self) -> bool:
        """Whether it has stopped taking."""
        return self.books.quiet

    def be_quiet(self) -> None:
        """Take no more; what was taken may still be settled. Never blocks; safe twice."""
        with self.changed:
            self.books.quiet = True
            self.changed.notify_all()
        self._due.set()  # the keeper sees to it that the bell swallows no rings that are for others now

    def end(self) -> None:
        """Begin to say goodbye: settle what is waiting, and hand the rest back. Never blocks; safe twice.

        A job whose handler still runs is not handed back, or two of its lane would run at once: its lease ends by itself.
        """
        if self._threads and not self._ending.is_set():
            self._over_at = time.monotonic() + (HASTY_S if self._keeper.away else GOODBYE_S)
            self.books.quiet = True
            self._ending.set()
            self._due.set()

    def close(self) -> None:
        """Wait until goodbye is said, but no longer than is allowed since :meth:`end`. Safe twice."""
        if not self._threads:
            return
        self.end()
        keeper = self._threads[-1]
        if keeper.is_alive():  # a signal may have ended the boot before it was started
            keeper.join(max(0.0, self._over_at - time.monotonic()))
        with self.changed:
            if keeper.is_alive():
                log.warning("the worker could not say goodbye in time; its jobs run again when its lease ends")
            self._threads = ()
            self.wings.close()
            # Only now: a last beat that named nothing as held would hand back what still runs.
            self._bell.clear()
            self.books.clear()
            self._over = True

    def _keep(self, ending: threading.Event, bell: threading.Thread) -> None:
        """The keeper's thread."""
        self._keeper.keep(ending)
        try:
            self._say_goodbye(bell)
        except BusError as error:
            if self._lives():
                log.warning("the worker could not say goodbye; its jobs run again when its lease ends: %s", error)

    def _say_goodbye(self, bell: threading.Thread) -> None:
        if not self._lives():
            return
        self.books.store().poke(f"@{self.worker}")
        bell.join(GOODBYE_S)  # first: what it still takes is to be undone by what follows
        self.wings.close()
        self.exchange()
        with self.changed:
            if not self._lives():
                return
            running = self.books.withdraw_the_rest()
        if running:
            log.warning("%d job(s) still run and are left behind; they run again when their lease ends", running)
            self.exchange()
        else:
            self.books.store().leave(self.worker)

    def _lives(self) -> bool:
        """Whether this thread is the keeper's still: nobody has lost patience with it."""
        return threading.current_thread() in self._threads

    # -- taking and settling -------------------------------------------------------------------------------------------

    @property
    def rooms(self) -> Rooms:
        """How much may be taken. Under ``changed``."""
        return self.books.rooms

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
        if not self._bell.serves_anybody:  # no consumer is left that would take it along
            self._due.set()

    def flush(self) -> None:
        """Have what waits settled soon, though no consumer takes it along. Where nobody keeps the lease, this blocks for it.

        Raises :class:`~bus.errors.BusUnavailable` then.
        """
        if self._threads:
            self._due.set()
        else:
            self.exchange()

    def exchange(self, wishes: Sequence[Wish] = ()) -> Exchange:
        """As :meth:`Books.exchange`."""
        answer = self.books.exchange(wishes)
        if not len(self.books):
            self.wings.fill()
        return answer

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
