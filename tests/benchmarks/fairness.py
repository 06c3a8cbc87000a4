"""Fairness: how long the others wait while ten thousand events of one key do.

One worker process with eight threads. Events of a hot key take its handler 2 ms each; a trickle of a hundred other keys
asks for next to nothing, and its 95th percentile from publish to handler is measured, once with nothing else to do and
once behind the hot key's events. Dramatiq's broker knows no keys: there the trickle waits in the same queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import quantiles
from typing import Any

import dramatiq

from bus import Publication
from tests.benchmarks import child
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.stopwatch import Stopwatch
from tests.benchmarks.systems import BASELINE, BATCH, TEXT, Noted, app_on, redis_broker, texts
from workers import App

__all__ = ["FAIRNESS"]

HOT = "hot"
HOT_JOBS = 10_000
HOT_WORK_S = 0.002
THREADS = 8
PER_S = 100
WARM_UP = 10

IDLE = Work("hot key: others' p95, idle", "ms", more_is_better=False)
WAITING = Work(f"hot key: others' p95, {HOT_JOBS:,} waiting", "ms", more_is_better=False)
SHARE = Work("hot key: others' p95, idle / waiting", "", more_is_better=True)
"""What the others have left of their idle pace: 1 is all of it, and P8 asks for more than a half."""


# -- in the children ---------------------------------------------------------------------------------------------------


class Shift:
    """What the handlers do: hot ones work and are counted, the others are timed."""

    def __init__(self, many: int) -> None:
        self.hot_done = 0
        self.watch = Stopwatch(many)

    def handle(self, agent_id: str, sent_ns: int) -> None:
        if agent_id == HOT:
            time.sleep(HOT_WORK_S)
            self.hot_done += 1  # on Dramatiq's threads a rough count
        else:
            self.watch.note(sent_ns)


def work_dramatiq(url: str, namespace: str, many: int) -> dict[str, Any]:
    """A worker on Dramatiq's broker."""
    shift = Shift(many)
    broker = redis_broker(url, namespace)
    _declare_actor(broker, shift.handle)
    return _work(broker, shift)


def work_app(url: str, namespace: str, many: int) -> dict[str, Any]:
    """A worker on ours, with a lane for each key."""
    shift = Shift(many)
    app = app_on(url, namespace)
    _declare_handler(app, shift.handle)
    return _work(app.broker, shift)


def _declare_actor(
    broker: dramatiq.Broker, handle: Callable[[str, int], None]
) -> dramatiq.Actor[[str, str, int], None]:
    @dramatiq.actor(broker=broker, actor_name="work")
    def work(agent_id: str, text: str, sent_ns: int) -> None:
        handle(agent_id, sent_ns)

    return work


def _declare_handler(app: App, handle: Callable[[str, int], None]) -> None:
    @app.on(Noted, name="work", key="agent_id")
    def work(event: Noted) -> None:
        handle(event.agent_id, event.sent_ns)


def _work(broker: dramatiq.Broker, shift: Shift) -> dict[str, Any]:
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    child.say("ready")
    latencies_ms, hot_done = shift.watch.latencies_ms(), shift.hot_done
    worker.stop(timeout=10_000)
    broker.close()
    return {"latencies_ms": latencies_ms, "hot_done": hot_done}


def fill_dramatiq(url: str, namespace: str) -> None:
    """The hot key's messages, on Dramatiq's broker."""
    broker = redis_broker(url, namespace)
    actor = _declare_actor(broker, lambda *_: None)
    for _ in range(HOT_JOBS):
        actor.send(HOT, TEXT, 0)
    broker.close()


def fill_app(url: str, namespace: str) -> None:
    """The hot key's events, on ours."""
    app = app_on(url, namespace)
    _declare_handler(app, lambda *_: None)
    app.bind()
    load = [Publication(Noted(agent_id=HOT, text=TEXT), ["global", f"agent:{HOT}"], key=None)] * BATCH
    for _ in range(HOT_JOBS // BATCH):
        app.bus.publish_many_sync(load)
    app.bus.close_sync()


def trickle_dramatiq(url: str, namespace: str, many: int) -> None:
    """The others' messages, at their pace."""
    broker = redis_broker(url, namespace)
    actor = _declare_actor(broker, lambda *_: None)
    _at_a_pace(lambda agent, sent_ns: actor.send(agent, TEXT, sent_ns), many)
    broker.close()


def trickle_app(url: str, namespace: str, many: int) -> None:
    """The others' events, at their pace."""
    bus = app_on(url, namespace).bus

    def publish(agent: str, sent_ns: int) -> None:
        bus.publish_sync(Noted(agent_id=agent, text=TEXT, sent_ns=sent_ns), topics=["global", f"agent:{agent}"])

    _at_a_pace(publish, many)
    bus.close_sync()


def _at_a_pace(send: Callable[[str, int], Any], many: int) -> None:
    started = time.monotonic()
    for number, (agent, _) in enumerate(texts(WARM_UP + many)):
        time.sleep(max(0.0, started + number / PER_S - time.monotonic()))
        send(agent, time.monotonic_ns() if number >= WARM_UP else 0)


# -- in the parent -----------------------------------------------------------------------------------------------------


def _others_p95(
    bench: Bench, *, worker: Callable[..., Any], trickle: Callable[..., Any], fill: Callable[..., Any] | None
) -> tuple[float, int]:
    """In milliseconds, and how many hot ones were done by then."""
    where, many = bench.fresh(), bench.many(3, 8) * PER_S
    if fill is not None:
        child.run(fill, where)
    with child.Child(worker, where | {"many": many}) as busy:
        busy.heard()
        child.run(trickle, where | {"many": many})
        found = busy.heard()
    return quantiles(found["latencies_ms"], n=20, method="inclusive")[18], found["hot_done"]


def _fairness(
    bench: Bench,
    *,
    worker: Callable[..., Any],
    trickle: Callable[..., Any],
    fill: Callable[..., Any],
    lasts: bool,
) -> Numbers:
    """``lasts``: whether the hot ones have to be waiting still when the last of the others has come."""
    idle_ms, _ = _others_p95(bench, worker=worker, trickle=trickle, fill=None)
    waiting_ms, hot_done = _others_p95(bench, worker=worker, trickle=trickle, fill=fill)
    if not hot_done or (lasts and hot_done >= HOT_JOBS):
        raise RuntimeError(f"{hot_done} of {HOT_JOBS} hot events were done: the others had nobody beside them")
    return {IDLE.name: idle_ms, WAITING.name: waiting_ms, SHARE.name: idle_ms / waiting_ms}


FAIRNESS = Family(
    (IDLE, WAITING, SHARE),
    (
        Case(
            BASELINE,
            partial(_fairness, worker=work_dramatiq, trickle=trickle_dramatiq, fill=fill_dramatiq, lasts=False),
        ),
        Case("callboard", partial(_fairness, worker=work_app, trickle=trickle_app, fill=fill_app, lasts=True)),
    ),
)
