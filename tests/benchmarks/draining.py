"""Draining: one worker process against a queue that is full from the start, with handlers that do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import dramatiq

from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.systems import BASELINE, Countdown, Noted, app_on, fill_app, redis_broker, texts

__all__ = ["DRAIN"]

WORK = Work("drain", "jobs/s", more_is_better=True)
TIMEOUT_S = 120.0
THREADS = {8: False, 4: True, 1: True}
"""Tunings, and which of them a quick run leaves out."""


# -- in the child ------------------------------------------------------------------------------------------------------


def drain_dramatiq(url: str, namespace: str, many: int, threads: int) -> float:
    """Dramatiq's broker with a plain actor."""
    return _drain_actor(redis_broker(url, namespace), many, threads)


def drain_actor(url: str, namespace: str, many: int, threads: int) -> float:
    """Our broker with a plain actor."""
    return _drain_actor(app_on(url, namespace).broker, many, threads)


def _drain_actor(broker: dramatiq.Broker, many: int, threads: int) -> float:
    done = Countdown(many)

    @dramatiq.actor(broker=broker)
    def noted(agent_id: str, text: str) -> None:
        done.one()

    for agent, text in texts(many):
        noted.send(agent, text)
    return _drain(broker, done, many, threads)


def drain_handler(url: str, namespace: str, many: int, threads: int, key: str | None) -> float:
    """Our broker with a handler of events, and a lane for each value of ``key``."""
    app = app_on(url, namespace)
    done = Countdown(many)

    @app.on(Noted, key=key)
    def noted(event: Noted) -> None:
        done.one()

    app.bind()
    fill_app(app, many)
    return _drain(app.broker, done, many, threads)


def _drain(broker: dramatiq.Broker, done: Countdown, many: int, threads: int) -> float:
    worker = dramatiq.Worker(broker, worker_threads=threads)
    started = time.perf_counter()
    worker.start()
    done.wait(TIMEOUT_S)
    elapsed_s = time.perf_counter() - started
    worker.stop(timeout=10_000)
    broker.close()
    return many / elapsed_s


# -- in the parent -----------------------------------------------------------------------------------------------------


def _many(bench: Bench) -> int:
    return bench.many(2_000, 10_000)


def _dramatiq(bench: Bench, *, threads: int, prefetch: int | None) -> Numbers:
    environ = {"dramatiq_queue_prefetch": str(prefetch)} if prefetch else None
    return {WORK.name: bench.run(drain_dramatiq, environ, many=_many(bench), threads=threads)}


def _actor(bench: Bench, *, threads: int) -> Numbers:
    return {WORK.name: bench.run(drain_actor, many=_many(bench), threads=threads)}


def _handler(bench: Bench, *, threads: int, key: str | None) -> Numbers:
    return {WORK.name: bench.run(drain_handler, many=_many(bench), threads=threads, key=key)}


SYSTEMS: dict[str, Callable[..., Numbers]] = {
    BASELINE: partial(_dramatiq, prefetch=None),
    "dramatiq redis, prefetch 256": partial(_dramatiq, prefetch=256),
    "callboard, actor": _actor,
    "callboard, handler": partial(_handler, key=None),
    "callboard, handler, 100 keys": partial(_handler, key="agent_id"),
}

DRAIN = Family(
    (WORK,),
    tuple(
        Case(system, partial(measure, threads=threads), f"{threads} threads", full_only)
        for threads, full_only in THREADS.items()
        for system, measure in SYSTEMS.items()
    ),
)
