"""The keeper: one thread that beats. It renews the lease, names the jobs still held, and moves due work on time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from bus import BusError
from bus.store.base import Beat
from workers.broker.bell import Bell
from workers.broker.books import Books
from workers.broker.wings import Wings

__all__ = ["Keeper"]

BEAT_S = 1.0
"""The longest time between two beats; a lease outlives several."""
RETRY_S = 0.5
MAX_LOST = 5
"""Leases that may run out under a job before it counts as poison."""

log = logging.getLogger("callboard.workers")


class Keeper:
    """``keep`` is its thread's work."""

    def __init__(self, books: Books, bell: Bell, wings: Wings, lease_ms: int, due: threading.Event) -> None:
        self.when_forgotten: Callable[[], None] | None = None
        self.when_buried: Callable[[Sequence[str]], None] | None = None
        self.away = False
        """Whether the store did not answer the last beat."""
        self._books = books
        self._bell = bell
        self._wings = wings
        self._lease_ms = lease_ms
        self._due = due
        self._known = False
        self._hushed = False

    def keep(self, ending: threading.Event) -> None:
        """Beat until the end; at once when ``due`` is set."""
        self.away = self._known = self._hushed = False
        while not ending.is_set():
            try:
                self._hush()
                beat = self._beat()
            except BusError as error:
                if not self.away:
                    log.warning("the lease could not be renewed, trying on: %s", error)
                self.away, rest_s = True, RETRY_S
            else:
                if self.away:
                    log.info("the lease is renewed again")
                self.away = False
                self._tell(beat)
                if beat.forgotten:
                    self._be_known_again()
                self._known = True
                rest_s = BEAT_S if beat.next_due_ms is None else min(BEAT_S, beat.next_due_ms / 1000)
            self._due.wait(rest_s)
            self._due.clear()

    def _hush(self) -> None:
        """Once the worker is quiet the bell must not swallow rings that are for others."""
        if self._books.quiet and not self._hushed:
            self._books.store().poke(f"@{self._books.worker}")
            self._hushed = True

    def _beat(self) -> Beat:
        books = self._books
        with books.changed:
            books.abandon_the_gone()
            stuck = books.withdraw_the_stuck()
            standby = self._wings.renew()
            ticket, unanswered, held = books.statement()
            serves = self._bell.serves()
        if stuck or not self._bell.serves_anybody:  # no consumer takes settlements along
            books.exchange()
        beat = books.store().beat(
            books.worker,
            self._lease_ms,
            ticket,
            held,
            MAX_LOST,
            serves=serves,
            unanswered=unanswered,
            stopping=books.quiet,
            standby=standby,
        )
        with books.changed:
            books.ask_whether_apart()
        return beat

    def _tell(self, beat: Beat) -> None:
        if beat.handed_back:  # something was lost on its way to us, perhaps where nobody hears any more
            self._wings.close()
        again = beat.recovered - len(beat.buried)
        if again:
            log.warning("%d job(s) of workers whose leases ran out can be taken again", again)
        if beat.buried:
            log.error(
                "%d job(s) under which %d workers died went to the dead letters: "
                "'callboard dead list --error poison' shows them",
                len(beat.buried),
                MAX_LOST,
            )
            if self.when_buried is not None:
                try:
                    self.when_buried(beat.buried)
                except BusError as error:
                    log.debug("what was buried could not be looked at: %s", error)

    def _be_known_again(self) -> None:
        if self._known:
            log.warning("the store had forgotten this worker: its lease had run out, or the server has lost its data")
        if self.when_forgotten is not None:
            try:
                self.when_forgotten()
            except BusError as error:
                log.warning("the handlers could not be bound again: %s", error)
