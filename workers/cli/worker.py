"""``callboard worker``: one worker process for an app.

::

    check ──> import ──> boot ──────> work ──signal──> drain ──────> closed: exit 0
      │ 2        │ 2       │ 3 failed            │ grace + 10 s later, or a second signal: exit 1, at once
                           └ signal: unwind, exit 0

What cannot be interrupted (a handler inside C code) is left at the deadline by a hard exit; its lease then expires, and
its event runs again elsewhere.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from dramatiq import Worker

from workers import App, MemoryWorker
from workers.cli.loading import load_app
from workers.cli.outcome import FAILURE, USAGE, Failed
from workers.cli.terminal import one_line, without_secrets

__all__ = ["worker"]

AFTER_GRACE_S = 10.0
"""For everything that a stop does besides waiting for handlers."""
SAME_SIGNAL_S = 0.5
"""Runners signal a process group and its members; what comes so soon is the same wish, not a second one."""

log = logging.getLogger("callboard.worker")


def worker(
    where: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, as in shop.events:app.")],
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Handlers at once.")] = 8,
    queues: Annotated[
        list[str] | None, typer.Option("--queues", metavar="QUEUE", help="Work on these queues only; repeatable.")
    ] = None,
    grace_s: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", min=0, help="How long running handlers may finish at the end."),
    ] = 20,
) -> None:
    """Run an app's handlers in this process, until SIGTERM or Ctrl-C.

    Then it takes no more work, lets handlers finish, hands the rest back and exits with 0; a second signal ends it at
    once. Start as many as you like: they share the work, and each agent's events stay in order. Exit code 2 means
    that it was asked wrongly (the app, a queue or the bus it names), 3 that it could not start (the server, a resource). 'dramatiq MODULE:APP.broker' works as well.

    For example:

        callboard worker shop.events:app

        callboard worker shop.events:app --threads 32 --queues default --queues mail
    """
    _log_to_stderr()
    stop = _Stop(grace_s)
    app, running = None, None
    try:
        app = load_app(where)
        _check(app, queues)
        app.broker.owns_process = True
        # Middleware that serves a whole process (time limits) starts here; only command lines say so.
        app.broker.emit_after("process_boot")
        running = Worker(app.broker, queues=set(queues) if queues else None, worker_threads=threads)
        running.start()
        stop.booted()
    except _StoppedEarly:
        # It may have come when threads were at work already, before this one could say so.
        if app is not None and running is not None:
            running.stop(timeout=int(grace_s * 1000))
            app.broker.close()
        log.info("stopped while starting")
        return
    _announce(app, queues, threads)
    if not app.broker.actors:
        log.warning(
            "this app has no handlers, so there is nothing to do: does the module that declares them get imported?"
        )
    stop.wait()
    log.info("stopping: running handlers have %g s", grace_s)
    running.stop(timeout=int(grace_s * 1000))
    app.broker.close()
    log.info("stopped")


def _check(app: App, queues: list[str] | None) -> None:
    if app.bus.mode == "memory":
        raise MemoryWorker
    unknown = sorted(set(queues or ()) - set(app.broker.queues))
    if unknown:
        known = ", ".join(sorted(app.broker.queues)) or "none"
        raise Failed(f"this app has no queue {unknown[0]!r} (it has {known})", USAGE)


def _announce(app: App, queues: list[str] | None, threads: int) -> None:
    served = sorted(queues or app.broker.queues)
    actors = sorted(name for name, actor in app.broker.actors.items() if actor.queue_name in served)
    log.info(
        "ready: %s, namespace %r, queues %s, handlers %s, %d threads",
        app.bus.mode,
        app.bus.namespace,
        ", ".join(served) or "none",
        ", ".join(actors) or "none",
        threads,
    )


class _StoppedEarly(BaseException):
    """A signal came before there was anything to drain; it unwinds the boot from wherever that is."""


class _Stop:
    """The signals of this process, and the promise that it ends. Made on the main thread."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._first_at: float | None = None
        self._booted = False
        self._asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def booted(self) -> None:
        """From now on a signal is waited for instead of raised."""
        self._booted = True

    def wait(self) -> None:
        """Block until a signal has come."""
        self._asked.wait()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_at is not None:
            if now - self._first_at >= SAME_SIGNAL_S:
                _leave("a second signal: leaving at once; what was running runs again when the lease ends")
            return
        self._first_at = now
        threading.Thread(target=self._watch, name="callboard watchdog", daemon=True).start()
        self._asked.set()
        if not self._booted:
            raise _StoppedEarly

    def _watch(self) -> None:
        time.sleep(self._grace_s + AFTER_GRACE_S)
        _leave("the stop is not done at its deadline: leaving; what was running runs again when the lease ends")


def _leave(why: str) -> NoReturn:
    """Exit without asking anybody, from any thread or signal handler: so no logging, whose lock may be taken."""
    os.write(sys.stderr.fileno(), f"error: {why}\n".encode())
    os._exit(FAILURE)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    # Dramatiq tells about each thread and each stop at INFO.
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("dramatiq").setLevel(logging.WARNING)


class _Lines(logging.Formatter):
    """A line for each record, then its traceback if it has one. What ends the process is an error like any command's."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """An app's own error may quote a URL; its password is nobody's business in a log."""
        return without_secrets(super().formatException(ei))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = one_line(record.message)
        return f"error: {record.message}" if record.levelno >= logging.CRITICAL else super().formatMessage(record)
