"""Publishing: one thread, one event after another, and batches."""

from __future__ import annotations

import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bus import Bus
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.systems import (
    BASELINE,
    Noted,
    app_on,
    plain_redis_broker,
    publications,
    redis_broker,
    texts,
)

__all__ = ["BATCHED", "SINGLE"]

WARM_UP = 50

PUBLISH = Work("publish", "events/s", more_is_better=True)
BATCHES = (100, 500)
MANY = {size: Work(f"publish_many {size}", "events/s", more_is_better=True) for size in BATCHES}


# -- in the child ------------------------------------------------------------------------------------------------------


def send_each(url: str, namespace: str, many: int) -> float:
    """Dramatiq: ``actor.send`` for each."""
    return _send_each(redis_broker(url, namespace), many)


def send_each_plainly(url: str, namespace: str, many: int) -> float:
    """The same, as it is without us."""
    return _send_each(plain_redis_broker(url, namespace), many)


def _send_each(broker: RedisBroker, many: int) -> float:
    @dramatiq.actor(broker=broker)
    def noted(agent_id: str, text: str) -> None:
        """Only sent, never run."""

    for agent, text in texts(WARM_UP):
        noted.send(agent, text)
    started = time.perf_counter()
    for agent, text in texts(many):
        noted.send(agent, text)
    elapsed_s = time.perf_counter() - started
    broker.close()
    return many / elapsed_s


def publish_each(url: str, namespace: str, many: int) -> float:
    """Ours: numbered, logged, announced, deduplicated and queued in its agent's lane for one handler."""
    bus = _bound(url, namespace)
    _publish(bus, WARM_UP)
    started = time.perf_counter()
    _publish(bus, many)
    elapsed_s = time.perf_counter() - started
    bus.close_sync()
    return many / elapsed_s


def _publish(bus: Bus, many: int) -> None:
    for agent, text in texts(many):
        bus.publish_sync(Noted(agent_id=agent, text=text), topics=["global", f"agent:{agent}"], key=agent)


def publish_batches(url: str, namespace: str, many: int, size: int) -> float:
    """Ours, ``size`` at a time; making the events counts."""
    bus = _bound(url, namespace)
    bus.publish_many_sync(publications(WARM_UP))
    started = time.perf_counter()
    for _ in range(0, many, size):
        bus.publish_many_sync(publications(size))
    elapsed_s = time.perf_counter() - started
    bus.close_sync()
    return many / elapsed_s


def _bound(url: str, namespace: str) -> Bus:
    app = app_on(url, namespace)

    @app.on(Noted, key="agent_id")
    def noted(event: Noted) -> None:
        """Only published to, never run."""

    app.bind()
    return app.bus


# -- in the parent -----------------------------------------------------------------------------------------------------


def _many(bench: Bench) -> int:
    return bench.many(1_000, 5_000)


def _dramatiq(bench: Bench) -> Numbers:
    return {PUBLISH.name: bench.run(send_each, many=_many(bench))}


def _plain_dramatiq(bench: Bench) -> Numbers:
    return {PUBLISH.name: bench.run(send_each_plainly, many=_many(bench))}


def _dramatiq_for_batches(bench: Bench) -> Numbers:
    # It has no batches: its single sends are what each size is compared with.
    rate = bench.run(send_each, many=_many(bench))
    return {work.name: rate for work in MANY.values()}


def _ours(bench: Bench) -> Numbers:
    return {PUBLISH.name: bench.run(publish_each, many=_many(bench))}


def _ours_in_batches(bench: Bench) -> Numbers:
    # Batches are quick: more of them, so that the clock has something to measure.
    return {work.name: bench.run(publish_batches, many=4 * _many(bench), size=size) for size, work in MANY.items()}


SINGLE = Family(
    (PUBLISH,),
    (
        Case(BASELINE, _dramatiq),
        Case(f"{BASELINE}, without our hiredis", _plain_dramatiq),
        Case("callboard", _ours),
    ),
)
BATCHED = Family(tuple(MANY.values()), (Case(BASELINE, _dramatiq_for_batches), Case("callboard", _ours_in_batches)))
