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
from bus.store.memory.suspects import Address, Suspects

__all__ = ["Queues"]


class _Ready(NamedTuple):
    """An entry of a ready list: a lane's key, or a job that has no lane."""

    key: str
    job: str


class _Held(NamedTuple):
    ticket: int
    address: Address


class _Letter(NamedTuple):
    at_ms: int
    reason: str
    address: Address


class Queues:
    """The queue side of one namespace. ``ring`` is called with a wake-up's name when it is due, ``ended`` with a job's."""

    def __init__(
        self, company: Company, patience_ms: int, ring: Callable[[str], None], ended: Callable[[str], None]
    ) -> None:
        self.ring = ring
        self._ended = ended
        self._numbers = count(1)
        self._jobs: dict[str, bytes] = {}
        self._notes: dict[str, bytes] = {}
        self._lost: defaultdict[str, int] = defaultdict(int)
        self._lanes: dict[tuple[str, str, str], deque[str]] = {}
        self._ready: defaultdict[Route, deque[_Ready]] = defaultdict(deque)
        # (due, job, address, whether the job holds its lane): the older job is first among what is due at once
        self._due: list[tuple[int, int, Address, bool]] = []
        self.suspects = Suspects(company, patience_ms, self)
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
        job, address = str(next(self._numbers)), Address(route, key)
        self._jobs[job] = body
        name = (route.queue, route.handler)
        self.pending[name] = self.pending.get(name, 0) + 1
        if due_ms > now_ms:
            self._delay(address, job, due_ms, holds_lane=False)
        else:
            self._join_lane(address, job)

    def _delay(self, address: Address, job: str, due_ms: int, *, holds_lane: bool) -> None:
        heapq.heappush(self._due, (due_ms, int(job), address, holds_lane))
        self.ring("$due")

    def _join_lane(self, address: Address, job: str) -> None:
        if address.key:
            lane = self._lanes.setdefault(address.lane, deque())
            lane.append(job)
            if len(lane) > 1:
                return
        self._offer(address, job)

    def _offer(self, address: Address, job: str, *, first: bool = False) -> None:
        """A job can be taken: by itself, or as the head of its lane."""
        route, name = address.route, address.handler
        lost = self._lost.get(job, 0)
        if lost >= SUSPECT:
            self.suspects.add(job, address, lost, first=first)
        else:
            ready, entry = self._ready[route], _Ready(address.key, "" if address.key else job)
            ready.appendleft(entry) if first else ready.append(entry)
        self.ring(name)

    def _leave_lane(self, address: Address) -> None:
        """The head leaves for good; the next one is ready."""
        if not address.key:
            return
        lane = self._lanes[address.lane]
        lane.popleft()
        if lane:
            self._offer(address, lane[0])
        else:
            del self._lanes[address.lane]

    def _put_back(self, address: Address, job: str) -> None:
        self._offer(address, job, first=True)

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, worker: str, wish: Take, now_ms: int, lease_ms: int) -> list[Taken]:
        """Suspects whose turn it is, and fresh work."""
        if wish.idle:
            self.rejoin(worker)
        if self.suspects.is_apart(worker, now_ms):
            return []
        most = zip(wish.handlers, wish.most or (wish.limit,) * len(wish.handlers), strict=True)
        left = {one: n for one, n in most if not self.is_paused(f"{wish.queue}|{one}")}
        taken = self.suspects.take(worker, wish, left, now_ms)
        apart = bool(self.suspects.apart_for(worker, now_ms))
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
            self.suspects.end_fresh_turn(worker, wish.queue)
        return taken

    def _pop(self, worker: str, wish: Take, route: Route, limit: int) -> list[Taken]:
        ready, taken = self._ready.get(route), list[Taken]()
        while ready and len(taken) < limit:
            entry = ready.popleft()
            job = self._lanes[route.queue, route.handler, entry.key][0] if entry.key else entry.job
            taken.append(self.hand_out(worker, wish.ticket, job, Address(route, entry.key)))
        return taken

    def hand_out(self, worker: str, ticket: int, job: str, address: Address) -> Taken:
        """The job is the worker's from now on."""
        self._held[worker][job] = _Held(ticket, address)
        body, notes, lost = self._jobs[job], self._notes.get(job, b""), self._lost.get(job, 0)
        return Taken(job, ticket, address.route, address.key, body, notes, lost)

    def rejoin(self, worker: str) -> None:
        """Whoever was set apart and holds nothing any more is so no longer."""
        if not self._held.get(worker):
            self.suspects.rejoin(worker)

    def _pass_on(self, queue: str, handlers: Iterable[str]) -> None:
        """Whoever fills up with work left over passes the wake-up on."""
        for handler in handlers:
            if self._any_ready(queue, handler):
                self.ring(f"{queue}|{handler}")

    def _any_ready(self, queue: str, handler: str) -> bool:
        return any(self._ready.get(Route(queue, handler, priority)) for priority in range(PRIORITIES))

    # -- what suspects ask (see suspects.py) ---------------------------------------------------------------------------

    def losses_in_hand(self, worker: str) -> list[int]:
        """How many leases the jobs have lost that the worker holds."""
        return [self._lost.get(job, 0) for job in self._held.get(worker, ())]

    def served(self, worker: str) -> set[str]:
        """What the worker takes work for, as its last beat told, without what is paused."""
        return {name for name in self.serving.get(worker, ()) if not self.is_paused(name)}

    def any_fresh(self, names: Iterable[str]) -> bool:
        """Whether work is ready for one of these, suspects aside."""
        return any(self._any_ready(*name.split("|")) for name in names)

    def is_paused(self, name: str) -> bool:
        """Whether a handler (``queue|handler``) is, or its queue."""
        return not self._paused.isdisjoint((name, name.partition("|")[0]))

    # -- settling ------------------------------------------------------------------------------------------------------

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
        if suspect and address.handler in self.suspects.names:
            self.ring(address.handler)  # another one may come in its place
        return True

    def _finish(self, address: Address) -> None:
        self.pending[address.route.queue, address.route.handler] -= 1

    def _forget(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            self._jobs.pop(job, None)
            self._notes.pop(job, None)
            self._lost.pop(job, None)
            self._ended(job)

    def _bury(self, job: str, reason: str, address: Address, now_ms: int) -> None:
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
        return self.knows(worker) and self.suspects.none and not self._paused

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
        self.suspects.rejoin(worker)
        self._stopping.discard(worker)
        self.serving.pop(worker, None)

    def stopping(self, worker: str, *, so: bool) -> None:
        """A worker says that it stops, or that it does not. Who takes nothing any more makes no room either."""
        self._stopping.add(worker) if so else self._stopping.discard(worker)
        if so:
            self.suspects.make_no_room(worker)

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
        for name in names.union(self.suspects.names):
            if not self.is_paused(name):
                self.ring(name)

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
                self.ring(f"{queue}|{handler}")
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
            self.suspects.count(f"{queue}|{handler}"),
            {worker: n for worker, n in books.items() if n},
            self._jobs[min(heads, key=int)] if heads else b"",
        )

    def dead_count(self) -> int:
        """How many there are."""
        return len(self._letters)

    def flush(self, queue: str, handler: str) -> int:
        """Drop all unfinished jobs of a queue, or of one handler on it."""
        names = [name for name in self.pending if name[0] == queue and handler in ("", name[1])]
        dropped: list[str] = []
        for lane in [lane for lane in self._lanes if lane[:2] in names]:
            dropped += self._lanes.pop(lane)
        for books in self._held.values():
            for job in [job for job, record in books.items() if record.address.route[:2] in names]:
                if not books.pop(job).address.key:
                    dropped.append(job)
        dropped += self.suspects.flush(map("|".join, names))
        for route in [route for route in self._ready if route[:2] in names]:
            dropped += [entry.job for entry in self._ready.pop(route) if entry.job]
        dropped += [str(job) for _, job, address, holds in self._due if not holds and address.route[:2] in names]
        self._due = [due for due in self._due if due[2].route[:2] not in names]
        heapq.heapify(self._due)
        for name in names:
            del self.pending[name]
        self._forget(dropped)
        return len(dropped)
