"""Backstage: the threads on which hooks and settlings of async jobs run, for these may block.

Not an executor of the standard library's: its threads keep a process from exiting while a hook hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Backstage"]

THREADS = 4

log = logging.getLogger("callboard.workers")


class Backstage:
    """``start`` and ``close`` bear being called twice. What is submitted while it is closed waits for the next start."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        if not self._threads:
            for n in range(THREADS):  # one by one: a signal may end the boot in their midst
                thread = threading.Thread(target=self._work, name=f"callboard hooks {n}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def submit(self, act: Callable[[], None]) -> None:
        """Have a thread do something, in the order of submission. Never blocks."""
        self._queue.put(act)

    def close(self, timeout_s: float) -> None:
        """End the threads once they have done what was submitted; one that hangs is left behind at the deadline."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (act := self._queue.get()) is not None:
            try:
                act()
            except BaseException:  # an exit that a hook asked for would end a thread that others need
                log.exception("a hook ended in an unexpected way; going on")
            del act
