"""The queue side under any program: jobs, verdicts, lost answers, dying workers, time, pauses, dead letters, flushes.

A model that knows nothing of lists, sets and scripts says after each step what must be so; both stores are held to it:

* nothing is lost: whatever was accepted ends once, acked, dead or dropped, and until then it is counted;
* a key is one at a time, first in first out, retries included; only ``pass`` lets later ones by;
* nobody else has a job, and only its owner settles it, once, under the ticket of its last take;
* a take empties a priority before it looks at the next, and shares itself among the handlers that have work;
* turns: while a job stands ready, of its route (queue, handler, priority) only those are handed out before it that
  stood ready when it became so, each once, and those that have been put back to the head since;
* lost leases are counted under each job: two, and of its like (those that lost as many) a worker has a few at a time, fewer
  at each loss, and none that lost more or fewer; the last time it is all alone, by the worker's own books too; one too
  many, and it is a dead letter. Such jobs and fresh work take turns, and nobody makes room for one for ever;
* where work is ready, somebody is rung for it.

Time moves by hours, in leaps: the clock of memory travels, and on Redis the scores of what waits for a time are moved
back. Whatever is timed is timed for the middle of an hour, so that no example depends on how long it took. For a longer
search: ``QUEUE_MACHINE_EXAMPLES=2000 pytest tests/bus/test_queue_machine.py``.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bus.clock import Clock
from bus.store.base import SUSPECT, Beat, Company, Exchange, Job, Post, Route, Settlement, Store, Take, Taken, Verdict
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import append, batch, post

EXAMPLES = int(os.environ.get("QUEUE_MACHINE_EXAMPLES", "200"))
STEPS = 50

QUEUES = ("q", "q2")
HANDLERS = ("h1", "h2", "h3")
PLACES = 3
"""Workers at a time; the name of one that crashed is not used again."""
NAMES = tuple(f"{queue}|{handler}" for queue in QUEUES for handler in HANDLERS)
KEYS = ("", "a", "b", "c|1")
MAX_LOST = 5
COMPANY: Company = (3, 2, 1)
"""How many suspects may be lost together."""

PATIENCE_MS = 90 * 60_000
"""How long a worker makes room for one at first."""

SECOND_MS = 1_000
"""Between any two leases, lest their order depend on whether the clock of a real server moved on."""
HOUR_MS = 3_600_000
LEASE_MS = HOUR_MS - 600_000
LONG_LEASE_MS = 2 * HOUR_MS - 600_000
WINDOW_MS = 100_000 * HOUR_MS
RETENTION_MS = 7 * 24 * HOUR_MS

Lane = tuple[str, str, str]


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Piece:
    """A job as the model knows it. ``name`` is its body, and for events its handler too: they share a body."""

    name: bytes
    queue: str
    handler: str
    key: str
    priority: int
    state: str = "waiting"
    """``waiting``, ``delayed``, ``held`` (by its retry), ``flying``, ``dead`` or ``over``."""
    lost: int = 0
    notes: bytes = b""
    number: str = ""
    """The store's name for it, known once it was handed out."""
    died_ms: int = 0
    death: int = 0
    """Letters of one sweep have the same, and no order among them."""

    @property
    def lane(self) -> Lane:
        return self.queue, self.handler, self.key

    @property
    def route(self) -> Route:
        return Route(self.queue, self.handler, self.priority)

    @property
    def unfinished(self) -> bool:
        return self.state not in ("dead", "over")

    @property
    def suspect(self) -> bool:
        return self.lost >= SUSPECT

    @property
    def company(self) -> int:
        """How many of its like it may be taken with, itself included."""
        return COMPANY[min(self.lost - SUSPECT, len(COMPANY) - 1)]


@dataclass(eq=False)
class Turn:
    """A piece that stands ready, and the turns that may come before its own."""

    piece: Piece
    before: set[Turn] = field(default_factory=set)


class Apart(NamedTuple):
    """Why a worker is handed nothing: it works on a suspect alone, or makes room for one, patiently so long."""

    queue: str
    handler: str
    works: bool
    since_ms: int
    patience_ms: int

    @property
    def name(self) -> str:
        return f"{self.queue}|{self.handler}"

    def stands(self, now_ms: int, times: int = 1) -> bool:
        return now_ms < self.since_ms + times * self.patience_ms


class Due(NamedTuple):
    at_ms: int
    piece: Piece


class Model:
    """What the queue side must do. Times are its own; the store's are the same but for the seconds that a test takes."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.pieces: dict[bytes, Piece] = {}
        self.numbers: dict[str, Piece] = {}
        self.lanes: defaultdict[Lane, list[Piece]] = defaultdict(list)
        self.ready: dict[Piece, Turn] = {}
        self.due: list[Due] = []
        self.books: defaultdict[str, dict[Piece, int]] = defaultdict(dict)
        """What each worker holds as the store must see it, with the ticket, in the order of the takes."""
        self.leases: dict[str, int] = {}
        self.stopping: set[str] = set()
        self.serving: dict[str, frozenset[str]] = {}
        self.apart: dict[str, Apart] = {}
        self.fresh_next: set[tuple[str, str]] = set()
        """Where a group of suspects was handed out, and others wait: fresh work has its turn."""
        self.paused: set[str] = set()
        self.bells: set[str] = set()
        """The names that must have been rung and were not heard yet."""
        self.ends: Counter[bytes] = Counter()
        self._deaths = count(1)

    # in

    def accept(self, piece: Piece, due_ms: int | None) -> None:
        assert piece.name not in self.pieces, "the test named two jobs alike"
        self.pieces[piece.name] = piece
        if due_ms is None:
            self._join(piece)
        else:
            self._delay(piece, due_ms)

    def _delay(self, piece: Piece, at_ms: int, state: str = "delayed") -> None:
        piece.state = state
        self.due.append(Due(at_ms, piece))

    def _join(self, piece: Piece) -> None:
        """To the tail of its lane."""
        piece.state = "waiting"
        if piece.key:
            self.lanes[piece.lane].append(piece)
        if not piece.key or len(self.lanes[piece.lane]) == 1:
            self._make_ready(piece)

    def _make_ready(self, piece: Piece, *, first: bool = False) -> None:
        piece.state = "waiting"
        beside = [turn for turn in self.ready.values() if _stand_together(turn.piece, piece)]
        mine = Turn(piece, set() if first else set(beside))
        if first:
            for turn in beside:
                turn.before.add(mine)
        self.ready[piece] = mine
        self.bells.add(f"{piece.queue}|{piece.handler}")

    def _leave_lane(self, piece: Piece) -> None:
        """A lane keeps the priority of the job that opened it until it is empty."""
        if piece.key:
            lane = self.lanes[piece.lane]
            assert lane.pop(0) is piece
            if lane:
                lane[0].priority = piece.priority
                self._make_ready(lane[0])

    def _end(self, piece: Piece, state: str) -> None:
        piece.state = state
        self.ends[piece.name] += 1

    # take: who may be handed what, suspects included

    def eligible(self, take: Take) -> list[Turn]:
        names = [one for one in take.handlers if not self.paused & {take.queue, f"{take.queue}|{one}"}]
        return [turn for turn in self.ready.values() if turn.piece.queue == take.queue and turn.piece.handler in names]

    def take(self, worker: str, take: Take, taken: Sequence[Taken]) -> str:
        """Hold the answer to a take against all that it must be. Returns for which handler the worker is apart."""
        there = self.eligible(take)
        free = [turn for turn in there if not turn.piece.suspect]
        if take.limit == 0 or not take.handlers:
            assert not taken, f"nothing was asked for, and {taken} came"
            return ""
        if take.idle:
            self.rejoin(worker)
        if worker in self.apart:
            apart = self.apart[worker]
            lonely = [one for one in self.running() if one.suspect and one.company == 1]
            if not apart.works and apart.name not in {f"{one.queue}|{one.handler}" for one in lonely}:
                del self.apart[worker]  # another one took it, or it cannot be taken now
            if self.stands_apart(worker):
                assert not taken, f"{worker} is set apart, and was handed {taken}"
                return apart.name
        came = list(taken)
        suspects = self._take_suspects(worker, take, came, fresh=bool(free))
        if not self.stands_apart(worker):
            room = take.limit - suspects
            assert len(came) == min(room, len(free)), f"of {len(free)} ready, {room} places left: {taken}"
            for one in came:
                self._fly(worker, one, free)
            self._check_shares(take._replace(limit=room), came)
            if came:
                of_queue = {one for one in self.fresh_next if one[0] == take.queue}
                self._give_turns(of_queue | self._suspect_names(worker))
        assert not (self.stands_apart(worker) and came), f"{worker} is set apart, and was handed {taken}"
        if taken or self.stands_apart(worker):
            self.leases.setdefault(worker, self.now_ms + LEASE_MS)
        if len(taken) == take.limit or self.stands_apart(worker):
            # Suspects for which it is set apart are not told on: it comes itself, or the next sweep tells.
            self.bells |= {f"{take.queue}|{turn.piece.handler}" for turn in free if turn.piece in self.ready}
        return self.apart[worker].name if self.stands_apart(worker) else ""

    def stands_apart(self, worker: str) -> bool:
        apart = self.apart.get(worker)
        return apart is not None and (apart.works or apart.stands(self.now_ms))

    def _take_suspects(self, worker: str, take: Take, came: list[Taken], *, fresh: bool) -> int:
        """Take from the front of what came the suspects that must be there. Returns how many."""
        before = len(came)
        for handler in take.handlers:
            mine = [turn for turn in self.eligible(take) if turn.piece.handler == handler and turn.piece.suspect]
            room = take.limit - (before - len(came))
            if (
                not mine
                or not room
                or self.stands_apart(worker)
                or (fresh and (take.queue, handler) in self.fresh_next)
            ):
                continue
            row, n = self._few(worker, mine, room)
            if not n and not (
                (take.queue, handler) in self.fresh_next and self._must_wait(worker, take.queue, handler)
            ):
                row, n = self._alone(worker, take, handler, mine)
            assert len(came) >= n, f"{n} suspects of {handler} should have come"
            for _ in range(n):
                self._fly(worker, came.pop(0), row)
            if n and len(mine) > n:
                self.fresh_next.add((take.queue, handler))
                self.bells.add(f"{take.queue}|{handler}")
            elif n:
                self.fresh_next.discard((take.queue, handler))
            if n and worker in self.apart and self.apart[worker].works and not self._fresh_for(worker):
                self._give_turns(self._suspect_names(worker) - {(take.queue, handler)})
        if worker in self.apart and self.apart[worker].works:
            left = [turn.piece for turn in self.eligible(take) if turn.piece.suspect]
            self.bells |= {f"{piece.queue}|{piece.handler}" for piece in left}
        return before - len(came)

    def _few(self, worker: str, mine: Sequence[Turn], room: int) -> tuple[list[Turn], int]:
        """Which of a handler's suspects are next to be handed out beside other work, and how many of them."""
        in_hand = [piece.company for piece in self.books[worker] if piece.suspect]
        for company in COMPANY[:-1]:
            row = [turn for turn in mine if turn.piece.company == company]
            n = min(room, company - len(in_hand), len(row))
            if n > 0 and set(in_hand) <= {company}:
                return row, n
        return [], 0

    def _alone(self, worker: str, take: Take, handler: str, mine: Sequence[Turn]) -> tuple[list[Turn], int]:
        """The same of those that must be alone; the worker is set apart for one, if it may be."""
        row, works = [turn for turn in mine if turn.piece.company == 1], take.idle and not self.books[worker]
        own = self.apart.get(worker)
        somebody = any(apart.stands(self.now_ms) for one, apart in self.apart.items() if one != worker)
        if not row or not (works or not (somebody or (own and own.stands(self.now_ms, 2)))):
            return [], 0
        patience_ms = min(2 * own.patience_ms, 10 * PATIENCE_MS) if own and not works else PATIENCE_MS
        self.apart[worker] = Apart(take.queue, handler, works, self.now_ms, patience_ms)
        return row, int(works)

    def _served(self, worker: str) -> list[Piece]:
        """What is ready and not paused, of all that the worker serves."""
        names = self.serving.get(worker, frozenset())
        return [one for one in self.running() if f"{one.queue}|{one.handler}" in names]

    def _fresh_for(self, worker: str) -> bool:
        return any(not one.suspect for one in self._served(worker))

    def _suspect_names(self, worker: str) -> set[tuple[str, str]]:
        return {(one.queue, one.handler) for one in self._served(worker) if one.suspect}

    def _must_wait(self, worker: str, queue: str, handler: str) -> bool:
        """Whether it is another's turn, of those that the worker serves: of fresh work, or of another lonely suspect."""
        lonely = {(one.queue, one.handler) for one in self._served(worker) if one.suspect and one.company == 1}
        return self._fresh_for(worker) or bool(lonely - self.fresh_next - {(queue, handler)})

    def _give_turns(self, names: set[tuple[str, str]]) -> None:
        self.bells |= {f"{queue}|{handler}" for queue, handler in names & self.fresh_next}
        self.fresh_next -= names

    def running(self) -> list[Piece]:
        """What is ready and not paused."""
        return [one for one in self.ready if not self.paused & {one.queue, f"{one.queue}|{one.handler}"}]

    def _fly(self, worker: str, one: Taken, choice: Iterable[Turn]) -> None:
        piece = self.pieces[name_of(one)]
        owners = [owner for owner, books in self.books.items() if piece in books]
        assert not owners, f"{worker} was handed {one}, which {owners} hold"
        turn = self.ready.get(piece)
        assert turn is not None, f"{one} was handed out, and is {piece.state}"
        assert turn in choice, f"{worker} was handed {one}, which it must not have now"
        assert not piece.key or self.lanes[piece.lane][0] is piece, f"{one} is not the head of its lane"
        for other in choice:
            if other is not turn and other.piece in self.ready and _stand_together(other.piece, piece):
                assert turn in other.before, f"{piece} was handed out before {other.piece}, whose turn it was"
        del self.ready[piece]
        expected = (piece.route, piece.key, piece.lost, piece.notes, piece.number or one.job)
        assert (one.route, one.key, one.lost, one.notes, one.job) == expected, f"{one} should be {piece}"
        piece.state, piece.number = "flying", one.job
        assert self.numbers.setdefault(one.job, piece) is piece, f"two jobs have the number {one.job}"
        self.books[worker][piece] = one.ticket

    def _check_shares(self, take: Take, taken: Sequence[Taken]) -> None:
        """One take: priority by priority, and no handler is served much while another's work is left lying."""
        left = Counter(
            (turn.piece.priority, turn.piece.handler) for turn in self.eligible(take) if not turn.piece.suspect
        )
        got = Counter((one.route.priority, one.route.handler) for one in taken)
        running = [one for one in take.handlers if f"{take.queue}|{one}" not in self.paused]
        order = [one.route.priority for one in taken]
        assert order == sorted(order), f"priorities are mixed: {taken}"
        room = take.limit
        for priority in range(3):
            of_this = [got[priority, handler] for handler in running]
            for handler in running:
                if left[priority, handler]:
                    assert not order or order[-1] <= priority, (
                        f"{priority} of {handler} was left for lower ones: {taken}"
                    )
                    share = -(-room // len(running))
                    assert max(of_this) - got[priority, handler] <= share, f"{handler} had too little of {taken}"
            room -= sum(of_this)

    # settle

    def settle(self, worker: str, settlement: Settlement) -> bool:
        piece = self.numbers.get(settlement.job)
        if piece is None or self.books[worker].get(piece) != settlement.ticket:
            return False
        del self.books[worker][piece]
        suspect = piece.suspect
        if settlement.verdict == "back":
            self._make_ready(piece, first=True)
        elif settlement.verdict == "ack":
            self._end(piece, "over")
            self._leave_lane(piece)
        else:
            piece.notes = settlement.notes
            if settlement.verdict == "dead":
                self._die(piece, next(self._deaths))
            elif settlement.verdict == "retry" and piece.key:
                self._delay(piece, self.now_ms + settlement.delay_ms, "held")
            else:
                self._leave_lane(piece)
                self._delay(piece, self.now_ms + settlement.delay_ms)
        if suspect and any(one.suspect and one.lane[:2] == piece.lane[:2] for one in self.ready):
            self.bells.add(f"{piece.queue}|{piece.handler}")  # another one may come in its place
        return True

    def _die(self, piece: Piece, death: int) -> None:
        self._end(piece, "dead")
        piece.died_ms, piece.death = self.now_ms, death
        self._leave_lane(piece)

    # leases and time

    def beat(
        self,
        worker: str,
        lease_ms: int,
        received: int,
        held: Sequence[tuple[str, int]],
        *,
        stopping: bool,
        serves: Sequence[str],
    ) -> Beat:
        """The answer, with a time for the next due that is right to the minute."""
        (self.stopping.add if stopping else self.stopping.discard)(worker)
        self.serving[worker] = frozenset(serves)
        if stopping and worker in self.apart and not self.apart[worker].works:
            del self.apart[worker]
        books = self.books[worker]
        strays = [piece for piece, ticket in books.items() if ticket <= received and (piece.number, ticket) not in held]
        self._hand_back(worker, strays)
        if not held:
            self.rejoin(worker)
        forgotten = worker not in self.leases
        self.leases[worker] = self.now_ms + lease_ms
        buried_before = {piece.number for piece in self.letters()}
        recovered = self._recover([one for one, ends_ms in self.leases.items() if ends_ms <= self.now_ms])
        buried = sorted({piece.number for piece in self.letters()} - buried_before)
        for due in sorted(self.due, key=lambda each: each.at_ms):
            if due.at_ms <= self.now_ms:
                self.due.remove(due)
                (self._make_ready if due.piece.state == "held" else self._join)(due.piece)
        for piece in self.letters():
            if piece.died_ms <= self.now_ms - RETENTION_MS:
                piece.state = "over"
        self.bells |= {f"{piece.queue}|{piece.handler}" for piece in self.ready}
        next_due_ms = min((due.at_ms - self.now_ms for due in self.due), default=None)
        return Beat(next_due_ms, recovered, len(strays), forgotten, buried)

    def _hand_back(self, worker: str, pieces: Sequence[Piece]) -> None:
        for piece in reversed(pieces):
            del self.books[worker][piece]
            self._make_ready(piece, first=True)

    def _recover(self, gone: Iterable[str]) -> int:
        """Everything to the head of its lane, or to the dead; between two workers' jobs there is no order."""
        death, came_by, recovered = next(self._deaths), list[set[Turn]](), 0
        for worker in gone:
            before = set(self.ready.values())
            lost = self.leave(worker, count_lost=worker not in self.stopping, death=death)
            recovered += lost
            came_by.append(set(self.ready.values()) - before)
        for mine in came_by:
            for turn in mine:
                turn.before |= {other for others in came_by if others is not mine for other in others}
        return recovered

    def leave(self, worker: str, *, count_lost: bool = False, death: int = 0) -> int:
        pieces = list(self.books[worker])
        for piece in reversed(pieces):
            piece.lost += count_lost
            if count_lost and piece.lost >= MAX_LOST:
                del self.books[worker][piece]
                self._die(piece, death)
            else:
                self._hand_back(worker, [piece])
        del self.books[worker]
        self.apart.pop(worker, None)
        self.serving.pop(worker, None)
        self.leases.pop(worker, None)
        self.stopping.discard(worker)
        return len(pieces)

    def rejoin(self, *workers: str) -> None:
        """Whoever was set apart and holds nothing any more is so no longer."""
        for worker in workers:
            if not self.books.get(worker):
                self.apart.pop(worker, None)

    # dead letters, clearing, looking

    def letters(self) -> list[Piece]:
        return [piece for piece in self.pieces.values() if piece.state == "dead"]

    def replay(self, piece: Piece, notes: bytes) -> None:
        piece.lost, piece.notes = 0, notes
        self.ends[piece.name] -= 1
        self._join(piece)

    def flush(self, queue: str, handler: str) -> int:
        def is_meant(its_queue: str, its_handler: str) -> bool:
            return its_queue == queue and handler in ("", its_handler)

        dropped = [one for one in self.pieces.values() if is_meant(one.queue, one.handler) and one.unfinished]
        for piece in dropped:
            self._end(piece, "over")
            self.ready.pop(piece, None)
            self.lanes.pop(piece.lane, None)
            for books in self.books.values():
                books.pop(piece, None)
        self.due = [due for due in self.due if not is_meant(due.piece.queue, due.piece.handler)]
        self.fresh_next = {one for one in self.fresh_next if not is_meant(*one)}
        return len(dropped)

    def resume(self, name: str) -> bool:
        changed = name in self.paused
        self.paused.discard(name)
        self.bells |= {
            f"{one.queue}|{one.handler}" for one in self.ready if name in (one.queue, f"{one.queue}|{one.handler}")
        }
        return changed

    def must_ring(self, name: str) -> bool:
        """Whether a wait for this name must end at once."""
        queue, handler = name.split("|")
        ready = any((piece.queue, piece.handler) == (queue, handler) for piece in self.ready)
        return ready and name in self.bells and not self.paused & {queue, name}

    def counts(self, queue: str, handler: str) -> Any:
        mine = [one for one in self.pieces.values() if (one.queue, one.handler) == (queue, handler) and one.unfinished]
        states = Counter(piece.state for piece in mine)
        ready = sum(1 for piece in mine if piece in self.ready and not piece.suspect)
        flying = {worker: sum(piece in books for piece in mine) for worker, books in self.books.items()}
        suspects = sum(1 for piece in mine if piece in self.ready and piece.suspect)
        in_flight = {worker: n for worker, n in flying.items() if n}
        return len(mine), ready, states["delayed"], states["held"], suspects, in_flight


def _stand_together(one: Piece, other: Piece) -> bool:
    """Whether the two are called in turn. A handler's suspects stand in rows of their own, by their company."""
    if not (one.suspect and other.suspect):
        return one.suspect == other.suspect and one.route == other.route
    return (one.queue, one.handler, one.company) == (other.queue, other.handler, other.company)


def name_of(one: Any) -> bytes:
    """A job's name in the model: an event's bytes go to several handlers."""
    body: bytes = one.body
    return body + b" " + one.route.handler.encode() if body.startswith(b"e") else body


# -- the machine -------------------------------------------------------------------------------------------------------


class World(Protocol):
    """A store, and a way to have its time pass."""

    store: Store

    def travel(self, ms: int) -> None: ...

    def leftovers(self) -> list[str]: ...


class Player:
    """A worker: its name, its tickets, and what is in its hands, which may be less than the store believes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tickets = 0
        self.hands: list[Taken] = []

    def ticket(self) -> int:
        self.tickets += 1
        return self.tickets


queues, handlers, keys = st.sampled_from(QUEUES), st.sampled_from(HANDLERS), st.sampled_from(KEYS)
priorities = st.sampled_from([1, 1, 0, 2])
places = st.integers(0, PLACES - 1)
picks = st.integers(0, 1_000)
hours = st.sampled_from([0, 0, 1, 2])
names = st.sampled_from([*QUEUES, *NAMES])
verdicts: st.SearchStrategy[Verdict] = st.sampled_from(["ack", "ack", "retry", "pass", "dead", "back"])
TROUBLES: tuple[Verdict, ...] = ("retry", "pass", "dead", "retry")
wishes = st.tuples(
    st.sampled_from(["q", "q", "q2"]),
    st.sampled_from([HANDLERS, HANDLERS, HANDLERS[::-1], HANDLERS[:2], HANDLERS[1:], HANDLERS[2:], ()]),
    st.sampled_from([1, 2, 3, 4, 6, 9, 0]),
)
Wish = tuple[str, tuple[str, ...], int]


class Queueing(RuleBasedStateMachine):
    def __init__(self, make_world: Callable[[], World]) -> None:
        super().__init__()
        self.world = make_world()
        self.store = self.world.store
        self.model = Model()
        self.players = [Player(f"w{place}") for place in range(PLACES)]
        self.sweeper = Player("sweeper")
        self.jobs: list[Job] = []
        self.posts: list[Post] = []
        self.answers: list[tuple[str, Settlement]] = []
        """Settlements that were made, and by whom."""
        self._bodies = count(1)
        self._moments = count(1)
        self._names = count(PLACES)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # what has failed is not to fail again
                self._everything_ends()
        finally:
            self.store.close()

    def _later(self, in_hours: int) -> int:
        """A delay for the middle of that hour, or of the last one; a later call gives a later time of that hour."""
        return in_hours * HOUR_MS - HOUR_MS // 2 + 100 * next(self._moments)

    # in

    @initialize(load=st.lists(st.tuples(handlers, keys, priorities), max_size=12))
    def a_full_queue(self, load: list[tuple[str, str, int]]) -> None:
        for handler, key, priority in load:
            self.enqueue("q", handler, key, priority, 0)

    @rule(queue=queues, handler=handlers, key=keys, priority=priorities, in_hours=hours)
    def enqueue(self, queue: str, handler: str, key: str, priority: int, in_hours: int) -> None:
        delay_ms = self._later(in_hours) if in_hours else None
        body = b"%d" % next(self._bodies)
        due = f"+{delay_ms}" if delay_ms is not None else ""
        job = Job(f"job {len(self.jobs)}", Route(queue, handler, priority), key, body, due)

        assert self.store.enqueue(job, WINDOW_MS) is True

        self.jobs.append(job)
        self._accept(Piece(body, queue, handler, key, priority), delay_ms)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def enqueue_again(self, pick: int) -> None:
        assert self.store.enqueue(self.jobs[pick % len(self.jobs)], WINDOW_MS) is False

    @rule(
        queue=queues,
        keys_of_each=st.lists(st.tuples(keys, keys), min_size=1, max_size=3),
        priority=priorities,
        in_hours=hours,
        again=st.none() | picks,
    )
    def append(
        self, queue: str, keys_of_each: list[tuple[str, str]], priority: int, in_hours: int, again: int | None
    ) -> None:
        """Some events for two handlers each, and perhaps one that is known already."""
        delay_ms = self._later(in_hours) if in_hours else None
        due = f"+{delay_ms}" if delay_ms is not None else ""
        routes = [Route(queue, handler, priority) for handler in HANDLERS[:2]]
        posts = [
            post(
                b"%d" % next(self._bodies),
                id=f"event {next(self._moments)}",
                jobs=zip(routes, each, strict=True),
                due=due,
            )
            for each in keys_of_each
        ]
        repeated = [self.posts[again % len(self.posts)]] if again is not None and self.posts else []

        appended = append(self.store, batch(*repeated, *posts, window_ms=WINDOW_MS))

        assert [one.duplicate for one in appended] == [True] * len(repeated) + [False] * len(posts)
        self.posts += posts
        for each in posts:
            for route, key in each.jobs:
                name = b"e" + each.body + b" " + route.handler.encode()
                self._accept(Piece(name, *route[:2], key, priority), delay_ms)

    def _accept(self, piece: Piece, delay_ms: int | None) -> None:
        self.model.accept(piece, None if delay_ms is None else self.model.now_ms + delay_ms)

    # take and settle

    @rule(
        place=places, some=st.lists(wishes, min_size=1, max_size=2), answered=st.sampled_from([True, True, True, False])
    )
    def take(self, place: int, some: list[Wish], answered: bool) -> None:  # noqa: FBT001 - whether the answer arrives
        self._exchange(self.players[place], [], some, answered=answered)

    @rule(place=places, wish=wishes)
    def wake_up_and_take(self, place: int, wish: Wish) -> None:
        """Who leaves something lying has to pass the wake-up on."""
        self.listen()
        self._exchange(self.players[place], [], [wish])
        self.listen()

    @rule(
        place=places,
        some=st.lists(st.tuples(picks, verdicts, hours), min_size=1, max_size=4),
        then=st.lists(wishes, max_size=2),
    )
    def settle_and_take(self, place: int, some: list[tuple[int, Verdict, int]], then: list[Wish]) -> None:
        player = self.players[place]
        ends = {pick % len(player.hands): (verdict, late) for pick, verdict, late in some if player.hands}
        self._exchange(player, [self._end(player.hands[at], *how) for at, how in ends.items()], then)

    @rule(place=places, wish=wishes, verdict=verdicts)
    def work(self, place: int, wish: Wish, verdict: Verdict) -> None:
        """Take, and settle all at once; then the next, with what comes free."""
        player = self.players[place]
        self._exchange(player, [], [wish])
        self._exchange(player, [self._end(one, verdict, 0) for one in player.hands], [wish])

    @precondition(lambda self: any(piece.suspect for piece in self.model.ready))
    @rule(
        pick=picks,
        limit=st.sampled_from([1, 3]),
        idle=places,
        flush=st.sampled_from([False, False, True]),
        leaps=st.lists(st.just(1), max_size=6),
    )
    def all_ask_beside_suspects(self, pick: int, limit: int, idle: int, flush: bool, leaps: list[int]) -> None:  # noqa: FBT001 - at times
        """For what a suspect's queue has, twice; all but one after holding something else, if that can be had.

        Then once more after a while, again and again: who makes room in vain does not stand apart for ever.
        """
        suspects = [piece for piece in self.model.ready if piece.suspect]
        piece = suspects[pick % len(suspects)]
        others = tuple(handler for handler in HANDLERS if handler != piece.handler)
        for place, player in enumerate(self.players):
            first = [(piece.queue, others, limit)] if place != idle else []
            self.listen()
            self._exchange(player, [], [*first, (piece.queue, HANDLERS, limit), (piece.queue, HANDLERS, limit)])
        self.listen()
        if flush:
            self._flush(piece.queue)
            for player in self.players:
                self._exchange(player, [], [(piece.queue, HANDLERS, limit)])
        for hours in leaps:
            for player in self.players:
                self._beat(player, player.tickets, LONG_LEASE_MS)
            self._travel(hours * HOUR_MS)
            for player in self.players:
                self._exchange(player, [], [(piece.queue, HANDLERS, limit)])
        player = self.players[idle]
        self._exchange(player, [self._end(one, "ack", 0) for one in player.hands], [(piece.queue, HANDLERS, limit)])

    @rule(place=places, verdict=st.sampled_from(TROUBLES), in_hours=hours)
    def settle_all(self, place: int, verdict: Verdict, in_hours: int) -> None:
        player = self.players[place]
        self._exchange(player, [self._end(one, verdict, in_hours) for one in player.hands], [])

    @precondition(lambda self: any(player.hands for player in self.players))
    @rule(pick=picks, verdict=verdicts, other=verdicts)
    def settle_twice_at_once(self, pick: int, verdict: Verdict, other: Verdict) -> None:
        able = [player for player in self.players if player.hands]
        player = able[pick % len(able)]
        one = player.hands[pick % len(player.hands)]
        self._exchange(player, [self._end(one, verdict, 0), self._end(one, other, 0)], [])

    @precondition(lambda self: any(player.hands for player in self.players))
    @rule(pick=picks, verdict=verdicts, off_by=st.sampled_from([-1, 1]))
    def settle_under_another_ticket(self, pick: int, verdict: Verdict, off_by: int) -> None:
        able = [player for player in self.players if player.hands]
        player = able[pick % len(able)]
        one = player.hands[pick % len(player.hands)]
        settlement = self._end(one, verdict, 0)
        self._exchange(player, [settlement._replace(ticket=one.ticket + off_by)], [])

    @precondition(lambda self: self.answers)
    @rule(pick=picks, verdict=verdicts, place=st.none() | places, newer=st.sampled_from([0, 0, 1]))
    def settle_what_was_settled(self, pick: int, verdict: Verdict, place: int | None, newer: int) -> None:
        """Again, late, by somebody else or under another ticket: the model knows who has the right."""
        worker, old = self.answers[-1 - pick % min(len(self.answers), 12)]
        player = next((one for one in self.players if one.name == worker), self.players[0])
        player = player if place is None else self.players[place]
        settlement = self._end(old, verdict, 0)._replace(ticket=old.ticket + newer)
        self._exchange(player, [settlement], [])

    def _end(self, one: Taken | Settlement, verdict: Verdict, in_hours: int) -> Settlement:
        moment = self._later(in_hours)
        return Settlement(one.job, one.ticket, verdict, moment, b"notes %d" % moment)

    def _exchange(
        self, player: Player, settlements: list[Settlement], some: Sequence[Wish], *, answered: bool = True
    ) -> Exchange:
        over = {(each.job, each.ticket) for each in settlements}
        player.hands = [one for one in player.hands if (one.job, one.ticket) not in over]
        takes = [Take(player.ticket(), *wish, idle=not player.hands) for wish in some]
        self._travel(SECOND_MS)

        answer = self.store.exchange(player.name, settlements, takes)

        expected = [self.model.settle(player.name, settlement) for settlement in settlements]
        assert answer.settled == expected, f"{player.name} settled {settlements}"
        if settlements:
            self.model.rejoin(player.name)
        came: defaultdict[int, list[Taken]] = defaultdict(list)
        for one in answer.taken:
            came[one.ticket].append(one)
        aparts = [self.model.take(player.name, take, came.pop(take.ticket, [])) for take in takes]
        assert not came, f"nobody asked for {came}"
        assert answer.apart == next(filter(None, aparts), "")
        self.answers += [(player.name, settlement) for settlement in settlements]
        if answered:
            player.hands += answer.taken
        else:
            self.answers += [(player.name, Settlement(one.job, one.ticket, "ack")) for one in answer.taken]
        return answer

    # leases and time

    @rule(
        place=places,
        dropped=st.sampled_from([0, 0, 0, 1, 2]),
        on_its_way=st.booleans(),
        long=st.booleans(),
        stopping=st.sampled_from([False, False, False, True]),
    )
    def beat(self, place: int, dropped: int, on_its_way: bool, long: bool, stopping: bool) -> None:  # noqa: FBT001 - two by two
        """With what is in the hands (some may have slipped), and with the last answer received or on its way."""
        player = self.players[place]
        player.hands = player.hands[dropped:]
        self._beat(player, player.tickets - on_its_way, LONG_LEASE_MS if long else LEASE_MS, stopping=stopping)

    def _beat(self, player: Player, received: int, lease_ms: int, *, stopping: bool = False) -> None:
        held = [(one.job, one.ticket) for one in player.hands]
        self._travel(SECOND_MS)
        serves = (NAMES, NAMES[:3], ())[received % 3]
        found = self.store.beat(player.name, lease_ms, received, held, MAX_LOST, serves=serves, stopping=stopping)

        expected = self.model.beat(player.name, lease_ms, received, held, stopping=stopping, serves=serves)
        found = found._replace(buried=sorted(found.buried))  # between two workers' jobs there is no order
        assert found[1:] == expected[1:], f"a beat of {player.name} found {found}, and {expected} was to be found"
        assert (found.next_due_ms is None) == (expected.next_due_ms is None)
        if found.next_due_ms is not None and expected.next_due_ms is not None:
            assert 0 <= expected.next_due_ms - found.next_due_ms < HOUR_MS // 4, f"{found}, {expected}"

    @rule()
    def sweep(self) -> None:
        self._beat(self.sweeper, 0, LEASE_MS)

    @rule(in_hours=st.sampled_from([1, 1, 1, 2]))
    def time_passes(self, in_hours: int) -> None:
        self._travel(in_hours * HOUR_MS)

    @precondition(lambda self: self.model.letters())
    @rule()
    def a_week_passes(self) -> None:
        self._travel(RETENTION_MS)
        self.sweep()

    def _travel(self, ms: int) -> None:
        self.world.travel(ms)
        self.model.now_ms += ms

    @rule(place=places)
    def crash(self, place: int) -> None:
        """Never to be heard of again; another comes in its place."""
        self.players[place] = Player(f"w{next(self._names)}")

    @rule(place=places)
    def lose_the_lease(self, place: int) -> None:
        """All others beat, this one does not; it lives on, with jobs in its hands that are no longer its own."""
        self._travel(2 * HOUR_MS)
        for player in [*self.players[:place], *self.players[place + 1 :], self.sweeper]:
            self._beat(player, 0, LONG_LEASE_MS)

    @rule(place=places, wish=wishes)
    def take_on_without_a_heart(self, place: int, wish: Wish) -> None:
        """Takes begin a lease, and do not renew it."""
        self._exchange(self.players[place], [], [wish])
        self._travel(HOUR_MS)
        self._exchange(self.players[place], [], [wish])
        self.sweep()

    @rule(place=places, wish=wishes, times=st.integers(1, MAX_LOST))
    def kill_again_and_again(self, place: int, wish: Wish, times: int) -> None:
        """Whoever takes it dies of it."""
        for _ in range(times):
            self._exchange(self.players[place], [], [wish])
            self.lose_the_lease(place)
            self.crash(place)

    @rule(
        queue=queues, handler=handlers, place=places, some=st.integers(2, 6), times=st.integers(SUSPECT, MAX_LOST - 1)
    )
    def suspects_beside_fresh_work(self, queue: str, handler: str, place: int, some: int, times: int) -> None:
        for _ in range(some):
            self.enqueue(queue, handler, "", 1, 0)
        self.kill_again_and_again(place, (queue, (handler,), 9), times)
        for _ in range(some):
            self.enqueue(queue, handler, "", 1, 0)

    @rule(place=places)
    def leave(self, place: int) -> None:
        player = self.players[place]

        assert self.store.leave(player.name) == self.model.leave(player.name)

        self.answers += [(player.name, Settlement(one.job, one.ticket, "ack")) for one in player.hands]
        player.hands.clear()

    # people and tools

    @rule(name=names, again=st.booleans())
    def pause(self, name: str, again: bool) -> None:  # noqa: FBT001 - twice, half the time
        for _ in range(1 + again):
            assert self.store.pause(name) is (name not in self.model.paused)
            self.model.paused.add(name)

    @precondition(lambda self: self.model.paused)
    @rule(name=names)
    def resume_all(self, name: str) -> None:
        """And one that may not be paused."""
        for each in [*sorted(self.model.paused), name]:
            self._resume(each)

    def _resume(self, name: str) -> None:
        """Whoever heard of the work meanwhile could not take it: all are told again."""
        for one in NAMES:
            if name in (one, one.split("|")[0]) and one in self.model.bells:
                self.store.wait([one], 0)
                self.model.bells.discard(one)
        assert self.store.resume(name) is self.model.resume(name)
        self.listen()

    @precondition(lambda self: self.model.numbers)
    @rule(some=st.lists(picks, min_size=1, max_size=3))
    def replay(self, some: list[int]) -> None:
        pieces = self._numbered(some)
        expected = [piece.state == "dead" and pieces.index(piece) == at for at, piece in enumerate(pieces)]

        assert self.store.replay([(piece.number, b"anew %d" % at) for at, piece in enumerate(pieces)]) == expected

        for at, piece in enumerate(pieces):
            if expected[at]:
                self.model.replay(piece, b"anew %d" % at)

    @precondition(lambda self: self.model.numbers)
    @rule(some=st.lists(picks, min_size=1, max_size=3))
    def drop(self, some: list[int]) -> None:
        pieces = self._numbered(some)
        expected = [piece.state == "dead" and pieces.index(piece) == at for at, piece in enumerate(pieces)]

        assert self.store.drop([piece.number for piece in pieces]) == expected

        for piece in pieces:
            piece.state = "over" if piece.state == "dead" else piece.state

    def _numbered(self, some: list[int]) -> list[Piece]:
        """Pieces that were handed out once: dead letters first, and others that must be refused."""
        of_all = sorted(self.model.numbers.values(), key=lambda piece: piece.state != "dead")
        among = of_all[: len(self.model.letters()) + 2]
        return [among[pick % len(among)] for pick in some]

    @rule(
        queue=queues,
        handler=st.sampled_from(["", *HANDLERS]),
        place=places,
        limit=st.sampled_from([0, 2, 6]),
        verdict=st.sampled_from(TROUBLES),
    )
    def flush(self, queue: str, handler: str, place: int, limit: int, verdict: Verdict) -> None:
        """With some of it delayed or held just before, and some in flight."""
        player = self.players[place]
        self._exchange(player, [], [(queue, HANDLERS, limit)])
        self._exchange(player, [self._end(one, verdict, 1) for one in player.hands[1:]], [])
        self._flush(queue, handler)

    def _flush(self, queue: str, handler: str = "") -> None:
        assert self.store.flush(queue, handler) == self.model.flush(queue, handler)

    @rule()
    def listen(self) -> None:
        """Wherever work is ready and nobody was told since, a wait ends at once; the next must be rung anew."""
        for name in NAMES:
            if self.model.must_ring(name):
                assert self.store.wait([name], 0).rang == name, f"work is ready at {name}, and nobody was rung"
                self.model.bells.discard(name)

    # what always holds

    @invariant()
    def all_is_counted(self) -> None:
        census = self.store.census()
        assert census.paused == self.model.paused
        found = {
            (one.queue, one.handler): (one.unfinished, one.ready, one.delayed, one.held, one.suspects, one.in_flight)
            for one in census.counts
            if one.unfinished or one.ready or one.delayed or one.held or one.in_flight
        }
        expected = {(queue, handler): self.model.counts(queue, handler) for queue in QUEUES for handler in HANDLERS}
        assert found == {name: counts for name, counts in expected.items() if counts[0]}

    @invariant()
    def the_dead_stand_newest_first(self) -> None:
        letters = self.store.dead(1_000)
        pieces = [self.model.pieces[name_of(one)] for one in letters]
        assert len(pieces) == len(set(pieces)) == self.store.dead_count(), f"{letters}"
        assert set(pieces) == set(self.model.letters())
        assert [piece.death for piece in pieces] == sorted((piece.death for piece in pieces), reverse=True)
        for one, piece in zip(letters, pieces, strict=True):
            expected = (piece.number, piece.route, piece.key, piece.notes, piece.lost)
            assert (one.job, one.route, one.key, one.notes, one.lost) == expected

    @invariant()
    def a_lane_has_one_in_flight(self) -> None:
        flying = Counter(piece.lane for books in self.model.books.values() for piece in books if piece.key)
        assert not flying or max(flying.values()) == 1

    @invariant()
    def suspects_are_among_their_like(self) -> None:
        for worker, books in self.model.books.items():
            companies = [piece.company for piece in books if piece.suspect]
            assert len(set(companies)) <= 1, f"{worker} holds {books}"
            assert len(companies) <= max(companies, default=0), f"{worker} holds {books}"
            assert companies != [1] or len(books) == 1, f"{worker} holds {books}"

    def _everything_ends(self) -> None:
        """Whatever was accepted and is not over can still be worked off, in order, and then nothing is left of it."""
        for name in list(self.model.paused):
            self._resume(name)
        for player in self.players:
            self.leave(self.players.index(player))
        while self.model.due or self.model.apart or any(self.model.books.values()):
            self._travel(2 * HOUR_MS)
            self.sweep()
        worker = Player("the last")
        while self.model.ready:
            wishes = [(queue, HANDLERS, 5) for queue in QUEUES]
            assert self._exchange(worker, [], wishes).taken, f"nobody is handed {list(self.model.ready)}"
            self._exchange(worker, [self._end(one, "ack", 0) for one in worker.hands], [])
        self.all_is_counted()
        self.the_dead_stand_newest_first()
        self.store.drop([piece.number for piece in self.model.letters()])
        assert all(not piece.unfinished for piece in self.model.pieces.values())
        assert set(self.model.ends) == set(self.model.pieces)
        assert not self.model.pieces or set(self.model.ends.values()) == {1}, "a job ended twice, or never"
        assert [self.store.pending(queue) for queue in QUEUES] == [0, 0]
        assert self.world.leftovers() == []


# -- the two worlds ----------------------------------------------------------------------------------------------------


class MemoryWorld:
    def __init__(self) -> None:
        self._clock = Clock()
        self.store: Store = MemoryStore(self._clock, lease_ms=LEASE_MS, company=COMPANY, patience_ms=PATIENCE_MS)

    def travel(self, ms: int) -> None:
        self._clock.travel(ms)

    def leftovers(self) -> list[str]:
        return []


class RedisWorld:
    """Times stand in sorted sets, and in the entries of those who stand apart: moved back, they are nearer.

    Somebody has beaten just now, always: a machine that stalls the test for some seconds must not look like a server that
    was away, which the first beat after it does not hold against anybody.
    """

    SHIFT = """
    for at = 3, #KEYS do
      local key = KEYS[at]
      for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ARGV[1], member) end
    end
    local aparts = redis.call('HGETALL', KEYS[2])
    for at = 1, #aparts, 2 do
      local since = string.match(aparts[at + 1], '|(%d+)|%d+$')
      local moved = string.gsub(aparts[at + 1], '|%d+|', '|' .. string.format('%d', since - ARGV[1]) .. '|', 1)
      redis.call('HSET', KEYS[2], aparts[at], moved)
    end
    local t = redis.call('TIME')
    if redis.call('HEXISTS', KEYS[1], 'b') == 1 then redis.call('HSET', KEYS[1], 'b', t[1] * 1000 + math.floor(t[2] / 1000)) end"""
    STAYS = (
        "meta",
        "pending",
        "workers",
        "serves",
        "stopping",
        "born",
        "wake:",
        "seen:",
        "sent:",
        "logs",
        "log:",
        "top:",
        "bindings",
    )

    def __init__(self, url: str, namespace: str, client: Any) -> None:
        store = RedisStore(url, namespace, lease_ms=LEASE_MS, company=COMPANY, patience_ms=PATIENCE_MS)
        self.store: Store = store
        self._client = client
        self._prefix = store.prefix

    def travel(self, ms: int) -> None:
        names = ("meta", "apart", "workers", "due", "dead")
        self._client.eval(self.SHIFT, len(names), *(self._prefix + name for name in names), ms)

    def leftovers(self) -> list[str]:
        """Keys that should have gone with the last job."""
        found = [key.decode().removeprefix(self._prefix) for key in self._client.keys(self._glob())]
        return [name for name in found if not name.startswith(self.STAYS)]

    def _glob(self) -> str:
        return self._prefix + "*"


@pytest.fixture
def make_world(mode: str, url: str, namespace: str) -> Iterator[Callable[[], World]]:
    if mode == "memory":
        yield MemoryWorld
        return
    examples = count()
    with redis.Redis.from_url(url) as client:
        yield lambda: RedisWorld(url, f"{namespace}.{next(examples)}", client)


@pytest.mark.timeout(60 + EXAMPLES)
def test_any_program_of_the_queue_side_does_what_the_model_says(make_world: Callable[[], World]) -> None:
    run_state_machine_as_test(
        lambda: Queueing(make_world),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
