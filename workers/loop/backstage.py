"""Backstage: the threads on which hooks, settlings and steps of async jobs run, for these may block.

Not the loop's own executor, either: it has a handful of threads, which an app's ``asyncio.to_thread`` may fill for minutes.
Not an executor of the standard library's: its threads keep a process from exiting while a hook hangs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Backstage"]

T = TypeVar("T")

THREADS = 4

log = logging.getLogger("callboard.workers")


class Backstage:
    """``start`` and ``close`` bear being called twice. What is submitted while it is closed waits for the next start."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | int] = SimpleQueue()  # a number ends threads of that generation
        self._threads: list[threading.Thread] = []
        self._generation = 0
        self._over = 0  # the last generation that was closed

    def start(self) -> None:
        """Start the threads."""
        if not self._threads:
            self._generation += 1
            for n in range(THREADS):  # one by one: a signal may end the boot in their midst
                thread = threading.Thread(
                    target=self._work, args=(self._generation,), name=f"callboard hooks {n}", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def runs_on(self, thread: threading.Thread) -> bool:
        """Whether this is one of its threads."""
        return thread in self._threads

    def submit(self, act: Callable[[], None]) -> None:
        """Have a thread do something, in the order of submission. Never blocks."""
        self._queue.put(act)

    async def run(self, act: Callable[[], T]) -> T:
        """Have a thread do something, and wait for it without blocking the loop."""
        if not self._threads:  # there is no worker, as in a drain
            return await asyncio.to_thread(act)
        outcome: Future[T] = Future()

        def work() -> None:
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(act())
                except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                    outcome.set_exception(error)

        self.submit(work)
        return await asyncio.wrap_future(outcome)

    def close(self, timeout_s: float) -> None:
        """End the threads once they have done what was submitted; one that hangs is left behind at the deadline."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(self._generation)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._over = self._generation

    def _work(self, generation: int) -> None:
        while True:
            act = self._queue.get()
            if isinstance(act, int):
                if act < generation:
                    continue  # it was for one that hung
                if act > generation:
                    self._queue.put(act)
                return
            try:
                act()
            except BaseException:  # an exit that a hook asked for would end a thread that others need
                log.exception("a hook ended in an unexpected way; going on")
            del act
            if generation <= self._over:  # it hung over the end
                return
