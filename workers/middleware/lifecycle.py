"""Where Dramatiq's life and ours meet: its hooks, mapped to the runtime's phases.

Dramatiq logs and swallows whatever a hook raises, except a ``MiddlewareError`` from ``before_worker_boot``; under its
command line that ends the process with a traceback, so there we leave with an exit code of our own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware, MiddlewareError

from bus.bindings import Binding
from workers.broker import LaneBroker
from workers.errors import BootFailed, MemoryWorker
from workers.runtime import Runtime

__all__ = ["EXIT_BOOT", "EXIT_USAGE", "Lifecycle", "WorkerBootError"]

EXIT_USAGE = 2
EXIT_BOOT = 3

log = logging.getLogger("callboard.workers")


class WorkerBootError(MiddlewareError, BootFailed):
    """A boot that failed, as an embedded ``dramatiq.Worker`` raises it from ``start``."""


class Lifecycle(Middleware):
    """Boots, quiets and stops the runtime with the worker."""

    def __init__(self, runtime: Runtime, bindings: Callable[[], Iterable[Binding]]) -> None:
        self._runtime = runtime
        self._bindings = bindings
        self._is_process = False

    def after_process_boot(self, broker: Broker) -> None:
        """Only command lines emit this: the process is a worker and nothing else."""
        self._is_process = True
        if isinstance(broker, LaneBroker) and broker.bus.mode != "redis":
            log.critical("%s", MemoryWorker())
            raise SystemExit(EXIT_USAGE)
        # A runner that signals the whole process group would have SIGTERM arrive twice in a child of Dramatiq's master,
        # which forwards it, and a second one kills: 9 of 10 stops under honcho killed running jobs.
        if multiprocessing.parent_process() is not None:
            os.setpgid(0, 0)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if not isinstance(broker, LaneBroker):
            return
        try:
            self._runtime.start(broker, self._bindings())
            if self._is_process and broker.bus.mode != "redis":  # the server was away, and the bus fell back
                self._runtime.stop(broker)
                raise MemoryWorker
        except BootFailed as error:
            if self._is_process:
                log.critical("%s", error, exc_info=_worth_a_trace(error))
                raise SystemExit(EXIT_BOOT) from None
            raise WorkerBootError(str(error)) from error

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LaneBroker):
            self._runtime.quiet(broker)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LaneBroker):
            self._runtime.stop(broker)


def _worth_a_trace(error: BootFailed) -> bool:
    """Our own errors say what to do; a failure inside the app's resources needs its traceback."""
    cause = error.__cause__
    return cause is not None and not type(cause).__module__.startswith(("bus", "workers"))
