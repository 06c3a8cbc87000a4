"""Suspects in memory: jobs whose workers keep dying are taken in small company, and at last by one worker alone.

What of ``bus/store/lua/exchange.lua`` is about them, step for step. Callers hold the store's lock around every method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

from bus.store.base import SUSPECT, Company, Route, Take, Taken

__all__ = ["Address", "Around", "Suspects"]

LONGEST = 10
"""How many times its first patience a worker has at the most, when it makes room again and again."""


class Address(NamedTuple):
    """Where a job belongs."""

    route: Route
    key: str

    @property
    def lane(self) -> tuple[str, str, str]:
        """Its lane, of jobs with a key."""
        return self.route.queue, self.route.handler, self.key

    @property
    def handler(self) -> str:
        """``queue|handler``."""
        return f"{self.route.queue}|{self.route.handler}"


class Around(Protocol):
    """The queues around them."""

    def losses_in_hand(self, worker: str) -> list[int]:
        """How many leases the jobs have lost that the worker holds."""

    def served(self, worker: str) -> set[str]:
        """What it takes work for, as its last beat told: ``queue|handler``, without what is paused."""

    def any_fresh(self, names: Iterable[str]) -> bool:
        """Whether other work is ready for one of these."""

    def is_paused(self, name: str) -> bool:
        """Whether nothing of ``queue|handler`` is to be taken."""

    def ring(self, name: str) -> None:
        """There is work for whoever waits for this."""

    def hand_out(self, worker: str, ticket: int, job: str, address: Address) -> Taken:
        """The job is the worker's from now on."""


class _Suspect(NamedTuple):
    job: str
    address: Address


class _Rows:
    """Those of one handler that can be taken."""

    def __init__(self, kinds: int) -> None:
        self.rows: list[deque[_Suspect]] = [deque() for _ in range(kinds)]
        """By how many leases they lost."""
        self.let_fresh_work_pass = False
        """Whether it is fresh work's turn."""

    @property
    def lonely(self) -> deque[_Suspect]:
        """Those that must be alone."""
        return self.rows[-1]

    def __iter__(self) -> Iterator[_Suspect]:
        return (suspect for row in self.rows for suspect in row)

    def __len__(self) -> int:
        return sum(map(len, self.rows))


class _Apart(NamedTuple):
    """A worker is handed nothing: it works on a suspect alone, or makes room for one."""

    name: str
    works: bool
    since_ms: int
    patience_ms: int


class Suspects:
    """Those of one namespace."""

    def __init__(self, company: Company, patience_ms: int, around: Around) -> None:
        self._company = company
        self._patience_ms = patience_ms
        self._around = around
        self._rows: dict[str, _Rows] = {}  # by queue|handler, of those that have some
        self._apart: dict[str, _Apart] = {}  # only while the worker holds something

    # -- in and out ----------------------------------------------------------------------------------------------------

    @property
    def none(self) -> bool:
        """Whether there are none, and nobody is apart."""
        return not self._rows and not self._apart

    @property
    def names(self) -> Collection[str]:
        """The handlers (``queue|handler``) that have some."""
        return self._rows.keys()

    def count(self, name: str) -> int:
        """How many a handler has."""
        return len(self._rows.get(name, ()))

    def add(self, job: str, address: Address, lost: int, *, first: bool) -> None:
        """A job that lost so many leases can be taken."""
        rows = self._rows.setdefault(address.handler, _Rows(len(self._company))).rows
        row, suspect = rows[self._row_of(lost)], _Suspect(job, address)
        row.appendleft(suspect) if first else row.append(suspect)

    def flush(self, names: Iterable[str]) -> list[str]:
        """Drop those of these handlers (``queue|handler``). Returns those that are in no lane."""
        meant = self._rows.keys() & set(names)
        return [one.job for name in meant for one in self._rows.pop(name) if not one.address.key]

    def _row_of(self, lost: int) -> int:
        return min(lost - SUSPECT, len(self._company) - 1)

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, worker: str, wish: Take, left: dict[str, int], now_ms: int) -> list[Taken]:
        """Of each handler whose suspects' turn it is: some, or one alone to a worker that holds nothing, or it is set apart.

        ``left`` says how many of each handler may be taken, and is counted down.
        """
        if not self._rows:
            return []
        fresh = self._around.any_fresh(f"{wish.queue}|{handler}" for handler in left)
        taken: list[Taken] = []
        for handler, most in left.items():
            name = f"{wish.queue}|{handler}"
            suspects, n = self._rows.get(name), min(most, wish.limit - len(taken))
            if suspects is None or not n or (suspects.let_fresh_work_pass and fresh):
                continue
            if self.apart_for(worker, now_ms):
                break
            some = self._take_few(worker, wish.ticket, suspects, n)
            if not some and not (suspects.let_fresh_work_pass and self._must_wait(worker, name)):
                some = self._take_one_alone(worker, wish, name, suspects, now_ms)
            left[handler] -= len(some)
            taken += some
            if some:
                self._end_turn(worker, name)
        if worker in self._apart and self._apart[worker].works:
            for name in self._rows.keys() & {f"{wish.queue}|{one}" for one in left}:
                self._around.ring(name)  # they are for others
        return taken

    def _take_few(self, worker: str, ticket: int, suspects: _Rows, limit: int) -> list[Taken]:
        """So many as may be lost together, of those that lost the fewest leases; never beside others that lost more or fewer."""
        in_hand = [self._row_of(lost) for lost in self._around.losses_in_hand(worker) if lost >= SUSPECT]
        for kind, (row, company) in enumerate(zip(suspects.rows[:-1], self._company, strict=False)):
            n = min(limit, company - len(in_hand), len(row))
            if n > 0 and set(in_hand) <= {kind}:
                return [self._around.hand_out(worker, ticket, *row.popleft()) for _ in range(n)]
        return []

    def _take_one_alone(self, worker: str, wish: Take, name: str, suspects: _Rows, now_ms: int) -> list[Taken]:
        works = wish.idle and not self._around.losses_in_hand(worker)
        patience_ms = self._patience_ms if works else self._patience_for_room(worker, now_ms)
        if not suspects.lonely or not patience_ms:
            return []
        self._apart[worker] = _Apart(name, works, now_ms, patience_ms)
        return [self._around.hand_out(worker, wish.ticket, *suspects.lonely.popleft())] if works else []

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

    # -- turns ---------------------------------------------------------------------------------------------------------

    def end_fresh_turn(self, worker: str, queue: str) -> None:
        """Fresh work was handed out: where it was its turn, it is that of suspects that the worker might have taken instead."""
        self._give_turn(self._around.served(worker) | {name for name in self._rows if _queue_of(name) == queue})

    def _end_turn(self, worker: str, name: str) -> None:
        """Suspects were handed out. Where there are more, the next turn is fresh work's, or else those of other handlers."""
        suspects = self._rows[name]
        suspects.let_fresh_work_pass = True
        if suspects:
            self._around.ring(name)
        else:
            del self._rows[name]
        apart, served = self._apart.get(worker), self._around.served(worker)
        if apart is not None and apart.works and not self._around.any_fresh(served):
            self._give_turn(served - {name})

    def _give_turn(self, names: Iterable[str]) -> None:
        for name in names:
            suspects = self._rows.get(name)
            if suspects is not None and suspects.let_fresh_work_pass:
                suspects.let_fresh_work_pass = False
                self._around.ring(name)

    def _must_wait(self, worker: str, name: str) -> bool:
        """Whether a suspect that must be alone, but whose turn it is not, has to wait.

        For fresh work of any handler that the worker serves, or for such a suspect of another one. This worker will ask for
        them, if nobody else does before.
        """
        served = self._around.served(worker)
        others = [self._rows[other] for other in served - {name} if other in self._rows]
        return any(other.lonely and not other.let_fresh_work_pass for other in others) or self._around.any_fresh(served)

    # -- workers that stand apart --------------------------------------------------------------------------------------

    def is_apart(self, worker: str, now_ms: int) -> bool:
        """Whether it still is: one that was set apart for a suspect that another one took is not."""
        apart = self._apart.get(worker)
        if apart is None:
            return False
        suspects = self._rows.get(apart.name)
        if not apart.works and (suspects is None or not suspects.lonely or self._around.is_paused(apart.name)):
            del self._apart[worker]
        return bool(self.apart_for(worker, now_ms))

    def apart_for(self, worker: str, now_ms: int) -> str:
        """The handler (``queue|handler``) for whose suspect a worker is set apart, or nothing."""
        apart = self._apart.get(worker)
        stands = apart is not None and (apart.works or now_ms < apart.since_ms + apart.patience_ms)
        return apart.name if apart is not None and stands else ""

    def rejoin(self, worker: str) -> None:
        """It is set apart no longer. Safe twice."""
        self._apart.pop(worker, None)

    def make_no_room(self, worker: str) -> None:
        """As :meth:`rejoin`, of one that does not work on a suspect yet. Safe twice."""
        if worker in self._apart and not self._apart[worker].works:
            del self._apart[worker]


def _queue_of(name: str) -> str:
    return name.partition("|")[0]
