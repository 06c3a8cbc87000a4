"""The threads of ``asyncio.to_thread`` on the worker's loop. They know what they run, so that a stop can name what it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from workers.leaving import CALLS
from workers.whereabouts import name_of

__all__ = ["Calls"]

P = ParamSpec("P")
T = TypeVar("T")


class Calls(ThreadPoolExecutor):
    """As many threads as asyncio has by default."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix=CALLS)
        self._changed = threading.Condition()
        self._running: dict[int, Callable[..., object]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As its base's."""

        def call() -> T:
            me = threading.get_ident()
            self._running[me] = fn
            try:
                return fn(*args, **kwargs)
            finally:
                with self._changed:
                    del self._running[me]
                    self._changed.notify_all()

        return super().submit(call)

    def runs_on(self, thread: threading.Thread) -> bool:
        """Whether one of them runs on this thread just now."""
        return thread.ident in self._running

    def end(self, timeout_s: float) -> list[str]:
        """Begin nothing more, and wait so long for what runs. Returns the names of the functions that are left behind."""
        self.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            self._changed.wait_for(lambda: not self._running, timeout_s)
            left = [name_of(call) for call in self._running.values()]
        if not left:
            self.shutdown(wait=True)
        return left
