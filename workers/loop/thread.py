"""The worker's event loop: one for each process, on a thread of its own.

It is Dramatiq's own ``EventLoopThread``, so that an async actor may still be called from a thread, with four
differences: the thread is a daemon (with a plain one, a boot that fails after it starts never exits), it ends by
cancelling what is left, so that every ``finally`` runs, it does not end for one task that raises ``SystemExit`` (asyncio's
way), and where uvloop is installed (``callboard[uvloop]``) the loop is one of uvloop's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread

from workers.loop.calls import Calls
from workers.loop.watch import Watch
from workers.whereabouts import counted, frame_of, place_of

__all__ = ["WorkerLoop"]

T = TypeVar("T")

BLOCKED_S = 1.0
"""A loop that gives no sign of life for so long is blocked."""
SOON_S = 0.5
"""For what takes no time unless it hangs."""
CALLS_END_S = 1.0
"""How long a stop waits for what ``asyncio.to_thread`` still runs."""

log = logging.getLogger("callboard.workers")


class _LoopThread(EventLoopThread):
    """Dramatiq's, as a daemon, on the quickest loop there is."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("dramatiq.asyncio"))  # it tells of its start at INFO
        self.daemon = True
        self.name = "callboard loop"
        self._ending = False
        if find_spec("uvloop") is not None:
            self.loop.close()
            self.loop = import_module("uvloop").new_event_loop()
        self.calls = Calls()
        self.loop.set_default_executor(self.calls)

    def run(self) -> None:
        """Run the loop until :meth:`end`, whoever else wants it to end: all handlers are on it."""
        try:
            while not self._ending:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as wish:
                    log.error("a task on the event loop raised %s; the loop goes on", type(wish).__name__)
                else:
                    if not self._ending:
                        log.error("somebody has stopped the worker's event loop; it goes on")
        finally:
            self.loop.close()

    def end(self) -> None:
        """Have it end. Never blocks; from any thread."""
        self._ending = True
        self.loop.call_soon_threadsafe(self.loop.stop)


class WorkerLoop:
    """Start and stop bear being called twice."""

    def __init__(self) -> None:
        self.watch = Watch()
        self._thread: _LoopThread | None = None
        self._before: EventLoopThread | None = None
        """Another app's, in this process: it is Dramatiq's again when ours has ended."""

    @property
    def lag_s(self) -> float:
        """How long the loop has kept a waiting callback waiting, now or when it was last asked. From any thread."""
        return self.watch.lag_s

    def blocked_at(self) -> str:
        """Where in the code something keeps the loop from going on; nothing where it goes on."""
        return place_of(frame_of(self._thread)) if self._thread is not None and self.lag_s > BLOCKED_S else ""

    @property
    def running(self) -> bool:
        """Whether it is started."""
        return self._thread is not None

    def runs_on(self, thread: threading.Thread) -> bool:
        """Whether this thread is the loop's, or one of those on which it has something called (``asyncio.to_thread``)."""
        mine = self._thread
        return mine is not None and (thread is mine or mine.calls.runs_on(thread))

    def start(self) -> None:
        """Run the loop, and make it the one that Dramatiq's async actors use when they are called."""
        if self._thread is None:
            thread = _LoopThread()
            thread.start(timeout=5)
            self._before = get_event_loop_thread()
            set_event_loop_thread(thread)
            self._thread = thread
            self.watch.start(thread.loop, thread)

    def soon(self, act: Callable[..., object], *arguments: object) -> None:
        """Have the loop call something. From any thread. Raises ``RuntimeError`` where there is none (any more)."""
        self._running().loop.call_soon_threadsafe(act, *arguments)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, in the caller's context."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._running().loop)
        except RuntimeError:
            work.close()
            raise

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it; at the timeout it is cancelled and ``TimeoutError`` raised."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except BaseException:  # the time is over, or a signal ends the wait
            future.cancel()
            raise

    def stop(self, timeout_s: float, known: Collection[asyncio.Task[Any]] = ()) -> list[str]:
        """Cancel whatever still runs on the loop, give its ``finally`` blocks the time, and end the thread.

        What blocks in a thread of the loop's own (``asyncio.to_thread``) is waited for a second, then named and left behind.
        Returns where the coroutines are that have not let themselves be cancelled, but for the tasks ``known`` to be such.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return []
        self.watch.stop()
        if get_event_loop_thread() is thread:
            before, self._before = self._before, None
            set_event_loop_thread(before if before is not None and before.is_alive() else None)
        cancelling = asyncio.run_coroutine_threadsafe(_cancel_all(timeout_s, known), thread.loop)
        try:
            left = cancelling.result(timeout_s + SOON_S)
        except TimeoutError:
            cancelling.add_done_callback(lambda _: thread.end())  # should it ever go on
            return [place_of(frame_of(thread))]
        blocking = thread.calls.end(CALLS_END_S)
        if blocking:
            log.warning("left behind in threads (asyncio.to_thread), for they do not end: %s", counted(blocking))
        for task in left:  # we tell of it, and asyncio need not when it is gone
            task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
        thread.end()
        thread.join(SOON_S)
        return [place_of(frame) for task in left.difference(known) for frame in task.get_stack(limit=1)]

    def _running(self) -> _LoopThread:
        if self._thread is None:
            raise RuntimeError("the worker's event loop is not running")
        return self._thread


async def _cancel_all(timeout_s: float, known: Collection[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Returns what does not end in that time. For those ``known`` not to end nobody waits again."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if unknown := tasks.difference(known):
        await asyncio.wait(unknown, timeout=timeout_s)
    left = {task for task in tasks if not task.done()}
    with suppress(TimeoutError):
        async with asyncio.timeout(SOON_S):
            await asyncio.get_running_loop().shutdown_asyncgens()
    return left
