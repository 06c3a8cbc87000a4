"""Room: how many more jobs a process may take, and whose turn it is.

The threads of a process serve all of its queues, so there is one room for all. It follows the pace of the work: what is
settled in ``AHEAD_S`` seconds is fetched ahead, so that fast handlers are fed in large gulps, while slow ones leave what
they could not begin to other processes. Queues that hope for work share what is free, and who was served longest ago is
served first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

__all__ = ["AHEAD_S", "Room"]

AHEAD_S = 0.05
MOST_AHEAD = 256
PACE_S = 0.1


class Room:
    """The room of one process. Its lease's condition guards every use."""

    def __init__(self) -> None:
        self.apart_for = ""
        """The queue with a suspect for which this worker is set apart: until it holds nothing there is no room."""
        self.settled_at = time.monotonic()
        """When a job was last settled."""
        self._loads: Counter[str] = Counter()
        self._load = 0
        self._least = self._most = 1
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
        exact = exact or prefetch == 1
        self._least = max(self._least, prefetch if exact else prefetch // 2)
        self._most = max(self._most, prefetch if exact else max(prefetch, MOST_AHEAD))
        self._hopeful[queue] = hopes
        self._limits[queue] = prefetch if exact else self._most

    def leave(self, queue: str) -> None:
        """Its consumer has ended. Safe twice."""
        self._hopeful.pop(queue, None)
        self._limits.pop(queue, None)
        if self.apart_for == queue:
            self.apart_for = ""

    def clear(self) -> None:
        """Nothing is held any more."""
        self._loads.clear()
        self._load = 0

    # -- what is in it -------------------------------------------------------------------------------------------------

    def chosen(self, queue: str) -> bool:
        """Whether somebody has chosen how many jobs of a queue to fetch ahead."""
        return self._limits.get(queue, MOST_AHEAD) < MOST_AHEAD

    def load(self, queue: str) -> int:
        """How many jobs of a queue are in it."""
        return self._loads[queue]

    def fill(self, queue: str) -> None:
        """A job was taken."""
        self._loads[queue] += 1
        self._load += 1

    def free(self, queue: str, *, settled: bool = True) -> None:
        """A job was settled, or is gone."""
        self._loads[queue] -= 1
        self._load -= 1
        if settled:
            self._settled += 1
            self.settled_at = time.monotonic()

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
    def soon(self) -> bool:
        """Whether there is room, or will be in the blink of an eye: all threads may be busy, but their work is quick."""
        return not self.apart_for and (self._load < self.ahead or self.ahead > self._least)

    def share(self, queue: str) -> int:
        """How many jobs this queue may take now."""
        if self.apart_for:
            return self.ahead if queue == self.apart_for and self._load == 0 else 0
        free = min(self.ahead - self._load, self._limits.get(queue, MOST_AHEAD) - self._loads[queue])
        if free <= 0:
            return 0
        line = [name for name, hopes in self._hopeful.items() if name == queue or hopes()]
        share = -(-free // len(line))
        return max(0, min(share, free - share * line.index(queue))) if queue in line else share

    def serve(self, queue: str) -> None:
        """It has asked: now it stands at the end of the line."""
        if queue in self._hopeful:
            self._hopeful[queue] = self._hopeful.pop(queue)
