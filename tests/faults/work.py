"""The work that is done while things break: one event, whose fields say how its handler behaves."""

from __future__ import annotations

from typing import Literal

from bus import Event

__all__ = ["FRAGILE", "WORK", "Work"]

WORK = "work"
"""The topic, and the handler's name, of work that is retried often."""
FRAGILE = "fragile"
"""The same for work whose handler allows no retry at all."""


class Work(Event, type="fault.work", version=1):
    """``key`` is the lane, or none. The handler takes ``takes_s``, after it has failed ``fails`` times.

    With ``dies`` it ends its own process: by leaving at once, or by SIGKILL, as the kernel does when memory is short.
    ``pad`` makes the event large.
    """

    n: int
    key: str | None = None
    takes_s: float = 0
    fails: int = 0
    dies: Literal["", "exit", "kill"] = ""
    pad: str = ""
