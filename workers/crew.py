"""A worker's threads, stopped and waited for as one.

Dramatiq waits for them one after another, and from what is left of the grace takes, after each, all the time since the
beginning: eight idle threads that end within the first second leave nothing of eight seconds for the ninth, which works.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

__all__ = ["Crew"]


class Member(Protocol):
    """What a worker stops."""

    def stop(self) -> None:
        """Begin nothing more."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, so many seconds at most."""


class Crew:
    """Takes the place of the threads in ``worker.workers`` when the worker is about to stop them."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = list(members)

    def stop(self) -> None:
        """Have all of them begin nothing more."""
        for member in self._members:
            member.stop()

    def join(self, timeout: float | None = None) -> None:
        """Wait until all have ended, ``timeout`` seconds for them together."""
        ends = None if timeout is None else time.monotonic() + timeout
        for member in self._members:
            member.join(None if ends is None else max(0.0, ends - time.monotonic()))
