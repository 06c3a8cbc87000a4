"""The worker's event loop: one for each process, on a thread of its own.

It is Dramatiq's own ``EventLoopThread``, so that its async actors and their time limits work on it, with two
differences: the thread is a daemon (with a plain one, a boot that fails after it starts never exits), and it ends by
cancelling what is left, so that every ``finally`` runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread

__all__ = ["WorkerLoop"]

T = TypeVar("T")

log = logging.getLogger("callboard.workers")


class WorkerLoop:
    """Start and stop bear being called twice."""

    def __init__(self) -> None:
        self._thread: EventLoopThread | None = None
        self._running: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Run the loop, and make it the one that Dramatiq's async actors use."""
        if self._thread is None:
            thread = EventLoopThread(logging.getLogger("dramatiq.asyncio"))  # it tells of its start at INFO
            thread.daemon = True
            thread.name = "callboard loop"
            thread.start(timeout=5)
            set_event_loop_thread(thread)
            self._thread = thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, in the caller's context."""
        if self._thread is None:
            work.close()
            raise RuntimeError("the worker's event loop is not running")
        return asyncio.run_coroutine_threadsafe(work, self._thread.loop)

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it; at the timeout it is cancelled and ``TimeoutError`` raised."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except BaseException:  # the time is over, or a signal ends the wait
            future.cancel()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """As :meth:`call`, from a Dramatiq worker thread: its interrupts (time limit, shutdown) cancel the coroutine."""
        if self._thread is None:
            work.close()
            raise RuntimeError("the worker's event loop is not running")
        result: T = self._thread.run_coroutine(self._tracked(work))
        return result

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._running.add(task)
        try:
            return await work
        finally:
            self._running.discard(task)

    async def cancel_running(self, timeout_s: float) -> None:
        """Cancel the handlers that run, and give their ``finally`` blocks the time."""
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Cancel whatever still runs on the loop, give its ``finally`` blocks the time, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if get_event_loop_thread() is thread:
            set_event_loop_thread(None)
        try:
            asyncio.run_coroutine_threadsafe(_cancel_all(timeout_s), thread.loop).result(timeout_s + 1)
        except TimeoutError:
            log.error("a coroutine did not end within %.1f s of being cancelled and is left behind", timeout_s)
        thread.loop.call_soon_threadsafe(thread.loop.stop)
        thread.join(timeout_s)


async def _cancel_all(timeout_s: float) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()
