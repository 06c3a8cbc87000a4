"""One worker process, from its app's import to its last connection's close: alone, or as the child of a master."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass

from dramatiq import Worker
from dramatiq.middleware import MiddlewareError

from workers import App, BootFailed, MemoryWorker
from workers.cli.loading import load_app
from workers.cli.outcome import FAILURE, USAGE, Failed
from workers.cli.stopping import GUARD_S, Stop, StoppedEarly
from workers.errors import instead_of
from workers.health import Endpoint, Reporter, WorkerHealth
from workers.leaving import AFTER_GRACE_S
from workers.middleware import EXIT_BOOT
from workers.supervisor import Command, Guard, Tether, names_of_forks

__all__ = ["Wishes", "open_endpoint", "serve"]

MOST_NAMED = 10

log = logging.getLogger("callboard.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a worker is to work: what its command line asks for."""

    where: str
    threads: int
    queues: tuple[str, ...]
    grace_s: float
    health: tuple[str, int] | None


def serve(wishes: Wishes, tether: Tether | None) -> None:
    """Work until a signal. After SIGHUP it does not return: a process that is alone begins anew as it was started."""
    stop = Stop(wishes.grace_s, child=tether is not None)
    limit_s = wishes.grace_s + AFTER_GRACE_S + GUARD_S
    guard = Guard(limit_s, stop.signals, tether.fileno() if tether is not None else None)
    exit_code = 0
    with ExitStack() as stack:
        try:
            stop.heed()
            endpoint = _endpoint(wishes, stack) if tether is None else None
            exit_code = _work(wishes, stop, tether, endpoint)
        except StoppedEarly as early:
            exit_code = early.exit_code
            log.info("stopped while starting")
    if stop.again:
        guard.close()
    if stop.over(exit_code):
        command = Command("worker").with_options()
        os.execv(command[0], command)  # noqa: S606 - this very command
    if exit_code:
        raise SystemExit(exit_code)


def _work(wishes: Wishes, stop: Stop, tether: Tether | None, endpoint: Endpoint | None) -> int:
    """Until a signal. Returns the exit code."""
    app = load_app(wishes.where)
    _check(app, wishes.queues)
    health = _health_of(app, wishes.queues) if wishes.health is not None else None
    app.broker.owns_process = True
    app.runtime.when_lost = stop.from_within
    app.broker.must_succeed = frozenset({"process_boot", "worker_boot"})
    running = Worker(app.broker, queues=set(wishes.queues) or None, worker_threads=wishes.threads)
    try:
        # Middleware that serves a whole process (time limits) starts here; only command lines say so.
        app.broker.emit_after("process_boot")
        running.start()
        stop.booted()
    except StoppedEarly as early:
        # It may have come when threads were at work already, before this one could say so.
        _end(app, running, wishes.grace_s)
        early.exit_code = FAILURE if app.runtime.failed else 0
        raise
    except BaseException as error:  # of a hook or a resource of the app's own: its sys.exit(0), say
        if isinstance(error, SystemExit) and error.code in (USAGE, EXIT_BOOT):
            raise  # the lifecycle has said why
        _end(app, running, wishes.grace_s)
        _say_why(error)
        raise SystemExit(EXIT_BOOT) from None
    _tell(app, wishes, tether)
    with ExitStack() as stack:
        if endpoint is not None and health is not None:
            endpoint.reasons = health.reasons
        if tether is not None and health is not None:
            stack.enter_context(Reporter(health.reasons, tether.tell))
        stop.wait()
    if endpoint is not None:
        endpoint.reasons = lambda: ["it is stopping"]
    why = "SIGHUP, stopping to begin anew" if stop.again else "stopping"
    log.info("%s: running handlers have %g s", why, wishes.grace_s)
    _end(app, running, wishes.grace_s)
    log.info("stopped")
    return FAILURE if app.runtime.failed else 0


def _say_why(error: BaseException) -> None:
    if isinstance(error, BootFailed | MiddlewareError):
        log.critical("%s", error, exc_info=error.__cause__)
    else:
        log.critical("the worker could not start: %s: %s", type(error).__name__, error, exc_info=error)


def _end(app: App, running: Worker, grace_s: float) -> None:
    running.stop(timeout=int(grace_s * 1000))
    app.broker.close()


def _check(app: App, queues: tuple[str, ...]) -> None:
    if app.bus.mode == "memory":
        raise MemoryWorker
    unknown = sorted(set(queues) - set(app.broker.queues))
    if unknown:
        raise Failed(f"this app has no queue {unknown[0]!r}{instead_of(unknown[0], sorted(app.broker.queues))}", USAGE)


def _tell(app: App, wishes: Wishes, tether: Tether | None) -> None:
    """Say that it works, to people and to the master."""
    served = sorted(wishes.queues or app.broker.queues)
    actors = sorted(name for name, actor in app.broker.actors.items() if actor.queue_name in served)
    log.info(
        "ready: %s, namespace %r, queues %s, %s, %d threads, concurrency %s",
        app.bus.mode,
        app.bus.namespace,
        ", ".join(served) or "none",
        _listed(actors),
        wishes.threads,
        f"{app.concurrency:,}",
    )
    if not app.broker.actors:
        log.warning(
            "this app has no handlers, so there is nothing to do: does the module that declares them get imported?"
        )
    forks = names_of_forks(app.broker.middleware)
    if tether is not None:
        tether.tell(ready=True, forks=forks)
    elif forks:
        log.warning("middleware wants %s as a process beside this one: start with --processes 2", ", ".join(forks))


def _listed(handlers: list[str]) -> str:
    """How many there are, and the first of them by name."""
    if not handlers:
        return "no handlers"
    names = [*handlers[:MOST_NAMED], *(["..."] if len(handlers) > MOST_NAMED else [])]
    return f"{len(handlers):,} handler{'s' if len(handlers) > 1 else ''} ({', '.join(names)})"


def _endpoint(wishes: Wishes, stack: ExitStack) -> Endpoint | None:
    if wishes.health is None:
        return None
    return stack.enter_context(open_endpoint(wishes.health))


def open_endpoint(place: tuple[str, int]) -> Endpoint:
    """The health endpoint, not ready yet. Raises :class:`Failed` where its port cannot be had."""
    try:
        return Endpoint(*place)
    except OSError as error:
        raise Failed(f"--health-port {place[1]} on {place[0]} cannot be had: {error.strerror}", USAGE) from None


def _health_of(app: App, queues: tuple[str, ...]) -> WorkerHealth:
    def served() -> set[str]:
        return {
            f"{actor.queue_name}|{name}"
            for name, actor in list(app.broker.actors.items())
            if not queues or actor.queue_name in queues
        }

    health = WorkerHealth(app.bus, served, lambda: app.runtime.loop.lag_s, app.broker.staff.limit_of)
    app.broker.add_middleware(health.pulse)
    return health
