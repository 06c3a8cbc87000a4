"""The books of a worker process: which jobs it holds, who works on them, and what it has yet to tell the store.

A take has a ticket. A job is held from the moment its take is answered until its settling is; a take that failed has
an unknown outcome, and once its ticket is no longer open the next beat hands back whatever it had got.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bus import BusError
from bus.store.base import ALONE, Exchange, Route, Settlement, Store, Take, Taken, Woken
from workers.broker.room import Room, Rooms, Wish
from workers.broker.staff import Staff

__all__ = ["GATHER", "Books", "Doer", "Statement"]

GATHER = 64
"""Settlements that go at once; fewer wait a moment for company."""
MOST_JOBS = 5
"""So many are named by their numbers in the log."""
STUCK_S = 1.0
"""Where nothing is settled for so long, what was fetched ahead is handed back."""

log = logging.getLogger("callboard.workers")


class Doer(Protocol):
    """Who works on a job: a thread, or what runs a coroutine."""

    def is_alive(self) -> bool:
        """Whether it will come to an end of the job yet, and settle it."""


class Statement(NamedTuple):
    """What a beat tells the store: the last ticket, those whose takes are not answered yet, and the jobs in our hands."""

    ticket: int
    unanswered: list[int]
    held: list[tuple[str, int]]
    """Each with the ticket of its take."""


@dataclass(slots=True)
class _Holding:
    """A job that the store has in our name, from the answer to its take to the answer to its settling."""

    ticket: int
    route: Route
    room: Room
    since: float
    doer: Doer | None = None
    """Who works on it, once it has begun."""


class Books:
    """``changed`` guards them; the methods that say so are called under it."""

    def __init__(self, store: Callable[[], Store], worker: str, staff: Staff, concurrency: int) -> None:
        self.worker = worker
        self.store = store
        self.lock = threading.RLock()
        """That of ``changed``, for worker threads: a time limit that strikes in a condition's ``__enter__`` would keep it for ever.

        It is quicker to enter, too, on the way from a wake-up to a handler.
        """
        self.changed = threading.Condition(self.lock)
        """Notified when something rang, was settled or is ending; guards what the consumers share."""
        self.quiet = False
        """Whether it has stopped taking."""
        self.rooms = Rooms(staff, concurrency)
        """How much may be taken. Under ``changed``."""
        self._settlements: list[Settlement] = []
        self._held: dict[str, _Holding] = {}
        self._open: dict[str, _Holding] = {}  # of those, what is not settled yet
        self._at_work: dict[Doer, str] = {}
        self._astray: dict[Doer, tuple[str, _Holding]] = {}  # who works on what is ours anew, or not ours any more
        self._left: set[Doer] = set()  # who was still at work when an earlier worker of this process ended
        self._uncertain: set[str] = set()
        self._tickets = 0
        self._open_tickets: set[int] = set()

    def __len__(self) -> int:
        return len(self._held)

    # -- working -------------------------------------------------------------------------------------------------------

    def begin(self, job: str, ticket: int, doer: Doer) -> bool:
        """Note who is about to run a job's handler; ``False`` where it was handed back meanwhile."""
        with self.lock:
            if doer in self._astray:
                self._end_astray(doer)
            left = self._at_work.get(doer)
            if left is not None:
                self._abandon(left)
            holding = self._open.get(job)
            if holding is None or holding.ticket != ticket:
                return False
            holding.doer = doer
            holding.room.jammed = False
            self._at_work[doer] = job
            return True

    @property
    def idle(self) -> bool:
        """Whether nothing is in hand, and nobody works on what is not ours any more. Under ``changed``."""
        self._left = {doer for doer in self._left if doer.is_alive()}
        return self.rooms.empty and not self._left

    def running(self) -> int:
        """How many jobs have begun and are not settled."""
        with self.changed:
            return len(self._at_work)

    def at_work(self) -> list[tuple[str, str]]:
        """Those jobs, each as its handler and its number."""
        with self.changed:
            return [(self._open[job].route.handler, job) for job in self._at_work.values() if job in self._open]

    def abandon_the_gone(self) -> None:
        """Let go of what threads or coroutines had in hand that are gone. Under ``changed``."""
        for doer, job in list(self._at_work.items()):
            if not doer.is_alive():
                self._abandon(job)
        for doer in list(self._astray):
            if not doer.is_alive():
                self._end_astray(doer)

    def _abandon(self, job: str) -> None:
        """Let go of a job that was begun and never settled, for whoever did it is gone or does something else."""
        log.error("job %s was left unsettled: it is handed back and runs again", job)
        self._open[job].room.jammed = False  # there may be nothing else that could be done
        self.close_one(job, settled=False)
        self._held.pop(job, None)  # what a beat does not name goes back

    def withdraw_the_stuck(self) -> bool:
        """Hand back what was fetched ahead of work that then took long: others may do it now, and its lanes go on.

        Returns whether there was any. Under ``changed``.
        """
        stuck = [job for room in (self.rooms.threads, self.rooms.loop) for job in self._stuck_in(room)]
        self.hand_back(stuck)
        self.rooms.measure()
        return bool(stuck)

    def _stuck_in(self, room: Room) -> list[tuple[str, int]]:
        """What was not begun there for a while in which nothing was settled either."""
        now = time.monotonic()
        if now - room.settled_at < STUCK_S:
            return []
        waiting = [(job, one) for job, one in self._open.items() if one.room is room and one.doer is None]
        stuck = [
            (job, one.ticket) for job, one in waiting if now - one.since >= STUCK_S and not room.chosen(one.route.queue)
        ]
        room.jammed = room.jammed or (bool(stuck) and room is self.rooms.loop)
        return stuck

    def withdraw_the_rest(self) -> int:
        """Hand back all that has not begun. Returns how many jobs have, and are not settled. Under ``changed``."""
        running = sum(holding.doer is not None for holding in self._open.values())
        if running:
            rest = [(job, one.ticket) for job, one in self._open.items() if one.doer is None]
            self._settlements += [Settlement(job, ticket, "back") for job, ticket in reversed(rest)]
        return running

    def clear(self) -> None:
        """Nothing is held any more, whoever may be at work on it still."""
        with self.changed:
            self._left |= {*self._at_work, *self._astray}
            self._held.clear()
            self._open.clear()
            self._at_work.clear()
            self._astray.clear()
            self._settlements.clear()
            self._uncertain.clear()
            self.rooms.clear()
            self.changed.notify_all()

    # -- settling ------------------------------------------------------------------------------------------------------

    def settle(self, queue: str, settlement: Settlement) -> None:
        """Put a settlement on the pile; it travels with the next take, or within milliseconds. Never blocks."""
        with self.lock:
            holding = self._open.get(settlement.job)
            if holding is None or holding.ticket != settlement.ticket:
                self._come_back(settlement)  # handed back meanwhile, or lost
                return
            self._settlements.append(settlement)  # first: an interrupt between the two must not lose it
            self.close_one(settlement.job)
            # Consumers sleep through the gathering: only what may change their minds is worth a switch of threads.
            waiting = len(self._settlements)
            if waiting == 1 or waiting >= GATHER or self.rooms.load(queue) == 0:
                self.changed.notify_all()

    def hand_back(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Hand back jobs that were not begun, by their tickets; last first, so they keep their order. Under ``changed``."""
        for job, ticket in reversed(jobs):
            self.close_one(job, settled=False)
            self._settlements.append(Settlement(job, ticket, "back"))

    def mend(self, job: str) -> None:
        """A thread was struck somewhere between receiving this job and passing it on: if nobody has begun it, it goes back."""
        with self.lock:
            in_hand = [*self._open.values(), *(holding for _, holding in self._astray.values())]
            self.rooms.recount([(one.room, one.route) for one in in_hand])
            holding = self._open.get(job)
            if holding is not None and holding.doer is None:
                self.hand_back([(job, holding.ticket)])
                self.changed.notify_all()

    def close_one(self, job: str, *, settled: bool = True) -> None:
        """Nobody works on it any more, or ever will. Under ``changed``."""
        holding = self._open.pop(job, None)
        if holding is not None:
            self.rooms.free(holding.room, holding.route.queue, holding.route.handler, settled=settled)
            if holding.doer is not None and self._at_work.get(holding.doer) == job:
                del self._at_work[holding.doer]

    def _go_astray(self, job: str) -> None:
        """It was lost, and whoever works on it does not know. So long the place is taken, and this process not idle."""
        holding = self._open[job]
        if holding.doer is None:
            self.close_one(job, settled=False)
        else:
            del self._open[job], self._at_work[holding.doer]
            self._astray[holding.doer] = job, holding

    def _come_back(self, settlement: Settlement) -> None:
        for doer, (job, holding) in list(self._astray.items()):
            if (job, holding.ticket) == (settlement.job, settlement.ticket):
                self._end_astray(doer)

    def _end_astray(self, doer: Doer) -> None:
        _, holding = self._astray.pop(doer, ("", None))
        if holding is not None:
            self.rooms.free(holding.room, holding.route.queue, holding.route.handler, settled=False)
            self.changed.notify_all()

    @property
    def unsettled(self) -> int:
        """How many settlements wait. Under ``changed``."""
        return len(self._settlements)

    # -- the store -----------------------------------------------------------------------------------------------------

    def exchange(self, wishes: Sequence[Wish] = ()) -> Exchange:
        """Settle all that waits, and take what was promised room for. Blocks for a round trip.

        Raises :class:`~bus.errors.BusUnavailable`; the settlements are then still waiting.
        """
        with self.changed:
            settlements, self._settlements = self._settlements, []
            takes = [] if self.quiet else [self.take(wish, idle=self.idle) for wish in wishes]
            others = len(self._held) > len(settlements)  # whose settling is on its way beside this
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
            with self.changed:
                refused = self._note(settlements, answer)
                if takes:
                    answer = self._without_what_must_be_alone(answer)
                    self.receive(answer)
                    self.rooms.in_vain = bool(answer.apart) and self.rooms.empty and (not others or bool(self._held))
            if refused:
                log.warning(
                    "%d no longer ours to settle: our lease had run out, so what the server still has of them runs again (jobs %s)",
                    len(refused),
                    ", ".join(refused[:MOST_JOBS]) + (", ..." if len(refused) > MOST_JOBS else ""),
                )
            return answer
        finally:
            with self.changed:
                self.rooms.promise(wishes, kept=True)
                self.end(takes)

    def take(self, wish: Wish, *, idle: bool = False) -> Take:
        """A wish with a ticket, which is open until :meth:`end`. Under ``changed``."""
        return Take(self.open_ticket(), wish.queue, wish.handlers, wish.limit, wish.most, idle)

    def open_ticket(self) -> int:
        """What comes under it is ours, until :meth:`close_ticket`. Under ``changed``."""
        self._tickets += 1
        self._open_tickets.add(self._tickets)
        return self._tickets

    def close_ticket(self, ticket: int) -> None:
        """What has not come under it by now is lost, or not ours. Safe twice. Under ``changed``."""
        self._open_tickets.discard(ticket)

    def is_open(self, ticket: int) -> bool:
        """Whether something may come under it still. Under ``changed``."""
        return ticket in self._open_tickets

    def end(self, takes: Iterable[Take]) -> None:
        """Whatever these takes got is known by now, or lost. Safe twice."""
        with self.lock:
            for take in takes:
                self.close_ticket(take.ticket)

    def receive(self, answer: Exchange) -> None:
        """Note what was taken. Under ``changed``."""
        now = time.monotonic()
        for taken in answer.taken:
            self._hold(taken, self.rooms.of(taken.route.handler), now)
        self._stand_apart(answer.apart)

    def _without_what_must_be_alone(self, answer: Exchange) -> Exchange:
        """Who was idle as it asked may not be any more. Mostly the store knows, but not of what was struck out of its books."""
        alone = [one for one in answer.taken if one.lost >= ALONE]
        if not alone or self.idle:
            return answer
        for one in alone:
            self._hold(one, self.rooms.of(one.route.handler), time.monotonic())
        self.hand_back([(one.job, one.ticket) for one in alone])
        return answer._replace(taken=[one for one in answer.taken if one not in alone], apart="")

    def _hold(self, taken: Taken, room: Room, now: float) -> None:
        if taken.job in self._open:  # it was ours before
            self._go_astray(taken.job)
        self.rooms.fill(room, taken.route.queue, taken.route.handler)
        self._held[taken.job] = self._open[taken.job] = _Holding(taken.ticket, taken.route, room, now)

    def _stand_apart(self, name: str) -> None:
        if name != self.rooms.apart_for:
            self.rooms.apart_for = name
            self.changed.notify_all()

    def ask_whether_apart(self) -> None:
        """Another worker may have taken the suspect: the next take tells whether we still stand apart for it. Under ``changed``."""
        self.rooms.in_vain = False
        self._stand_apart("")

    def receive_unasked(self, answer: Woken, queues: Collection[str]) -> tuple[list[Taken], list[Taken]]:
        """As :meth:`receive`, some time after it was asked for: what may stay, and what has no place (any more)."""
        kept: list[Taken] = []
        refused: list[Taken] = []
        for taken in answer.taken:
            stays = self.receive_one(taken, wanted=taken.route.queue in queues)
            (kept if stays else refused).append(taken)
        return kept, refused

    def receive_one(self, taken: Taken, *, wanted: bool) -> bool:
        """Note it, and return whether it may stay: somebody wants it, and there is room."""
        handler = taken.route.handler
        room = self.rooms.admit(handler) if wanted else None
        self._hold(taken, room or self.rooms.of(handler), time.monotonic())
        return room is not None

    def statement(self) -> Statement:
        """What the next beat tells the store. Under ``changed``."""
        held = [*self._held.items(), *self._astray.values()]
        named = [(job, holding.ticket) for job, holding in held]
        return Statement(self._tickets, sorted(self._open_tickets), named)

    def _note(self, settlements: Sequence[Settlement], answer: Exchange) -> list[str]:
        """What the store says of settlements. Returns the jobs that were no longer ours."""
        for settlement in settlements:
            holding = self._held.get(settlement.job)
            if holding is not None and holding.ticket == settlement.ticket:
                del self._held[settlement.job]
        if settlements and self.rooms.in_vain:
            self.rooms.in_vain = False
            self.changed.notify_all()
        refused = [
            one.job
            for one, settled in zip(settlements, answer.settled, strict=True)
            if not settled and one.job not in self._uncertain  # sent again after a lost reply: refused if it had worked
        ]
        self._uncertain.difference_update(one.job for one in settlements)
        return refused
