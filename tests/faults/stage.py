"""What a worker is in the middle of when a signal comes: one event, whose fields say what its handler does."""

from __future__ import annotations

from typing import Literal

from tests.faults.work import Work

__all__ = ["STAGE", "How", "Stage"]

STAGE = "stage"
"""The topic of these events, and the beginning of their handlers' names."""

How = Literal["sync", "async", "released", "held", "fails"]
"""On a thread, in Python or (``released``) inside C code that lets go of the interpreter, or (``held``) does not; on the
event loop; or it fails at its first attempt and waits for the second."""


class Stage(Work, type="fault.stage", version=1):
    """``takes_s`` is how long the first run lasts (``sync`` ones count from the signal); with ``once`` later ones are over at once."""

    how: How = "sync"
    once: bool = True
