"""The books of a worker process: which jobs it holds, who works on them, and what it has yet to tell the store.

A take has a ticket. A job is held from the moment its take is answered until its settling is; a take that failed has
an unknown outcome, and once its ticket is no longer open the next beat hands back whatever it had got.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bus import BusError
from bus.store.base import Exchange, Settlement, Store, Take, Taken, Woken
from workers.broker.room import Room

__all__ = ["GATHER", "Books", "Statement", "Wish"]

GATHER = 64
"""Settlements that go at once; fewer wait a moment for company."""
STUCK_S = 1.0
"""Where nothing is settled for so long, what was fetched ahead is handed back."""

log = logging.getLogger("callboard.workers")


class Wish(NamedTuple):
    """What a consumer asks for."""

    queue: str
    handlers: tuple[str, ...]
    limit: int


class Statement(NamedTuple):
    """What a beat tells the store: the last ticket, those whose takes are not answered yet, and the jobs in our hands."""

    ticket: int
    unanswered: list[int]
    held: list[str]


@dataclass(slots=True)
class _Holding:
    """A job that the store has in our name, from the answer to its take to the answer to its settling."""

    ticket: int
    queue: str
    since: float
    thread: threading.Thread | None = None
    """Who works on it, once it has begun."""


class Books:
    """``changed`` guards them; the methods that say so are called under it."""

    def __init__(self, store: Callable[[], Store], worker: str) -> None:
        self.worker = worker
        self.store = store
        self.changed = threading.Condition()
        """Notified when something rang, was settled or is ending; guards what the consumers share."""
        self.quiet = False
        """Whether it has stopped taking."""
        self.room = Room()
        """How much may be taken. Under ``changed``."""
        self._settlements: list[Settlement] = []
        self._held: dict[str, _Holding] = {}
        self._open: dict[str, _Holding] = {}  # of those, what is not settled yet
        self._at_work: dict[threading.Thread, str] = {}
        self._uncertain: set[str] = set()
        self._tickets = 0
        self._open_tickets: set[int] = set()

    def __len__(self) -> int:
        return len(self._held)

    # -- working -------------------------------------------------------------------------------------------------------

    def begin(self, job: str, ticket: int) -> bool:
        """Note that the calling thread is about to run a job's handler; ``False`` where it was handed back meanwhile."""
        thread = threading.current_thread()
        with self.changed:
            left = self._at_work.get(thread)
            if left is not None:
                self._abandon(left)
            holding = self._open.get(job)
            if holding is None or holding.ticket != ticket:
                return False
            holding.thread = thread
            self._at_work[thread] = job
            return True

    def running(self) -> int:
        """How many jobs have begun and are not settled."""
        with self.changed:
            return len(self._at_work)

    def abandon_the_gone(self) -> None:
        """Let go of what threads had in hand that are gone. Under ``changed``."""
        for thread, job in list(self._at_work.items()):
            if not thread.is_alive():
                self._abandon(job)

    def _abandon(self, job: str) -> None:
        """Let go of a job that was begun and never settled, for its thread is gone or does something else."""
        log.error("job %s was left unsettled by its thread: it is handed back and runs again", job)
        self.close_one(job, settled=False)
        self._held.pop(job, None)  # what a beat does not name goes back

    def withdraw_the_stuck(self) -> bool:
        """Hand back what was fetched ahead of work that then took long: others may do it now, and its lanes go on.

        Returns whether there was any. Under ``changed``.
        """
        now = time.monotonic()
        if not self._at_work or now - self.room.settled_at < STUCK_S:
            return False
        stuck = [
            (job, one.ticket)
            for job, one in self._open.items()
            if one.thread is None and now - one.since >= STUCK_S and not self.room.chosen(one.queue)
        ]
        self.hand_back(stuck)
        self.room.measure()
        return bool(stuck)

    def withdraw_the_rest(self) -> int:
        """Hand back all that has not begun. Returns how many jobs have, and are not settled. Under ``changed``."""
        running = sum(holding.thread is not None for holding in self._open.values())
        if running:
            rest = [(job, one.ticket) for job, one in self._open.items() if one.thread is None]
            self._settlements += [Settlement(job, ticket, "back") for job, ticket in reversed(rest)]
        return running

    def clear(self) -> None:
        """Nothing is held any more."""
        with self.changed:
            self._held.clear()
            self._open.clear()
            self._at_work.clear()
            self.room.clear()
            self.changed.notify_all()

    # -- settling ------------------------------------------------------------------------------------------------------

    def settle(self, queue: str, settlement: Settlement) -> None:
        """Put a settlement on the pile; it travels with the next take, or within milliseconds. Never blocks."""
        with self.changed:
            holding = self._open.get(settlement.job)
            if holding is None or holding.ticket != settlement.ticket:
                return  # handed back meanwhile
            self._settlements.append(settlement)  # first: an interrupt between the two must not lose it
            self.close_one(settlement.job)
            # Consumers sleep through the gathering: only what may change their minds is worth a switch of threads.
            waiting = len(self._settlements)
            if waiting == 1 or waiting >= GATHER or self.room.load(queue) == 0:
                self.changed.notify_all()

    def hand_back(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Hand back jobs that were not begun, by their tickets; last first, so they keep their order. Under ``changed``."""
        for job, ticket in reversed(jobs):
            self.close_one(job, settled=False)
            self._settlements.append(Settlement(job, ticket, "back"))

    def close_one(self, job: str, *, settled: bool = True) -> None:
        """Nobody works on it any more, or ever will. Under ``changed``."""
        holding = self._open.pop(job, None)
        if holding is not None:
            self.room.free(holding.queue, settled=settled)
            if holding.thread is not None and self._at_work.get(holding.thread) == job:
                del self._at_work[holding.thread]

    @property
    def unsettled(self) -> int:
        """How many settlements wait. Under ``changed``."""
        return len(self._settlements)

    # -- the store -----------------------------------------------------------------------------------------------------

    def exchange(self, wish: Wish | None = None) -> Exchange:
        """Settle all that waits, and take. Blocks for a round trip.

        Raises :class:`~bus.errors.BusUnavailable`; the settlements are then still waiting.
        """
        with self.changed:
            settlements, self._settlements = self._settlements, []
            takes = [self.take(wish)] if wish is not None and not self.quiet else []
        try:
            answer = (
                self.store().exchange(self.worker, settlements, takes) if settlements or takes else Exchange([], [])
            )
        except BusError:
            with self.changed:
                self._settlements = settlements + self._settlements
                self._uncertain.update(settlement.job for settlement in settlements)
            raise
        else:
            self._note(settlements, answer, asked=bool(takes))
            return answer
        finally:
            self.end(takes)

    def take(self, wish: Wish) -> Take:
        """A wish with a ticket, which is open until :meth:`end`. Under ``changed``."""
        self._tickets += 1
        self._open_tickets.add(self._tickets)
        return Take(self._tickets, *wish)

    def end(self, takes: Iterable[Take]) -> None:
        """Whatever these takes got is known by now, or lost. Safe twice."""
        with self.changed:
            self._open_tickets.difference_update(take.ticket for take in takes)

    def receive(self, answer: Exchange | Woken) -> None:
        """Note what was taken. Under ``changed``."""
        for taken in answer.taken:
            self.close_one(taken.job, settled=False)  # ours before, and lost: it came back to us
            self._held[taken.job] = self._open[taken.job] = _Holding(taken.ticket, taken.route.queue, time.monotonic())
            self.room.fill(taken.route.queue)
        if answer.apart != self.room.apart_for:
            self.room.apart_for = answer.apart
            self.changed.notify_all()

    def refuse(self, taken: Sequence[Taken]) -> None:
        """Hand back at once what was taken in vain. Under ``changed``."""
        self.hand_back([(one.job, one.ticket) for one in taken])

    def statement(self) -> Statement:
        """What the next beat tells the store. Under ``changed``."""
        return Statement(self._tickets, sorted(self._open_tickets), list(self._held))

    def _note(self, settlements: Sequence[Settlement], answer: Exchange, *, asked: bool) -> None:
        with self.changed:
            for settlement in settlements:
                holding = self._held.get(settlement.job)
                if holding is not None and holding.ticket == settlement.ticket:
                    del self._held[settlement.job]
            if asked:
                self.receive(answer)
        for settlement, settled in zip(settlements, answer.settled, strict=True):
            if settlement.job in self._uncertain:
                self._uncertain.discard(settlement.job)  # sent again after a lost reply: refused if it had worked
            elif not settled:
                log.warning(
                    "job %s was no longer ours to settle (%s): our lease had run out, so it runs again elsewhere",
                    settlement.job,
                    settlement.verdict,
                )
