"""The bell: one thread that rests on the store's wake-ups for the queues that have room, and brings what it found.

A ring is for one waiter, so it is passed on where nobody here has use for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from bus import BusError
from bus.store.base import Take, Taken, Woken
from workers.broker.books import Books
from workers.broker.room import Wish
from workers.broker.staff import Staff

__all__ = ["Bell", "Waiter"]

REST_S = 5.0
"""How long the bell rests on the server at a time."""
RETRY_S = 0.5
YIELD_S = 0.0001
"""How long the bell leaves the interpreter to the threads that it has just woken: they are awake after half of that, and
would have to wait until it has nothing more to do."""
MOST_TAKES = 8
"""With more takes than these the bell only rings, for each is tried at each ring."""

log = logging.getLogger("callboard.workers")


class Waiter(Protocol):
    """A consumer, as the bell knows it."""

    def waits(self) -> list[Wish]:
        """What it would be glad of, of the handlers for which it found nothing. Under ``changed``."""

    def bring(self, taken: Sequence[Taken]) -> None:
        """Jobs that the bell took for it. On the bell's thread, not under ``changed``."""


class Bell:
    """``rest`` is its thread's work. ``due`` is set when delayed work was added somewhere."""

    def __init__(
        self,
        books: Books,
        staff: Staff,
        due: threading.Event,
    ) -> None:
        self._books = books
        self._staff = staff
        self._due = due
        self._waiters: dict[str, Waiter] = {}
        self._rung: set[str] = set()
        self._awake_for: frozenset[str] = frozenset()
        self.when_resting: Callable[[], None] = lambda: None
        """Called on its thread each time before it rests."""

    def serve(self, queue: str, waiter: Waiter) -> None:
        """Ring for a queue while its consumer waits for work. Safe twice: the last consumer counts. Under ``changed``."""
        self._waiters[queue] = waiter

    def unserve(self, queue: str, waiter: Waiter) -> None:
        """Its consumer has ended. Safe twice, and after another one has come. Under ``changed``."""
        if self._waiters.get(queue) is waiter:
            del self._waiters[queue]

    def serves(self) -> list[str]:
        """What this process takes work for: ``queue|handler``. Under ``changed``."""
        return [f"{queue}|{handler}" for queue in self._waiters for handler in self._staff.handlers_of(queue)]

    @property
    def serves_anybody(self) -> bool:
        """Whether there is a consumer, which takes settlements along."""
        return bool(self._waiters)

    def clear(self) -> None:
        """No consumer is left. Under ``changed``."""
        self._waiters.clear()

    def has_rung(self, queue: str) -> bool:
        """Whether work has come to a queue since it was last asked. Under ``changed``."""
        if queue in self._rung:
            self._rung.discard(queue)
            return True
        return False

    def awaits(self, queue: str, handlers: Iterable[str]) -> bool:
        """Whether the bell rests on these handlers' work right now."""
        return all(f"{queue}|{handler}" in self._awake_for for handler in handlers)

    def ring(self, *queues: str) -> None:
        """There may be work for these queues."""
        with self._books.changed:
            self._rung.update(queues)
            self._books.changed.notify_all()

    def listen(self, ending: threading.Event) -> None:
        """Rest and ring, until the end."""
        while not ending.is_set():
            try:
                self._rest(ending)
            except Exception:
                log.exception("the bell stumbled, and goes on")
                ending.wait(RETRY_S)
                self._ring_all()

    def _rest(self, ending: threading.Event) -> None:
        """Rest on the wake-ups until one rings, and hand on what came of it."""
        books = self._books
        self.when_resting()
        takes = self._wishes()
        names = [f"{take.queue}|{handler}" for take in takes for handler in take.handlers]
        self._awake_for = frozenset(names)
        tried = takes if len(takes) <= MOST_TAKES else []
        try:
            woken = books.store().wait(["$due", f"@{books.worker}", *names], REST_S, books.worker, tried)
            if woken.rang == "$due":
                self._due.set()
            self._hand_on(woken, takes, tried)
        except BusError:
            books.end(takes)
            ending.wait(RETRY_S)
            self._ring_all()  # what was rung meanwhile rang for others, or for nobody
        finally:
            books.end(takes)  # however it ended: a ticket left open would keep what it took from going back

    def _wishes(self) -> list[Take]:
        """What to rest on, and to take there. A handler without room leaves its ring to another process."""
        with self._books.changed:
            waiters = [] if self._books.quiet else list(self._waiters.values())
            return [self._books.take(wish) for waiter in waiters for wish in waiter.waits()]

    def _hand_on(self, woken: Woken, takes: Sequence[Take], tried: Sequence[Take]) -> None:
        """Bring the consumers what was taken for them, and ring where there may be more."""
        books = self._books
        brought: dict[str, list[Taken]] = {}
        with books.lock:
            waiters = {} if books.quiet else self._waiters.copy()
            kept, refused = books.receive_unasked(woken, waiters) if tried else ([], [])
            for take in takes:
                jobs = [one for one in kept if one.ticket == take.ticket]
                brought.setdefault(take.queue, []).extend(jobs)
                if take.queue in waiters and len(jobs) == take.limit:
                    self.ring(take.queue)
            in_vain = not woken.taken and self._rang_in_vain(woken.rang, waiters)
            if refused:
                books.hand_back([(one.job, one.ticket) for one in refused])
        for queue, some in brought.items():
            if some:
                waiters[queue].bring(some)  # which never raises for what was taken
        if kept:
            time.sleep(YIELD_S)
        if refused or in_vain:
            self._pass_on(woken.rang if in_vain else None)

    def bring(self, one: Taken) -> None:
        """Bring its consumer a job that the store has handed over. On a worker thread, which may be struck on its way."""
        try:
            refused = self._bring(one)
        except BaseException:
            self._books.mend(one.job)
            raise
        if refused:
            self._pass_on(None)

    def _bring(self, one: Taken) -> bool:
        books = self._books
        with books.lock:
            if not books.is_open(one.ticket):
                return False  # it goes back, or has gone already
            waiter = None if books.quiet else self._waiters.get(one.route.queue)
            stays = books.receive_one(one, wanted=waiter is not None)
            if not stays:
                books.hand_back([(one.job, one.ticket)])
        if stays and waiter is not None:
            waiter.bring([one])
        return not stays

    def _rang_in_vain(self, rang: str | None, waiters: Collection[str]) -> bool:
        """Ring, or say that nobody here has use for it. Under ``changed``."""
        queue, bar, handler = (rang or "").partition("|")
        if not bar:
            return False  # not for work
        if queue not in waiters or self._books.rooms.admit(handler) is None:
            return True
        self.ring(queue)
        return False

    def _ring_all(self) -> None:
        self.ring(*{name.partition("|")[0] for name in self._awake_for})

    def _pass_on(self, ring: str | None) -> None:
        """The room was taken, or the worker is to be quiet: what has come is for another process."""
        try:
            self._books.exchange()
            if ring is not None:
                self._books.store().poke(ring)
        except BusError:
            log.debug("a ring was lost; the next beat makes up for it")
