"""A place for one worker: who has it, who is to have it next, and who still drains."""

from __future__ import annotations

import time
from typing import Literal

from workers.supervisor.child import Child

__all__ = ["Slot"]

SHORTEST_S = 0.1
LONGEST_S = 15.0
LIVED_S = 30.0
"""Who worked for so long did not die of its beginning: the pauses begin anew."""


class Slot:
    """``child`` has the place; in a reload ``fresh`` boots beside it, and then it drains as ``old``."""

    def __init__(self, number: int, options: tuple[str, ...] = ()) -> None:
        self.number = number
        self.options = options
        self.child: Child | None = None
        self.fresh: Child | None = None
        self.old: Child | None = None
        self.not_before = 0.0
        self.failed_generation = -1
        """The code that could not boot here."""
        self._failures = 0

    @property
    def ready(self) -> bool:
        """Whether a worker works here."""
        return self.child is not None and self.child.ready

    @property
    def pid(self) -> int:
        """Whose place it is."""
        return self.child.pid if self.child is not None else 0

    def all(self) -> list[Child]:
        """Everybody here."""
        return [child for child in (self.child, self.fresh, self.old) if child is not None]

    def promote(self) -> Child | None:
        """If the fresh one is ready the place is its own; returns who had it, and is to drain now."""
        if self.fresh is None or not self.fresh.ready or self.fresh.leaving:
            return None
        self.old, self.child, self.fresh = self.child, self.fresh, None
        return self.old

    def remove(self, child: Child) -> Literal["old", "fresh", "child"]:
        """It is gone; returns what it was."""
        if child is self.old:
            self.old = None
            return "old"
        if child is self.fresh:
            self.fresh = None
            return "fresh"
        self.child = None
        return "child"

    def back_off(self, child: Child | None) -> float:
        """Let some time pass before the next one: more each time, unless this one had worked for long. In seconds."""
        now = time.monotonic()
        if child is not None and child.ready_at is not None and now - child.ready_at >= LIVED_S:
            self._failures = 0
        pause_s = min(LONGEST_S, SHORTEST_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        self.not_before = now + pause_s
        return pause_s
