"""The bell: one thread that rests on the store's wake-ups for the queues that have room, and brings what it found.

A ring is for one waiter, so it is passed on where nobody here has use for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from bus import BusError
from bus.store.base import Take, Taken, Woken
from workers.broker.books import Books, Wish

__all__ = ["Bell", "Waiter"]

REST_S = 5.0
"""How long the bell rests on the server at a time."""
RETRY_S = 0.5
MOST_TAKES = 4
"""Queues for which the bell takes as it is woken; with more of them it only rings, for each take is tried at each ring."""

log = logging.getLogger("callboard.workers")


class Waiter(Protocol):
    """A consumer, as the bell knows it."""

    def waits(self) -> int:
        """How many jobs it would be glad of, having found its queue empty; 0 where a ring would tell it nothing.

        Under ``changed``.
        """

    def bring(self, taken: Sequence[Taken]) -> None:
        """Jobs that the bell took for it. On the bell's thread, not under ``changed``."""


class Bell:
    """``rest`` is its thread's work. ``due`` is set when delayed work was added somewhere."""

    def __init__(
        self,
        books: Books,
        handlers_of: Callable[[str], Sequence[str]],
        due: threading.Event,
        ending: threading.Event,
    ) -> None:
        self._books = books
        self._handlers_of = handlers_of
        self._due = due
        self._ending = ending
        self._waiters: dict[str, Waiter] = {}
        self._rung: set[str] = set()
        self._awake_for: frozenset[str] = frozenset()

    def serve(self, queue: str, waiter: Waiter) -> None:
        """Ring for a queue while its consumer waits for work. Safe twice: the last consumer counts. Under ``changed``."""
        self._waiters[queue] = waiter

    def unserve(self, queue: str, waiter: Waiter) -> None:
        """Its consumer has ended. Safe twice, and after another one has come. Under ``changed``."""
        if self._waiters.get(queue) is waiter:
            del self._waiters[queue]

    def serves(self) -> list[str]:
        """What this process takes work for: ``queue|handler``. Under ``changed``."""
        return [f"{queue}|{handler}" for queue in self._waiters for handler in self._handlers_of(queue)]

    def clear(self) -> None:
        """No consumer is left. Under ``changed``."""
        self._waiters.clear()

    def has_rung(self, queue: str) -> bool:
        """Whether work has come to a queue since it was last asked. Under ``changed``."""
        if queue in self._rung:
            self._rung.discard(queue)
            return True
        return False

    def awaits(self, queue: str) -> bool:
        """Whether the bell rests on this queue right now."""
        return queue in self._awake_for

    def ring(self, *queues: str) -> None:
        """There may be work for these queues."""
        with self._books.changed:
            self._rung.update(queues)
            self._books.changed.notify_all()

    def listen(self) -> None:
        """Rest and ring, until the end."""
        while not self._ending.is_set():
            try:
                self._rest()
            except Exception:
                log.exception("the bell stumbled, and goes on")
                self._ending.wait(RETRY_S)
                self.ring(*self._awake_for)

    def _rest(self) -> None:
        """Rest on the wake-ups until one rings, and hand on what came of it."""
        books = self._books
        takes = self._wishes()
        self._awake_for = frozenset(take.queue for take in takes)
        names = [f"{take.queue}|{handler}" for take in takes for handler in take.handlers]
        tried = takes if len(takes) <= MOST_TAKES else []
        try:
            woken = books.store().wait(["$due", f"@{books.worker}", *names], REST_S, books.worker, tried)
            if woken.rang == "$due":
                self._due.set()
            self._hand_on(woken, takes, tried)
        except BusError:
            books.end(takes)
            self._ending.wait(RETRY_S)
            self.ring(*self._awake_for)  # what was rung meanwhile rang for others, or for nobody
        finally:
            books.end(takes)  # however it ended: a ticket left open would keep what it took from going back

    def _wishes(self) -> list[Take]:
        """What to rest on, and to take there. A queue without room leaves its ring to another process."""
        with self._books.changed:
            waiting = [] if self._books.quiet else [(queue, waiter.waits()) for queue, waiter in self._waiters.items()]
            return [
                self._books.take(Wish(queue, handlers, room))
                for queue, room in waiting
                if room and (handlers := tuple(self._handlers_of(queue)))
            ]

    def _hand_on(self, woken: Woken, takes: Sequence[Take], tried: Sequence[Take]) -> None:
        """Bring the consumers what was taken for them, and ring where there may be more."""
        brought: list[tuple[Waiter, list[Taken]]] = []
        returned: list[Taken] = []
        with self._books.changed:
            waiters = {take.queue: self._waiters.get(take.queue) for take in takes if not self._books.quiet}
            glad = {queue: waiter for queue, waiter in waiters.items() if waiter is not None and waiter.waits()}
            if tried:
                self._books.receive(woken)
            self._books.end(takes)
            for take in takes:
                taken = [one for one in woken.taken if one.route.queue == take.queue]
                rang = woken.rang is not None and woken.rang.partition("|")[0] == take.queue
                if take.queue not in glad:
                    returned += taken
                    continue
                brought.append((glad[take.queue], taken))
                if len(taken) == take.limit or (rang and not taken) or woken.apart == take.queue:
                    self.ring(take.queue)
            self._books.refuse(returned)
        for waiter, taken in brought:
            waiter.bring(taken)  # which never raises for what was taken
        rang_in_vain = (
            woken.rang is not None and woken.rang.partition("|")[0] in {take.queue for take in takes} - glad.keys()
        )
        if returned or rang_in_vain:
            self._pass_on(woken.rang if rang_in_vain else None)

    def _pass_on(self, ring: str | None) -> None:
        """The room was taken, or the worker is to be quiet: what has come is for another process."""
        try:
            self._books.exchange()
            if ring is not None:
                self._books.store().poke(ring)
        except BusError:
            log.debug("a ring was lost; the next beat makes up for it")
