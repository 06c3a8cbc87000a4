"""Waiting handlers: one process, thousands of jobs that wait for something, as agents wait for models.

The jobs are there when the worker starts. What is measured is the wall time until the last is done, the CPU time that the
worker's process took for it, and how much its memory peaked above what it was when idle. Each system runs as many at once
as the case says: on an event loop, or, with Dramatiq's AsyncIO middleware, on as many threads.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import dramatiq
import redis
import uvloop
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from tests.benchmarks import child
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.meter import Meter
from tests.benchmarks.peers import PeerMissing, python_with
from tests.benchmarks.systems import BASELINE, Countdown, Noted, app_on, fill_app, texts

__all__ = ["families"]

TIMEOUT_S = 120.0


# -- in the child ------------------------------------------------------------------------------------------------------


def wait_dramatiq(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """Dramatiq's broker with its AsyncIO middleware, and a thread for each coroutine."""
    # With redis-py 8 a pool has 100 connections unless one says more, and each of so many threads wants its own.
    client = redis.Redis.from_url(url, max_connections=2 * concurrency)
    broker = RedisBroker(client=client, namespace=namespace)
    broker.add_middleware(AsyncIO())
    return _wait_for_actor(broker, many, wait_s, threads=concurrency)


def wait_actor(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """Our broker with an async actor."""
    return _wait_for_actor(app_on(url, namespace, concurrency).broker, many, wait_s, threads=8)


def _wait_for_actor(broker: dramatiq.Broker, many: int, wait_s: float, threads: int) -> dict[str, float]:
    done = Countdown(many)

    @dramatiq.actor(broker=broker)
    async def noted(agent_id: str, text: str) -> None:
        await asyncio.sleep(wait_s)
        done.one()

    for agent, text in texts(many):
        noted.send(agent, text)
    return _work(broker, done, threads)


def wait_handler(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """Our broker with an async handler of events."""
    app = app_on(url, namespace, concurrency)
    done = Countdown(many)

    @app.on(Noted)
    async def noted(event: Noted) -> None:
        await asyncio.sleep(wait_s)
        done.one()

    app.bind()
    fill_app(app, many)
    return _work(app.broker, done, threads=8)


def _work(broker: dramatiq.Broker, done: Countdown, threads: int) -> dict[str, float]:
    worker = dramatiq.Worker(broker, worker_threads=threads)
    # The peers are measured on a loop that runs already. We make ours at a worker's start, and pay for it; but the pages of
    # uvloop's code, which the kernel counts when they are first used, are no more ours than theirs.
    uvloop.run(asyncio.sleep(0))
    meter = Meter()
    meter.start()
    worker.start()
    done.wait(TIMEOUT_S)
    found = meter.read()
    worker.stop(timeout=10_000)
    broker.close()
    return found


# -- in the parent -----------------------------------------------------------------------------------------------------


class Wait(NamedTuple):
    """So many handlers that wait so long, so many of them at once."""

    many: int
    wait_s: float
    concurrency: int
    quick_many: int

    @property
    def works(self) -> tuple[Work, Work, Work]:
        """What is measured of it."""
        what = f"{self.many:,} x {self.wait_s:g} s, {self.concurrency:,} at once"
        return tuple(Work(f"{what}: {name}", unit, more_is_better=False) for name, unit in NUMBERS)  # type: ignore[return-value]


NUMBERS = (("wall", "s"), ("CPU", "s"), ("peak", "MB"))
"""In the order in which a meter reads them."""
LONG_WAIT = Wait(3_000, 2.0, 1_000, quick_many=1_000)
SHORT_WAIT = Wait(2_000, 0.05, 512, quick_many=1_000)


def _measured(bench: Bench, *, piece: Callable[..., dict[str, float]] | str, python: str, wait: Wait) -> Numbers:
    load = {"many": bench.many(wait.quick_many, wait.many), "wait_s": wait.wait_s, "concurrency": wait.concurrency}
    found = child.run(piece, bench.fresh() | load, python=python)
    return dict(zip((work.name for work in wait.works), found.values(), strict=True))


OURS: dict[str, Callable[..., dict[str, float]]] = {
    BASELINE: wait_dramatiq,
    "callboard, actor": wait_actor,
    "callboard, handler": wait_handler,
}
PEERS = {
    "taskiq, stream": ("taskiq", ["taskiq", "taskiq-redis", "uvloop"]),
    "FastStream, stream": ("faststream", ["faststream[redis]", "uvloop"]),
    "arq": ("arq", ["arq", "uvloop"]),
}
"""Each with its module in ``peers``, and what is to be installed for it: the newest there is."""


def families() -> tuple[dict[str, Family], dict[str, str]]:
    """The works, with the peers that could be installed; and which could not, and why."""
    systems: dict[str, tuple[Callable[..., dict[str, float]] | str, str]] = {
        system: (piece, sys.executable) for system, piece in OURS.items()
    }
    missing: dict[str, str] = {}
    for system, (name, requirements) in PEERS.items():
        try:
            systems[system] = f"tests.benchmarks.peers.{name}_waiting:wait", python_with(name, requirements)
        except PeerMissing as why:
            missing[system] = str(why)
    return {name: _family(wait, systems) for name, wait in (("long", LONG_WAIT), ("short", SHORT_WAIT))}, missing


def _family(wait: Wait, systems: Mapping[str, tuple[Callable[..., dict[str, float]] | str, str]]) -> Family:
    cases = [
        Case(system, partial(_measured, piece=piece, python=python, wait=wait))
        for system, (piece, python) in systems.items()
    ]
    return Family(wait.works, tuple(cases))
