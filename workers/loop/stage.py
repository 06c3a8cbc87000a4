"""The stage: where async jobs run, all of a process on one event loop, none of them holding a thread.

Dramatiq's consumers put every message into the worker's queue, and its threads get them from there. Ours is such a queue,
and keeps the messages of async actors to itself. To the worker the stage is one more of its threads, that it stops, and
waits for until the grace ends.

How many run at once is decided where jobs are taken (``workers/broker/room.py``): what is put here begins.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from dramatiq import Worker

from workers.broker import LaneBroker, LaneMessage
from workers.loop.backstage import Backstage
from workers.loop.limits import Limits
from workers.loop.performance import Performance
from workers.loop.thread import WorkerLoop
from workers.loop.work_queue import WorkQueue
from workers.whereabouts import counted

__all__ = ["Stage"]

END_S = 1.0

log = logging.getLogger("callboard.workers")


class Stage:
    """One for each worker process. ``open`` and ``close`` bear being called twice."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop
        self.backstage = Backstage()
        self._broker: LaneBroker | None = None
        self._worker: Worker | None = None
        self._changed = threading.Condition()
        self._live: set[Performance] = set()
        self._soon = loop.soon
        self._limits = Limits()
        loop.watch.running = lambda: len(self._live)
        self._entering: deque[Performance] = deque()
        self._called = False
        self._waiting: deque[Performance] = deque()
        """What came while the worker was paused."""
        self._quiet = False
        self.paused = False
        self.paused_event = threading.Event()

    def __repr__(self) -> str:
        return f"<Stage with {len(self._live)} jobs>"

    def open(self, broker: LaneBroker, worker: Worker) -> None:
        """Be ready, and have the worker's queue leave async jobs to us. Before the worker has started its threads."""
        self._broker, self._worker = broker, worker
        self._quiet = self.paused = self._called = False
        self._live, self._entering, self._limits = (
            set(),
            deque(),
            Limits(),
        )  # an earlier worker may have left behind what would not end
        queue = worker.work_queue = WorkQueue(self, broker.lease.wings)
        broker.lease.wings.reserve = queue.muster
        self.backstage.start()

    def join_worker(self, worker: Worker) -> None:
        """Be waited for, as the worker's threads are. Once it has started these."""
        worker.workers.append(cast("Any", self))

    def close(self) -> None:
        """End the threads of the hooks, within a deadline."""
        self.backstage.close(END_S)
        self._broker = self._worker = None

    def is_for(self, message: Any) -> bool:
        """Whether it is the message of an async actor."""
        broker = self._broker
        return broker is not None and isinstance(message, LaneMessage) and broker.staff.is_async(message.actor_name)

    # -- as a worker's thread ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin nothing more: what has not begun is handed back."""
        self._quiet = True
        self.resume()

    def join(self, timeout: float | None = None) -> None:
        """Wait until nothing runs, for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._live, timeout)

    def pause(self) -> None:
        """Begin nothing until :meth:`resume`."""
        self.paused = True
        self.paused_event.set()

    def resume(self) -> None:
        """Begin what has come meanwhile."""
        self.paused = False
        self.paused_event.clear()
        while self._waiting:
            self._submit(self._waiting.popleft())

    # -- what runs -----------------------------------------------------------------------------------------------------

    def begin(self, message: LaneMessage) -> None:
        """Run a job, at once. Never blocks."""
        broker, worker = self._broker, self._worker
        function = broker.staff.coroutine_of(message.actor_name) if broker is not None else None
        if broker is None or worker is None or function is None:
            raise RuntimeError("the stage is closed, or this is nothing for it")
        performance = Performance(broker, worker, message, function, self._soon)
        message.performance = performance
        with self._changed:
            self._live.add(performance)
            if len(self._live) == 1:
                self._loop.watch.work(begins=True)
        if self.paused:
            self._waiting.append(performance)
        else:
            self._submit(performance)

    def cancel(self, timeout_s: float) -> None:
        """Cancel whatever runs, and give it the time for its ``finally`` blocks and its settling."""
        with self._changed:
            live = list(self._live)
        names = {one: one.message.actor_name for one in live}
        for performance in live:
            performance.interrupt(asyncio.CancelledError("the worker stops"))
        self.join(timeout_s)
        with self._changed:
            cancelled = names.keys() - self._live
        if cancelled:
            who = "1 handler was" if len(cancelled) == 1 else f"{len(cancelled):,} handlers were"
            log.info("%s cancelled, to run again: %s", who, counted(names[one] for one in cancelled))

    def tasks(self) -> set[asyncio.Task[None]]:
        """The coroutines of the jobs that run."""
        with self._changed:
            return {performance.task for performance in self._live if performance.task is not None}

    def _submit(self, performance: Performance) -> None:
        self.backstage.submit(lambda: self._before(performance))

    def _before(self, performance: Performance) -> None:
        """On a hooks thread."""
        if self._quiet:
            self._finish(performance, performance.hand_back)
        elif performance.before():
            self._entering.append(performance)
            if not self._called:  # one call brings all that are there by then
                self._called = True
                self._loop.soon(self._enter)
        else:
            self._after(performance)

    def _enter(self) -> None:
        """On the loop."""
        self._called = False
        loop, done = asyncio.get_running_loop(), self._exit
        while self._entering:
            performance = self._entering.popleft()
            try:
                performance.play(loop, self._limits, done)
            except Exception as error:  # noqa: BLE001 - it ends this one, and not what stands behind it
                performance.fail(error)
                done(performance)

    def _exit(self, performance: Performance) -> None:
        """On the loop."""
        self.backstage.submit(lambda: self._after(performance))

    def _after(self, performance: Performance) -> None:
        """On a hooks thread."""
        self._finish(performance, performance.after)

    def _finish(self, performance: Performance, end: Callable[[], None]) -> None:
        try:
            end()
        finally:
            with self._changed:
                self._live.discard(performance)
                if not self._live:
                    self._changed.notify_all()
                    self._loop.watch.work(begins=False)
            performance.worker.work_queue.task_done()
