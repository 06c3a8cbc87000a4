"""Where Dramatiq's life and ours meet: its hooks, mapped to the runtime's phases.

Dramatiq logs and swallows whatever a hook raises, except a ``MiddlewareError`` from ``before_worker_boot``; under its
command line that ends the process with a traceback, so there we leave with an exit code of our own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware, MiddlewareError
from dramatiq.worker import WorkerThread

from bus.bindings import Binding
from workers.broker import LaneBroker
from workers.crew import Crew
from workers.errors import BootFailed, MemoryWorker, WorkersError
from workers.leaving import AFTER_GRACE_S, Watchdog
from workers.runtime import Runtime

__all__ = ["EXIT_BOOT", "EXIT_USAGE", "Lifecycle", "WorkerBootError"]

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_BOOT = 3

log = logging.getLogger("callboard.workers")


class WorkerBootError(MiddlewareError, BootFailed):
    """A boot that failed, as an embedded ``dramatiq.Worker`` raises it from ``start``."""


class StoppedFromWithin(MiddlewareError, WorkersError):
    """``worker.stop()`` was called by a handler (or a hook) of that worker, which it would wait for."""

    def __init__(self) -> None:
        super().__init__(
            "worker.stop() waits for the handlers of its worker, and one of them (or a hook beside it) has called it: "
            "leave it to another thread, as in threading.Thread(target=worker.stop).start()"
        )


class Lifecycle(Middleware):
    """Boots, quiets and stops the runtime with the worker."""

    def __init__(self, runtime: Runtime, bindings: Callable[[], Iterable[Binding]]) -> None:
        self._runtime = runtime
        self._bindings = bindings

    def after_process_boot(self, broker: Broker) -> None:
        """Command lines emit this, and so do tests with a worker inside; only the first have a process to end."""
        if not isinstance(broker, LaneBroker):
            return
        if _is_child_of_dramatiq():
            broker.owns_process = True
            # A runner that signals the whole process group would have SIGTERM arrive twice in a child of Dramatiq's
            # master, which forwards it, and a second one kills: 9 of 10 stops under honcho killed running jobs.
            os.setpgid(0, 0)
        if broker.owns_process and broker.bus.mode != "redis":
            log.critical("%s", MemoryWorker())
            raise SystemExit(EXIT_USAGE)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if not isinstance(broker, LaneBroker):
            return
        broker.usual_prefetch = min(2 * worker.worker_threads, 65535)
        try:
            self._runtime.start(broker, worker, self._bindings)
            if broker.owns_process and broker.bus.mode != "redis":  # the server was away, and the bus fell back
                self._runtime.stop(broker)
                raise MemoryWorker
        except BootFailed as error:
            if broker.owns_process:
                log.critical("%s", error, exc_info=_worth_a_trace(error))
                Watchdog(AFTER_GRACE_S).all_done(EXIT_BOOT)  # a thread that a resource has left behind must not keep us
                raise SystemExit(EXIT_BOOT) from None
            raise WorkerBootError(str(error)) from error

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LaneBroker):
            self._runtime.stage.join_worker(worker)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LaneBroker) and self._runtime.runs(worker):
            me = threading.current_thread()
            if self._runtime.runs_on(me) or (isinstance(me, WorkerThread) and me.work_queue is worker.work_queue):
                raise StoppedFromWithin
            self._runtime.quiet(broker)
            worker.workers[:] = [Crew(worker.workers)]  # type: ignore[list-item]  # all that it needs of a thread

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LaneBroker) and self._runtime.runs(worker):
            # Nobody else would end a child of Dramatiq's, should a thread that was left keep it from exiting.
            watchdog = Watchdog(AFTER_GRACE_S) if _is_child_of_dramatiq() else None
            self._runtime.stop(broker)
            if watchdog is not None:
                watchdog.all_done(EXIT_FAILURE if self._runtime.failed else 0)
                if self._runtime.failed:
                    raise SystemExit(EXIT_FAILURE)  # this hook is the last, and all is closed


def _is_child_of_dramatiq() -> bool:
    """Whether this process is one that ``dramatiq module:broker`` has forked or spawned."""
    return multiprocessing.parent_process() is not None and "dramatiq.cli" in sys.modules


def _worth_a_trace(error: BootFailed) -> BaseException | None:
    """Our own errors say what to do; a failure inside the app's resources needs its traceback."""
    cause = error.__cause__
    return cause if cause is not None and not type(cause).__module__.startswith(("bus", "workers")) else None
