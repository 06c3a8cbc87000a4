"""An event loop on which time passes only when everybody waits for it: then it leaps to whatever is next.

For tests of what waits for seconds and does nothing meanwhile: they take milliseconds, and always the same ones. Nothing
may come from outside (no sockets, no other threads that take their time): a loop that waits for ever is an error here.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

__all__ = ["Standstill", "VirtualLoop"]


class Standstill(AssertionError):
    """Everybody waits for somebody else, and no timer is set."""


class _Selector(selectors.SelectSelector):
    """Never waits: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Standstill("every task waits, and nothing will ever wake one")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. ``time()`` is seconds since the loop was made."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def pass_time(self, seconds: float) -> None:
        """Let everything run for so long."""
        self.run_until_complete(asyncio.sleep(seconds))

    def left(self) -> list[str]:
        """The names of the tasks that are not done."""
        tasks: set[asyncio.Task[Any]] = asyncio.all_tasks(self)
        return sorted(task.get_name() for task in tasks)
