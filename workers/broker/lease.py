"""A worker process's lease: its right to the jobs that it took.

The lease belongs to the process, not to a consumer (Dramatiq closes and reopens those). Two threads keep it:

* the *keeper* beats: it renews the lease, names the jobs still held, and moves due work on time. What the store has in
  our name but is not in our hands goes back at once: it was lost in a reply, or the thread that worked on it is gone;
* the *bell* rests on the store's wake-ups for the queues that have room, and brings what it found. Nobody polls.

::

    consumer threads ──take/settle──> store <──beat── keeper
           ^                                  ──wait, take──> bell ──┐
           └────────────────── jobs, rings ──────────────────────────┘

A take has a ticket. A job is held from the moment its take is answered until its settling is; a take that failed has
an unknown outcome, and once its ticket is no longer open the next beat hands back whatever it had got.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bus import BusError, ids
from bus.store.base import Exchange, Settlement, Store, Take, Taken, Woken
from workers.broker.room import Room

__all__ = ["GATHER", "Lease", "Waiter", "Wish"]

GATHER = 64
"""Settlements that go at once; fewer wait a moment for company."""
BEAT_S = 1.0
"""The longest time between two beats; a lease outlives several."""
REST_S = 5.0
"""How long the bell rests on the server at a time."""
RETRY_S = 0.5
STUCK_S = 1.0
"""Where nothing is settled for so long, what was fetched ahead is handed back."""
MOST_TAKES = 4
"""Queues for which the bell takes as it is woken; with more of them it only rings, for each take is tried at each ring."""
END_S = 2.0
MAX_LOST = 5
"""Leases that may run out under a job before it counts as poison."""

log = logging.getLogger("callboard.workers")


class Waiter(Protocol):
    """A consumer, as the bell knows it."""

    def waits(self) -> int:
        """How many jobs it would be glad of, having found its queue empty; 0 where a ring would tell it nothing.

        Under ``changed``.
        """

    def bring(self, taken: Sequence[Taken]) -> None:
        """Jobs that the bell took for it. On the bell's thread, not under ``changed``."""


class Wish(NamedTuple):
    """What a consumer asks for."""

    queue: str
    handlers: tuple[str, ...]
    limit: int


@dataclass(slots=True)
class _Holding:
    """A job that the store has in our name, from the answer to its take to the answer to its settling."""

    ticket: int
    queue: str
    since: float
    thread: threading.Thread | None = None
    """Who works on it, once it has begun."""


class Lease:
    """Make one for each process that works. ``start`` and ``close`` bear being called twice."""

    def __init__(self, store: Callable[[], Store], lease_ms: int, handlers_of: Callable[[str], Sequence[str]]) -> None:
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{ids.token()}"
        self.changed = threading.Condition()
        """Notified when something rang, was settled or is ending; guards what the consumers share."""
        self.quiet = False
        """Whether it has stopped taking."""
        self.when_forgotten: Callable[[], None] | None = None
        """Called on the keeper's thread when the store no longer knew this worker: it may have lost the bindings too."""
        self._store = store
        self._lease_ms = lease_ms
        self._handlers_of = handlers_of
        self.room = Room()
        """How much may be taken. Under ``changed``."""
        self._waiters: dict[str, Waiter] = {}
        self._rung: set[str] = set()
        self._settlements: list[Settlement] = []
        self._held: dict[str, _Holding] = {}
        self._open: dict[str, _Holding] = {}  # of those, what is not settled yet
        self._at_work: dict[threading.Thread, str] = {}
        self._uncertain: set[str] = set()
        self._tickets = 0
        self._open_tickets: set[int] = set()
        self._keeper: threading.Thread | None = None
        self._bell: threading.Thread | None = None
        self._due = threading.Event()
        self._ending = threading.Event()
        self._awake_for: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Lease {self.worker} holding {len(self._held)}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the keeper and the bell."""
        if self._keeper is not None:
            return
        self._ending.clear()
        self.quiet = False
        self._keeper = threading.Thread(target=self._keep, name="callboard keeper", daemon=True)
        self._bell = threading.Thread(target=self._listen, name="callboard bell", daemon=True)
        self._keeper.start()
        self._bell.start()

    def be_quiet(self) -> None:
        """Take no more; what was taken may still be settled. Safe twice."""
        with self.changed:
            was_quiet, self.quiet = self.quiet, True
            self.changed.notify_all()
        if not was_quiet:
            self.refresh()  # the bell must not swallow rings that are for others now

    def close(self) -> None:
        """Settle what is waiting, hand the rest back and end the threads, each within a deadline. Safe twice.

        A job whose handler still runs is not handed back, or two of its lane would run at once: its lease ends by itself.
        """
        keeper, bell = self._keeper, self._bell
        if keeper is None or bell is None:
            return
        self.quiet = True
        self._ending.set()
        self._due.set()
        self.refresh()
        for thread in (bell, keeper):  # first: what they still take, or tell, is to be undone by what follows
            thread.join(END_S)
        try:
            self.exchange()
            if self._hand_back_all_but_running():
                self._store().leave(self.worker)
        except BusError as error:
            log.warning("the worker could not say goodbye; its jobs run again when its lease ends: %s", error)
        self._keeper = self._bell = None
        with self.changed:  # only now: a last beat that named nothing as held would hand back what still runs
            self._held.clear()
            self._open.clear()
            self._at_work.clear()
            self._waiters.clear()
            self.room.clear()
            self.changed.notify_all()

    def _hand_back_all_but_running(self) -> bool:
        """Whether nothing runs any more, so that leaving hands everything back."""
        with self.changed:
            running = sum(holding.thread is not None for holding in self._open.values())
            rest = [(job, one.ticket) for job, one in self._open.items() if one.thread is None]
            if running:
                self._settlements += [Settlement(job, ticket, "back") for job, ticket in reversed(rest)]
        if running:
            log.warning("%d job(s) still run and are left behind; they run again when their lease ends", running)
            self.exchange()
        return not running

    # -- taking and settling -------------------------------------------------------------------------------------------

    def settle(self, queue: str, settlement: Settlement) -> None:
        """Put a settlement on the pile; it travels with the next take, or within milliseconds. Never blocks."""
        with self.changed:
            holding = self._open.get(settlement.job)
            if holding is None or holding.ticket != settlement.ticket:
                return  # handed back meanwhile
            self._settlements.append(settlement)  # first: an interrupt between the two must not lose it
            self._close_one(settlement.job)
            # Consumers sleep through the gathering: only what may change their minds is worth a switch of threads.
            waiting = len(self._settlements)
            if waiting == 1 or waiting >= GATHER or self.room.load(queue) == 0:
                self.changed.notify_all()

    def _close_one(self, job: str, *, settled: bool = True) -> None:
        """Nobody works on it any more, or ever will."""
        holding = self._open.pop(job, None)
        if holding is not None:
            self.room.free(holding.queue, settled=settled)
            if holding.thread is not None and self._at_work.get(holding.thread) == job:
                del self._at_work[holding.thread]

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

    def _abandon(self, job: str) -> None:
        """Let go of a job that was begun and never settled, for its thread is gone or does something else."""
        log.error("job %s was left unsettled by its thread: it is handed back and runs again", job)
        self._close_one(job, settled=False)
        self._held.pop(job, None)  # what a beat does not name goes back

    def _withdraw_the_stuck(self) -> bool:
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
        for job, ticket in reversed(stuck):
            self._close_one(job, settled=False)
            self._settlements.append(Settlement(job, ticket, "back"))
        self.room.measure()
        return bool(stuck)

    def running(self) -> int:
        """How many jobs have begun and are not settled."""
        with self.changed:
            return len(self._at_work)

    @property
    def unsettled(self) -> int:
        """How many settlements wait. Under ``changed``."""
        return len(self._settlements)

    def exchange(self, wish: Wish | None = None) -> Exchange:
        """Settle all that waits, and take. Blocks for a round trip.

        Raises :class:`~bus.errors.BusUnavailable`; the settlements are then still waiting.
        """
        with self.changed:
            settlements, self._settlements = self._settlements, []
            takes = [Take(self._ticket(), *wish)] if wish is not None and not self.quiet else []
        try:
            answer = (
                self._store().exchange(self.worker, settlements, takes) if settlements or takes else Exchange([], [])
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
            with self.changed:
                self._open_tickets.difference_update(take.ticket for take in takes)

    def _ticket(self) -> int:
        self._tickets += 1
        self._open_tickets.add(self._tickets)
        return self._tickets

    def _receive(self, answer: Exchange | Woken) -> None:
        """Note what was taken. Under ``changed``."""
        for taken in answer.taken:
            self._close_one(taken.job, settled=False)  # ours before, and lost: it came back to us
            self._held[taken.job] = self._open[taken.job] = _Holding(taken.ticket, taken.route.queue, time.monotonic())
            self.room.fill(taken.route.queue)
        if answer.apart != self.room.apart_for:
            self.room.apart_for = answer.apart
            self.changed.notify_all()

    def _note(self, settlements: Sequence[Settlement], answer: Exchange, *, asked: bool) -> None:
        with self.changed:
            for settlement in settlements:
                holding = self._held.get(settlement.job)
                if holding is not None and holding.ticket == settlement.ticket:
                    del self._held[settlement.job]
            if asked:
                self._receive(answer)
        for settlement, settled in zip(settlements, answer.settled, strict=True):
            if settlement.job in self._uncertain:
                self._uncertain.discard(settlement.job)  # sent again after a lost reply: refused if it had worked
            elif not settled:
                log.warning(
                    "job %s was no longer ours to settle (%s): our lease had run out, so it runs again elsewhere",
                    settlement.job,
                    settlement.verdict,
                )

    # -- wake-ups ------------------------------------------------------------------------------------------------------

    def serve(self, queue: str, waiter: Waiter) -> None:
        """Have the bell ring for a queue while its consumer waits for work. Safe twice: the last consumer counts."""
        with self.changed:
            self._waiters[queue] = waiter
        self._due.set()  # the store learns at once whom it serves
        self.refresh()

    def unserve(self, queue: str, waiter: Waiter) -> None:
        """Its consumer has ended. Safe twice, and after another one has come."""
        with self.changed:
            if self._waiters.get(queue) is waiter:
                del self._waiters[queue]

    def has_rung(self, queue: str) -> bool:
        """Whether work has come to a queue since it was last asked. Under ``changed``."""
        if queue in self._rung:
            self._rung.discard(queue)
            return True
        return False

    def awaits(self, queue: str) -> bool:
        """Whether the bell rests on this queue right now."""
        return queue in self._awake_for

    def ring(self, queue: str) -> None:
        """There may be work for a queue."""
        with self.changed:
            self._rung.add(queue)
            self.changed.notify_all()

    def refresh(self) -> None:
        """Have the bell look again at which queues it rings for. Nothing to do where no bell runs."""
        if self._bell is None:
            return
        try:
            self._store().poke(f"@{self.worker}")
        except BusError:
            log.debug("the bell was not refreshed; it looks again by itself")

    # -- the two threads -----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        away = known = False
        while not self._ending.is_set():
            with self.changed:
                for thread, job in list(self._at_work.items()):
                    if not thread.is_alive():
                        self._abandon(job)
                stuck = self._withdraw_the_stuck()
                ticket, unanswered = self._tickets, sorted(self._open_tickets)
                held = list(self._held)
                serves = [f"{queue}|{handler}" for queue in self._waiters for handler in self._handlers_of(queue)]
            try:
                if stuck:
                    self.exchange()
                beat = self._store().beat(
                    self.worker, self._lease_ms, ticket, held, MAX_LOST, serves=serves, unanswered=unanswered
                )
            except BusError as error:
                if not away:
                    log.warning("the lease could not be renewed, trying on: %s", error)
                away, rest_s = True, RETRY_S
            else:
                if away:
                    log.info("the lease is renewed again")
                away = False
                if beat.recovered > beat.buried:
                    again = beat.recovered - beat.buried
                    log.warning("%d job(s) of workers whose leases ran out can be taken again", again)
                if beat.buried:
                    log.error(
                        "%d job(s) under which %d workers died went to the dead letters: "
                        "'callboard dead list --error poison' shows them",
                        beat.buried,
                        MAX_LOST,
                    )
                if beat.forgotten:
                    self._be_known_again(known=known)
                known = True
                rest_s = BEAT_S if beat.next_due_ms is None else min(BEAT_S, beat.next_due_ms / 1000)
            self._due.wait(rest_s)
            self._due.clear()

    def _be_known_again(self, *, known: bool) -> None:
        if known:
            log.warning("the store had forgotten this worker: its lease had run out, or the server has lost its data")
        if self.when_forgotten is not None:
            try:
                self.when_forgotten()
            except BusError as error:
                log.warning("the handlers could not be bound again: %s", error)

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                self._rest()
            except Exception:
                log.exception("the bell stumbled, and goes on")
                self._ending.wait(RETRY_S)
                self._ring_all()

    def _rest(self) -> None:
        """Rest on the wake-ups until one rings, and hand on what came of it."""
        takes = self._wishes()
        self._awake_for = frozenset(take.queue for take in takes)
        names = [f"{take.queue}|{handler}" for take in takes for handler in take.handlers]
        tried = takes if len(takes) <= MOST_TAKES else []
        try:
            woken = self._store().wait(["$due", f"@{self.worker}", *names], REST_S, self.worker, tried)
            if woken.rang == "$due":
                self._due.set()
            self._hand_on(woken, takes, tried)
        except BusError:
            self._end_tickets(takes)
            self._ending.wait(RETRY_S)
            self._ring_all()  # what was rung meanwhile rang for others, or for nobody
        finally:
            self._end_tickets(takes)  # however it ended: a ticket left open would keep what it took from going back

    def _wishes(self) -> list[Take]:
        """What to rest on, and to take there. A queue without room leaves its ring to another process."""
        with self.changed:
            waiting = [] if self.quiet else [(queue, waiter.waits()) for queue, waiter in self._waiters.items()]
            return [
                Take(self._ticket(), queue, handlers, room)
                for queue, room in waiting
                if room and (handlers := tuple(self._handlers_of(queue)))
            ]

    def _end_tickets(self, takes: Sequence[Take]) -> None:
        with self.changed:
            self._open_tickets.difference_update(take.ticket for take in takes)

    def _hand_on(self, woken: Woken, takes: Sequence[Take], tried: Sequence[Take]) -> None:
        """Bring the consumers what was taken for them, and ring where there may be more."""
        brought: list[tuple[Waiter, list[Taken]]] = []
        returned: list[Taken] = []
        with self.changed:
            waiters = {take.queue: self._waiters.get(take.queue) for take in takes if not self.quiet}
            glad = {queue: waiter for queue, waiter in waiters.items() if waiter is not None and waiter.waits()}
            if tried:
                self._receive(woken)
            self._end_tickets(takes)
            for take in takes:
                taken = [one for one in woken.taken if one.route.queue == take.queue]
                rang = woken.rang is not None and woken.rang.partition("|")[0] == take.queue
                if take.queue not in glad:
                    returned += taken
                    continue
                brought.append((glad[take.queue], taken))
                if len(taken) == take.limit or (rang and not taken) or woken.apart == take.queue:
                    self._rung.add(take.queue)
                    self.changed.notify_all()
            for one in reversed(returned):
                self._close_one(one.job, settled=False)
                self._settlements.append(Settlement(one.job, one.ticket, "back"))
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
            self.exchange()
            if ring is not None:
                self._store().poke(ring)
        except BusError:
            log.debug("a ring was lost; the next beat makes up for it")

    def _ring_all(self) -> None:
        with self.changed:
            self._rung.update(self._awake_for)
            self.changed.notify_all()
