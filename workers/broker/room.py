"""Room: how many more jobs a process may take, of which handlers, and whose turn it is.

A process has two rooms. Its threads serve all sync handlers of all its queues, so there is one room for all of these. It
follows the pace of the work: what is settled in ``AHEAD_S`` seconds is fetched ahead, so that fast handlers are fed in
large gulps, while slow ones leave what they could not begin to other processes. Its event loop begins at once whatever
it is given, so the other room has as many places as coroutines may run, and nothing is fetched ahead. Neither takes
from the other, so a process whose threads are all busy goes on with its async work.

In each room queues that hope for work share what is free, and who was served longest ago is served first. A handler may
have a limit of its own: what would be beyond it is not asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from bus.store.base import Route

__all__ = ["AHEAD_S", "Room", "Rooms", "Wish"]

AHEAD_S = 0.05
MOST_AHEAD = 256
PACE_S = 0.1


class Asked(Protocol):
    """What rooms ask of a process's staff (see ``staff.py``)."""

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The handlers that it serves on a queue."""

    def is_async(self, handler: str) -> bool:
        """Whether it runs on the event loop."""

    def limit_of(self, handler: str) -> int | None:
        """How many of its jobs may be held at once, if that is limited."""


class Wish(NamedTuple):
    """What a consumer asks for; ``most`` of each handler, or nothing for no limits."""

    queue: str
    handlers: tuple[str, ...]
    limit: int
    most: tuple[int, ...] = ()
    urgent: bool = False
    """Whether so much is free that nothing is gained by waiting for more."""

    @property
    def limits(self) -> Sequence[tuple[str, int]]:
        """Each handler, with how many of it may come."""
        return list(zip(self.handlers, self.most or (self.limit,) * len(self.handlers), strict=True))


class Room:
    """The room of one kind of work. Its lease's condition guards every use. With a ``size`` it has exactly that."""

    def __init__(self, size: int | None = None) -> None:
        self.settled_at = time.monotonic()
        """When a job was last settled."""
        self.jammed = False
        """Whether what was taken does not get begun: until something is, or is done, there is no room."""
        self._size = size
        self.loads: Counter[str] = Counter()
        """How many jobs of each queue are in it."""
        self._load = 0
        self._promised = 0
        self._least = self._most = size or 1
        self._hopeful: dict[str, Callable[[], bool]] = {}
        self._limits: dict[str, int] = {}
        self._settled = 0
        self._pace_per_s = 0.0
        self._looked_at = time.monotonic()

    # -- who shares it -------------------------------------------------------------------------------------------------

    def enter(self, queue: str, prefetch: int, hopes: Callable[[], bool], *, exact: bool = False) -> None:
        """A queue's consumer shares the room. ``hopes`` says whether there may be work for it. The last one counts.

        A ``prefetch`` that somebody chose is ``exact``: so many of this queue, whatever the pace. Dramatiq's own, two
        for each thread, is not.
        """
        self._hopeful[queue] = hopes
        if self._size is None:
            exact = exact or prefetch == 1
            self._least = max(self._least, prefetch if exact else prefetch // 2)
            self._most = max(self._most, prefetch if exact else max(prefetch, MOST_AHEAD))
            self._limits[queue] = prefetch if exact else self._most

    def leave(self, queue: str) -> None:
        """Its consumer has ended. Safe twice."""
        self._hopeful.pop(queue, None)
        self._limits.pop(queue, None)

    def clear(self) -> None:
        """Nothing is held any more."""
        self.loads.clear()
        self._load = 0
        self.jammed = False

    # -- what is in it -------------------------------------------------------------------------------------------------

    def chosen(self, queue: str) -> bool:
        """Whether somebody has chosen how many jobs of a queue to fetch ahead."""
        return self._limits.get(queue, MOST_AHEAD) < MOST_AHEAD

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return self._load == 0

    def fill(self, queue: str) -> None:
        """A job was taken."""
        self.loads[queue] += 1
        self._load += 1

    def free(self, queue: str, *, settled: bool = True) -> None:
        """A job was settled, or is gone."""
        self.loads[queue] -= 1
        self._load -= 1
        if settled:
            self._settled += 1
            self.settled_at = time.monotonic()
            self.jammed = False

    def promise(self, places: int) -> None:
        """Keep places for a take that is on its way, or give them back. Where the size is fixed, it is never exceeded."""
        self._promised += places if self._size is not None else 0

    def measure(self) -> None:
        """Follow the pace at which jobs are settled, smoothed over ``PACE_S``; a longer silence forgets what was."""
        now = time.monotonic()
        elapsed = now - self._looked_at
        if elapsed > 0.001:
            self._pace_per_s += min(1.0, elapsed / PACE_S) * (self._settled / elapsed - self._pace_per_s)
            self._settled, self._looked_at = 0, now

    # -- how much there is ---------------------------------------------------------------------------------------------

    @property
    def ahead(self) -> int:
        """How many jobs to have in this process, running ones included."""
        return min(self._most, max(self._least, int(self._pace_per_s * AHEAD_S)))

    @property
    def _left(self) -> int:
        return 0 if self.jammed else self.ahead - self._load - self._promised

    @property
    def soon(self) -> bool:
        """Whether there is room, or will be in the blink of an eye: all threads may be busy, but their work is quick."""
        if self._load + self._promised < self._least and not self.jammed:  # whatever the pace is
            return True
        return self._left > 0 or (self._size is None and self.ahead > self._least)

    def share(self, queue: str) -> int:
        """How many jobs this queue may take now."""
        free = min(self._left, self._limit_of(queue) - self.loads[queue])
        if free <= 0:
            return 0
        line = [name for name, hopes in self._hopeful.items() if name == queue or hopes()]
        share = -(-free // len(line))
        return max(0, min(share, free - share * line.index(queue))) if queue in line else share

    def whole(self, queue: str) -> int:
        """How many jobs this queue may take while nothing is in the room and nobody else may ask."""
        return min(self.ahead, self._limit_of(queue))

    def _limit_of(self, queue: str) -> int:
        return self._limits.get(queue, self._most)

    def serve(self, queue: str) -> None:
        """It has asked: now it stands at the end of the line."""
        if queue in self._hopeful:
            self._hopeful[queue] = self._hopeful.pop(queue)


class Rooms:
    """All the room of one process. Its lease's condition guards every use."""

    def __init__(self, staff: Asked, concurrency: int) -> None:
        self.threads = Room()
        self.loop = Room(concurrency)
        self.apart_for = ""
        """The handler (``queue|handler``) for whose suspect this worker is set apart: until it holds nothing there is no room."""
        self.in_vain = False
        """Whether that suspect was asked for and refused, though nothing is here: the store says otherwise (a settling is on
        its way, or a reply was lost). Until that is settled, or the next beat has told it, there is no use in asking again."""
        self._staff = staff
        self._loads: Counter[str] = Counter()  # by handler
        self._promised: Counter[str] = Counter()  # to those that have limits

    def of(self, handler: str) -> Room:
        """Where a handler's work goes."""
        return self.loop if self._staff.is_async(handler) else self.threads

    def leave(self, queue: str) -> None:
        """A queue's consumer has ended. Safe twice."""
        self.threads.leave(queue)
        self.loop.leave(queue)
        if self.apart_for.startswith(f"{queue}|"):
            self.apart_for = ""

    def clear(self) -> None:
        """Nothing is held any more."""
        self.recount([])
        self._promised.clear()

    def recount(self, held: Iterable[tuple[Room, Route]]) -> None:
        """This is what is held, and where: a thread may have been struck as it counted."""
        self.threads.clear()
        self.loop.clear()
        self._loads.clear()
        for room, route in held:
            self.fill(room, route.queue, route.handler)

    def load(self, queue: str) -> int:
        """How many jobs of a queue this process holds."""
        # Not [queue]: for what is not there a Counter makes a call of it, at each settling.
        return self.threads.loads.get(queue, 0) + self.loop.loads.get(queue, 0)

    def fill(self, room: Room, queue: str, handler: str) -> None:
        """A job was taken, and goes there."""
        room.fill(queue)
        self._loads[handler] += 1

    def free(self, room: Room, queue: str, handler: str, *, settled: bool = True) -> None:
        """A job was settled, or is gone."""
        room.free(queue, settled=settled)
        self._loads[handler] -= 1
        self.in_vain = False

    def measure(self) -> None:
        """See :meth:`Room.measure`."""
        self.threads.measure()

    @property
    def empty(self) -> bool:
        """Whether this process works on nothing, and has nothing to work on."""
        return self.threads.empty and self.loop.empty

    # -- asking --------------------------------------------------------------------------------------------------------

    def wishes(self, queue: str, hopes: Collection[str]) -> list[Wish]:
        """What to ask for, of these handlers: one wish for each kind of work that there is room for."""
        if self.apart_for:
            return self._wish_for_suspects(queue)
        shares = [(room, room.share(queue)) for room in (self.threads, self.loop)]
        return [wish for room, share in shares if share > 0 for wish in self._wish(room, queue, hopes, share)]

    def wishes_soon(self, queue: str, handlers: Iterable[str]) -> list[Wish]:
        """What to be woken for, of these handlers: also where there will be room in the blink of an eye."""
        if self.apart_for:
            return []
        rooms, names = [room for room in (self.threads, self.loop) if room.soon], list(handlers)
        return [wish for room in rooms for wish in self._wish(room, queue, names, max(1, room.share(queue)))]

    def _wish(self, room: Room, queue: str, handlers: Iterable[str], share: int) -> list[Wish]:
        limits = [(name, min(self._left_for(name, share), share)) for name in handlers if self.of(name) is room]
        some = [(name, most) for name, most in limits if most > 0]
        if not some:
            return []
        limit = min(share, sum(most for _, most in some))
        most = tuple(min(most, limit) for _, most in some)
        names = tuple(name for name, _ in some)
        unlimited = all(each == limit for each in most)
        return [Wish(queue, names, limit, () if unlimited else most, 2 * limit >= room.ahead)]

    def _wish_for_suspects(self, queue: str) -> list[Wish]:
        """For these alone: a wish for other handlers could bring fresh work first, and then it would not be idle any more."""
        its_queue, _, handler = self.apart_for.partition("|")
        if queue != its_queue or not self.empty or self.in_vain:
            return []
        room = self.of(handler)
        return [wish._replace(urgent=True) for wish in self._wish(room, queue, [handler], room.whole(queue))]

    def _left_for(self, handler: str, otherwise: int) -> int:
        limit = self._staff.limit_of(handler)
        return otherwise if limit is None else limit - self._loads[handler] - self._promised[handler]

    def admit(self, handler: str) -> Room | None:
        """Where a job may stay that came unasked (some time after it was asked for), if there is room for it."""
        room = self.of(handler)
        return room if room.soon and self._left_for(handler, 1) > 0 else None

    def promise(self, wishes: Iterable[Wish], *, kept: bool = False) -> None:
        """Keep places for takes that are on their way, until they are ``kept``."""
        sign = -1 if kept else 1
        for wish in wishes:
            self.of(wish.handlers[0]).promise(sign * wish.limit)
            for handler, most in wish.limits:
                if self._staff.limit_of(handler) is not None:
                    self._promised[handler] += sign * most

    def serve(self, wishes: Iterable[Wish]) -> None:
        """They were asked: now their queues stand at the end of the line."""
        for wish in wishes:
            self.of(wish.handlers[0]).serve(wish.queue)
