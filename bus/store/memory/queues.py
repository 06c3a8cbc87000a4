"""Lanes, leases and dead letters in memory: what ``bus/store/lua`` does, step for step.

Callers hold the store's lock around every method.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from bus.store.base import PRIORITIES, SUSPECT, Census, Company, Count, Dead, Retrying, Route, Settlement, Take, Taken

__all__ = ["Queues"]

LONGEST = 10
"""How many times its first patience a worker has at the most, when it makes room again and again."""


class _Address(NamedTuple):
    route: Route
    key: str

    @property
    def lane(self) -> tuple[str, str, str]:
        return self.route.queue, self.route.handler, self.key

    @property
    def handler(self) -> str:
        return f"{self.route.queue}|{self.route.handler}"


class _Ready(NamedTuple):
    """An entry of a ready list: a lane's key, or a job that has no lane."""

    key: str
    job: str


class _Suspect(NamedTuple):
    """A job that is taken in small company, for its workers keep dying."""

    job: str
    address: _Address


class _Suspects:
    """Those of one handler, that are there."""

    def __init__(self, kinds: int) -> None:
        self.rows: list[deque[_Suspect]] = [deque() for _ in range(kinds)]
        """By how many leases they lost."""
        self.let_fresh_work_pass = False
        """Whether it is fresh work's turn."""

    def __len__(self) -> int:
        return sum(map(len, self.rows))


class _Apart(NamedTuple):
    """A worker is handed nothing: it works on a suspect alone, or makes room for one."""

    queue: str
    handler: str
    works: bool
    since_ms: int
    patience_ms: int

    @property
    def name(self) -> str:
        return f"{self.queue}|{self.handler}"


class _Held(NamedTuple):
    ticket: int
    address: _Address


class _Letter(NamedTuple):
    at_ms: int
    reason: str
    address: _Address


class Queues:
    """The queue side of one namespace. ``ring`` is called with a wake-up's name when it is due, ``ended`` with a job's."""

    def __init__(
        self, company: Company, patience_ms: int, ring: Callable[[str], None], ended: Callable[[str], None]
    ) -> None:
        self._company = company
        self._patience_ms = patience_ms
        self._ring = ring
        self._ended = ended
        self._numbers = count(1)
        self._jobs: dict[str, bytes] = {}
        self._notes: dict[str, bytes] = {}
        self._lost: defaultdict[str, int] = defaultdict(int)
        self._lanes: dict[tuple[str, str, str], deque[str]] = {}
        self._ready: defaultdict[Route, deque[_Ready]] = defaultdict(deque)
        # (due, job, address, whether the job holds its lane): the older job is first among what is due at once
        self._due: list[tuple[int, int, _Address, bool]] = []
        self._suspects: dict[str, _Suspects] = {}  # by queue|handler, of those that have some
        self._apart: dict[str, _Apart] = {}  # only while the worker holds something
        self._leases: dict[str, int] = {}
        self._stopping: set[str] = set()  # what these leave behind was not lost
        self.serving: dict[str, frozenset[str]] = {}
        self._held: defaultdict[str, OrderedDict[str, _Held]] = defaultdict(OrderedDict)
        self._letters: OrderedDict[str, _Letter] = OrderedDict()
        self._paused: set[str] = set()
        self.pending: dict[tuple[str, str], int] = {}

    # -- in ------------------------------------------------------------------------------------------------------------

    def add(self, route: Route, key: str, body: bytes, due_ms: int, now_ms: int) -> None:
        """Queue one job, now or when it is due."""
        job, address = str(next(self._numbers)), _Address(route, key)
        self._jobs[job] = body
        name = (route.queue, route.handler)
        self.pending[name] = self.pending.get(name, 0) + 1
        if due_ms > now_ms:
            self._delay(address, job, due_ms, holds_lane=False)
        else:
            self._join_lane(address, job)

    def _delay(self, address: _Address, job: str, due_ms: int, *, holds_lane: bool) -> None:
        heapq.heappush(self._due, (due_ms, int(job), address, holds_lane))
        self._ring("$due")

    def _join_lane(self, address: _Address, job: str) -> None:
        if address.key:
            lane = self._lanes.setdefault(address.lane, deque())
            lane.append(job)
            if len(lane) > 1:
                return
        self._offer(address, job)

    def _offer(self, address: _Address, job: str, *, first: bool = False) -> None:
        """A job can be taken: by itself, or as the head of its lane."""
        route, name = address.route, address.handler
        lost = self._lost.get(job, 0)
        if lost >= SUSPECT:
            rows = self._suspects.setdefault(name, _Suspects(len(self._company))).rows
            row, suspect = rows[self._row_of(lost)], _Suspect(job, address)
            row.appendleft(suspect) if first else row.append(suspect)
        else:
            ready, entry = self._ready[route], _Ready(address.key, "" if address.key else job)
            ready.appendleft(entry) if first else ready.append(entry)
        self._ring(name)

    def _leave_lane(self, address: _Address) -> None:
        """The head leaves for good; the next one is ready."""
        if not address.key:
            return
        lane = self._lanes[address.lane]
        lane.popleft()
        if lane:
            self._offer(address, lane[0])
        else:
            del self._lanes[address.lane]

    def _put_back(self, address: _Address, job: str) -> None:
        self._offer(address, job, first=True)

    # -- take and settle -----------------------------------------------------------------------------------------------

    def take(self, worker: str, wish: Take, now_ms: int, lease_ms: int) -> list[Taken]:
        """Suspects whose turn it is, and fresh work."""
        if wish.idle:
            self.rejoin(worker)
        if self._is_apart(worker, now_ms):
            return []
        most = zip(wish.handlers, wish.most or (wish.limit,) * len(wish.handlers), strict=True)
        left = {one: n for one, n in most if not self._paused & {wish.queue, f"{wish.queue}|{one}"}}
        taken = self._take_suspects(worker, wish, left, now_ms) if self._suspects else []
        apart = bool(self.apart_for(worker, now_ms))
        if not apart:
            taken += self._take_fresh(worker, wish._replace(limit=wish.limit - len(taken)), left)
        full = apart or len(taken) == wish.limit
        self._pass_on(wish.queue, [one for one, n in left.items() if full or not n])
        if taken or apart:
            self._leases.setdefault(worker, now_ms + lease_ms)
        return taken

    def _take_fresh(self, worker: str, wish: Take, left: dict[str, int]) -> list[Taken]:
        """Priority by priority, and within one, a turn for each handler. ``left`` says how many of each, and is counted down."""
        taken: list[Taken] = []
        for priority in range(PRIORITIES):
            found = True
            while found and left and len(taken) < wish.limit:
                found = False
                share = -(-(wish.limit - len(taken)) // len(left))
                for handler, most in left.items():
                    some = min(share, wish.limit - len(taken), most)
                    got = self._pop(worker, wish, Route(wish.queue, handler, priority), some)
                    left[handler] -= len(got)
                    taken += got
                    found = found or bool(got)
        if taken:
            self._end_fresh_turn(worker, wish.queue)
        return taken

    def _pop(self, worker: str, wish: Take, route: Route, limit: int) -> list[Taken]:
        ready, taken = self._ready.get(route), list[Taken]()
        while ready and len(taken) < limit:
            entry = ready.popleft()
            job = self._lanes[route.queue, route.handler, entry.key][0] if entry.key else entry.job
            taken.append(self._hand_out(worker, wish.ticket, job, _Address(route, entry.key)))
        return taken

    def _hand_out(self, worker: str, ticket: int, job: str, address: _Address) -> Taken:
        self._held[worker][job] = _Held(ticket, address)
        body, notes, lost = self._jobs[job], self._notes.get(job, b""), self._lost.get(job, 0)
        return Taken(job, ticket, address.route, address.key, body, notes, lost)

    def _take_suspects(self, worker: str, wish: Take, left: dict[str, int], now_ms: int) -> list[Taken]:
        """Of each handler whose suspects' turn it is: some, or one alone to a worker that holds nothing, or it is set apart."""
        fresh = self._any_fresh(f"{wish.queue}|{handler}" for handler in left)
        taken: list[Taken] = []
        for handler, most in left.items():
            name = f"{wish.queue}|{handler}"
            suspects, n = self._suspects.get(name), min(most, wish.limit - len(taken))
            if suspects is None or not n or (suspects.let_fresh_work_pass and fresh):
                continue
            if self.apart_for(worker, now_ms):
                break
            some = self._take_few(worker, wish.ticket, suspects, n)
            if not some and not (suspects.let_fresh_work_pass and self._must_wait(worker, name)):
                some = self._take_one_alone(worker, wish, handler, suspects, now_ms)
            left[handler] -= len(some)
            taken += some
            if some:
                self._end_suspects_turn(worker, name)
        if worker in self._apart and self._apart[worker].works:
            for name in self._suspects.keys() & {f"{wish.queue}|{one}" for one in left}:
                self._ring(name)  # they are for others
        return taken

    def _take_few(self, worker: str, ticket: int, suspects: _Suspects, limit: int) -> list[Taken]:
        """So many as may be lost together, of those that lost the fewest leases; never beside others that lost more or fewer."""
        in_hand = [self._row_of(self._lost[job]) for job in self._held[worker] if self._lost.get(job, 0) >= SUSPECT]
        for kind, (row, company) in enumerate(zip(suspects.rows[:-1], self._company, strict=False)):
            n = min(limit, company - len(in_hand), len(row))
            if n > 0 and set(in_hand) <= {kind}:
                return [self._hand_out(worker, ticket, *row.popleft()) for _ in range(n)]
        return []

    def _take_one_alone(self, worker: str, wish: Take, handler: str, suspects: _Suspects, now_ms: int) -> list[Taken]:
        row, works = suspects.rows[-1], wish.idle and not self._held.get(worker)
        patience_ms = self._patience_ms if works else self._patience_for_room(worker, now_ms)
        if not row or not patience_ms:
            return []
        self._apart[worker] = _Apart(wish.queue, handler, works, now_ms, patience_ms)
        return [self._hand_out(worker, wish.ticket, *row.popleft())] if works else []

    def _patience_for_room(self, worker: str, now_ms: int) -> int:
        """For how long a worker may be set apart to make room, one at a time; 0 for not now.

        Who has done so in vain is left in peace for as long again, and then tries for twice as long, up to
        ``LONGEST`` times as long as at first.
        """
        own = self._apart.get(worker)
        others = [apart.since_ms + apart.patience_ms for one, apart in self._apart.items() if one != worker]
        ends_ms = [*others, own.since_ms + 2 * own.patience_ms] if own else others
        if any(now_ms < end_ms for end_ms in ends_ms):
            return 0
        return min(2 * own.patience_ms, LONGEST * self._patience_ms) if own else self._patience_ms

    def _served(self, worker: str) -> set[str]:
        """What the worker takes work for, as its last beat told."""
        return {one for one in self.serving.get(worker, ()) if not self._paused & {one, one.partition("|")[0]}}

    def _any_fresh(self, names: Iterable[str]) -> bool:
        return any(self._any_ready(*name.split("|")) for name in names)

    def _must_wait(self, worker: str, name: str) -> bool:
        """Whether a suspect that must be alone, but whose turn it is not, has to wait.

        For fresh work of any handler that the worker serves, or for such a suspect of another one. This worker will ask for
        them, if nobody else does before.
        """
        served = self._served(worker)
        others = [self._suspects[other] for other in served - {name} if other in self._suspects]
        return any(other.rows[-1] and not other.let_fresh_work_pass for other in others) or self._any_fresh(served)

    def _end_suspects_turn(self, worker: str, name: str) -> None:
        """Suspects were handed out. Where there are more, the next turn is fresh work's, or else those of other handlers."""
        suspects = self._suspects[name]
        suspects.let_fresh_work_pass = True
        if suspects:
            self._ring(name)
        else:
            del self._suspects[name]
        apart, served = self._apart.get(worker), self._served(worker)
        if apart is not None and apart.works and not self._any_fresh(served):
            self._give_turn(served - {name})

    def _give_turn(self, names: Iterable[str]) -> None:
        for name in names:
            suspects = self._suspects.get(name)
            if suspects is not None and suspects.let_fresh_work_pass:
                suspects.let_fresh_work_pass = False
                self._ring(name)

    def _end_fresh_turn(self, worker: str, queue: str) -> None:
        """Fresh work was handed out: where it was its turn, it is that of suspects that the worker might have taken instead."""
        self._give_turn(self._served(worker) | {name for name in self._suspects if name.partition("|")[0] == queue})

    def _row_of(self, lost: int) -> int:
        return min(lost - SUSPECT, len(self._company) - 1)

    def _is_apart(self, worker: str, now_ms: int) -> bool:
        """Whether it still is: one that was set apart for a suspect that another one took is not."""
        apart = self._apart.get(worker)
        if apart is None:
            return False
        suspects, paused = self._suspects.get(apart.name), self._paused & {apart.queue, apart.name}
        if not apart.works and (suspects is None or not suspects.rows[-1] or paused):
            del self._apart[worker]
        return bool(self.apart_for(worker, now_ms))

    def apart_for(self, worker: str, now_ms: int) -> str:
        """The handler (``queue|handler``) for whose suspect a worker is set apart, or nothing."""
        apart = self._apart.get(worker)
        stands = apart is not None and (apart.works or now_ms < apart.since_ms + apart.patience_ms)
        return apart.name if apart is not None and stands else ""

    def rejoin(self, worker: str) -> None:
        """Whoever was set apart and holds nothing any more is so no longer."""
        if not self._held.get(worker):
            self._apart.pop(worker, None)

    def _pass_on(self, queue: str, handlers: Iterable[str]) -> None:
        """Whoever fills up with work left over passes the wake-up on."""
        for handler in handlers:
            if self._any_ready(queue, handler):
                self._ring(f"{queue}|{handler}")

    def _any_ready(self, queue: str, handler: str) -> bool:
        return any(self._ready.get(Route(queue, handler, priority)) for priority in range(PRIORITIES))

    def settle(self, worker: str, settlement: Settlement, now_ms: int) -> bool:
        """End one delivery; ``False`` where the worker does not hold that job under that ticket."""
        held = self._held[worker].get(settlement.job)
        if held is None or held.ticket != settlement.ticket:
            return False
        del self._held[worker][settlement.job]
        job, address = settlement.job, held.address
        suspect = self._lost.get(job, 0) >= SUSPECT
        match settlement.verdict:
            case "ack":
                self._finish(address)
                self._forget([job])
                self._leave_lane(address)
            case "back":
                self._put_back(address, job)
            case "dead":
                self._notes[job] = settlement.notes
                self._bury(job, "dead", address, now_ms)
            case "retry" if address.key:
                self._notes[job] = settlement.notes
                self._delay(address, job, now_ms + settlement.delay_ms, holds_lane=True)
            case _:
                self._notes[job] = settlement.notes
                self._leave_lane(address)
                self._delay(address, job, now_ms + settlement.delay_ms, holds_lane=False)
        if suspect and address.handler in self._suspects:
            self._ring(address.handler)  # another one may come in its place
        return True

    def _finish(self, address: _Address) -> None:
        self.pending[address.route.queue, address.route.handler] -= 1

    def _forget(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            self._jobs.pop(job, None)
            self._notes.pop(job, None)
            self._lost.pop(job, None)
            self._ended(job)

    def _bury(self, job: str, reason: str, address: _Address, now_ms: int) -> None:
        self._letters[job] = _Letter(now_ms, reason, address)
        self._finish(address)
        self._leave_lane(address)

    def keeps(self, job: str) -> bool:
        """Whether a job is there still, be it as a dead letter."""
        return job in self._jobs

    # -- leases and time -----------------------------------------------------------------------------------------------

    def knows(self, worker: str) -> bool:
        """Whether a worker has a lease in the books."""
        return worker in self._leases

    def may_collect(self, worker: str) -> bool:
        """Whether it may be handed work without an exchange, which alone knows of suspects, and of what is paused."""
        return self.knows(worker) and not (self._suspects or self._apart or self._paused)

    def beat(
        self,
        worker: str,
        lease_ends_ms: int | None,
        ticket: int,
        held: frozenset[tuple[str, int]],
        unanswered: frozenset[int],
    ) -> int:
        """Renew a lease (``None`` ends it) and hand back what the worker does not hold. Returns how many."""
        books = self._held[worker]
        lost = [
            job
            for job, record in books.items()
            if lease_ends_ms is None
            or (record.ticket <= ticket and record.ticket not in unanswered and (job, record.ticket) not in held)
        ]
        for job in reversed(lost):  # each to the head in turn, so they stand as they stood
            self._put_back(books.pop(job).address, job)
        if lease_ends_ms is None:
            self._strike_out(worker)
        else:
            self._leases[worker] = lease_ends_ms
            if not held:  # or it may be at work on what was struck out of the books
                self.rejoin(worker)
        return len(lost)

    def _strike_out(self, worker: str) -> None:
        self._leases.pop(worker, None)
        self._held.pop(worker, None)
        self._apart.pop(worker, None)
        self._stopping.discard(worker)
        self.serving.pop(worker, None)

    def stopping(self, worker: str, *, so: bool) -> None:
        """A worker says that it stops, or that it does not. Who takes nothing any more makes no room either."""
        self._stopping.add(worker) if so else self._stopping.discard(worker)
        if so and worker in self._apart and not self._apart[worker].works:
            del self._apart[worker]

    def recover(self, now_ms: int, max_lost: int) -> tuple[int, list[str]]:
        """Take back what the workers held whose lease ran out. Returns how many jobs, and those of them that it buried."""
        recovered, buried = 0, list[str]()
        for _, worker in sorted((ends_ms, worker) for worker, ends_ms in self._leases.items() if ends_ms <= now_ms):
            books, died = self._held.pop(worker, OrderedDict[str, _Held]()), worker not in self._stopping
            self._strike_out(worker)
            for job, record in reversed(books.items()):
                recovered += 1
                if died:
                    self._lost[job] += 1
                if died and self._lost[job] >= max_lost:
                    self._bury(job, "poison", record.address, now_ms)
                    buried.append(job)
                else:
                    self._put_back(record.address, job)
        return recovered, buried

    def promote(self, now_ms: int) -> int | None:
        """Move what is due to its lane. Returns in how many ms the next is due, ``None`` for never."""
        while self._due and self._due[0][0] <= now_ms:
            _, job, address, holds_lane = heapq.heappop(self._due)
            if holds_lane:
                self._offer(address, str(job))
            else:
                self._join_lane(address, str(job))
        return self._due[0][0] - now_ms if self._due else None

    def ring_again(self) -> None:
        """Ring wherever work is ready: whoever took the last ring may have died."""
        names = {f"{route.queue}|{route.handler}" for route, ready in self._ready.items() if ready}
        for name in names.union(self._suspects):
            if not self._paused & {name.partition("|")[0], name}:
                self._ring(name)

    def expire_letters(self, before_ms: int) -> None:
        """Drop dead letters older than that."""
        while self._letters and next(iter(self._letters.values())).at_ms <= before_ms:
            self._forget([self._letters.popitem(last=False)[0]])

    # -- pausing -------------------------------------------------------------------------------------------------------

    def pause(self, name: str) -> bool:
        """Have nothing of a queue or a handler taken any more; ``False`` where it was paused already."""
        changed = name not in self._paused
        self._paused.add(name)
        return changed

    def resume(self, name: str) -> bool:
        """Undo it; ``False`` where it was not paused."""
        changed = name in self._paused
        self._paused.discard(name)
        for queue, handler in self.pending:
            if name in (queue, f"{queue}|{handler}"):
                self._ring(f"{queue}|{handler}")
        return changed

    # -- looking and clearing ------------------------------------------------------------------------------------------

    def replay(self, job: str, notes: bytes) -> bool:
        """Make a dead letter work again, at the tail of its lane; ``False`` where there is none."""
        letter = self._letters.pop(job, None)
        if letter is None:
            return False
        self._lost.pop(job, None)
        self._notes[job] = notes
        route = letter.address.route
        name = (route.queue, route.handler)
        self.pending[name] = self.pending.get(name, 0) + 1
        self._join_lane(letter.address, job)
        return True

    def drop(self, job: str) -> bool:
        """Drop a dead letter; ``False`` where there is none."""
        if self._letters.pop(job, None) is None:
            return False
        self._forget([job])
        return True

    def dead_letter(self, job: str) -> Dead | None:
        """One dead letter."""
        letter = self._letters.get(job)
        return self._dead([(job, letter)])[0] if letter is not None else None

    def dead(self, limit: int, skip: int) -> list[Dead]:
        """The newest dead letters, newest first."""
        return self._dead(list(self._letters.items())[::-1][skip : skip + limit])

    def _dead(self, letters: list[tuple[str, _Letter]]) -> list[Dead]:
        return [
            Dead(
                job,
                letter.at_ms,
                letter.reason,
                letter.address.route,
                letter.address.key,
                self._jobs[job],
                self._notes.get(job, b""),
                self._lost.get(job, 0),
            )
            for job, letter in letters
        ]

    def census(self) -> Census:
        """How much work there is."""
        serving = {worker: names for worker, names in self.serving.items() if worker in self._leases}
        return Census(frozenset(self._paused), serving, [self._count(*name) for name in sorted(self.pending)])

    def retrying(self, limit: int, now_ms: int) -> list[Retrying]:
        """Lanes that wait for the retry of their head, the next due first."""
        held = sorted((due, job, address) for due, job, address, holds_lane in self._due if holds_lane)[:limit]
        return [
            Retrying(
                str(job),
                address.route,
                address.key,
                max(0, due - now_ms),
                len(self._lanes[address.lane]) - 1,
                self._jobs[str(job)],
                self._notes.get(str(job), b""),
            )
            for due, job, address in held
        ]

    def forget_idle(self, handlers: Iterable[str]) -> None:
        """No longer count handlers that have no work."""
        for name in [name for name, n in self.pending.items() if name[1] in handlers and n == 0]:
            del self.pending[name]

    def _count(self, queue: str, handler: str) -> Count:
        waiting = [holds_lane for _, _, address, holds_lane in self._due if address.lane[:2] == (queue, handler)]
        ready = [entries for route, entries in self._ready.items() if route[:2] == (queue, handler) and entries]
        heads = [self._lanes[queue, handler, each[0].key][0] if each[0].key else each[0].job for each in ready]
        books = {
            worker: sum(record.address.lane[:2] == (queue, handler) for record in records.values())
            for worker, records in self._held.items()
        }
        return Count(
            queue,
            handler,
            self.pending[queue, handler],
            sum(map(len, ready)),
            waiting.count(False),
            waiting.count(True),
            len(self._suspects.get(f"{queue}|{handler}", ())),
            {worker: n for worker, n in books.items() if n},
            self._jobs[min(heads, key=int)] if heads else b"",
        )

    def dead_count(self) -> int:
        """How many there are."""
        return len(self._letters)

    def flush(self, queue: str) -> int:
        """Drop all unfinished jobs of a queue."""
        dropped: list[str] = []
        for lane in [lane for lane in self._lanes if lane[0] == queue]:
            dropped += self._lanes.pop(lane)
        for books in self._held.values():
            for job in [job for job, record in books.items() if record.address.route.queue == queue]:
                if not books.pop(job).address.key:
                    dropped.append(job)
        for suspected in [name for name in self._suspects if name.partition("|")[0] == queue]:
            rows = self._suspects.pop(suspected).rows
            dropped += [suspect.job for row in rows for suspect in row if not suspect.address.key]
        for route in [route for route in self._ready if route.queue == queue]:
            dropped += [entry.job for entry in self._ready.pop(route) if entry.job]
        dropped += [str(job) for _, job, address, holds in self._due if not holds and address.route.queue == queue]
        self._due = [due for due in self._due if due[2].route.queue != queue]
        heapq.heapify(self._due)
        for name in [name for name in self.pending if name[0] == queue]:
            del self.pending[name]
        self._forget(dropped)
        return len(dropped)
