"""Everything that can go wrong on the workers' side, under one root."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = [
    "AppNotFound",
    "BootFailed",
    "CannotDrain",
    "InvalidHandler",
    "InvalidStep",
    "MemoryOnly",
    "MemoryWorker",
    "UnknownName",
    "WorkersError",
    "instead_of",
]

MOST_NAMED = 10


class WorkersError(Exception):
    """The root of all errors of the ``workers`` package."""


class InvalidHandler(WorkersError):
    """A handler was declared in a way that cannot work."""


class InvalidStep(WorkersError):
    """A step of ``ctx.once`` whose name or result cannot be kept."""


class UnknownName(WorkersError):
    """No queue or handler is called so."""

    def __init__(self, name: str, known: list[str], what: str = "queue or handler") -> None:
        super().__init__(f"there is no {what} {name[:80]!r}{instead_of(name, known)}")
        self.name = name
        self.known = known


def instead_of(name: str, known: Sequence[str]) -> str:
    """What may have been meant, as the rest of a line: the names that are like it, or else those that there are."""
    if close := difflib.get_close_matches(name, known):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f" (there are: {', '.join(known[:MOST_NAMED])}{more})" if known else " (there are none yet)"


class AppNotFound(WorkersError):
    """``module:app`` names no module that imports, or no :class:`workers.App` in it."""


class BootFailed(WorkersError):
    """A worker could not start; whatever had started was closed again."""


class MemoryWorker(BootFailed):
    """A worker process on ``memory://``, which nothing outside of it could ever reach."""

    def __init__(self) -> None:
        super().__init__(
            "this app's bus is in memory, and nothing outside of a worker process could reach it: "
            "set BUS_URL=redis://... for workers, or run everything in one process with 'callboard dev'"
        )


class CannotDrain(WorkersError):
    """A test asked for all due work to be done, and that cannot be done, or has no end."""


class MemoryOnly(WorkersError):
    """Time was to be moved for a bus on a server."""

    def __init__(self) -> None:
        super().__init__(
            "travel() moves the time of a bus in memory, and this one is on a server, whose clock is its own: "
            "run this test in memory alone"
        )
