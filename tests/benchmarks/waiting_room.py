"""Waiting work: how much of the server's memory each message takes while no worker comes for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import dramatiq

from tests.benchmarks import child
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.systems import BASELINE, Noted, app_on, fill_app, redis_broker, texts

__all__ = ["BYTES", "used"]

WORK = Work("bytes per waiting event", "bytes", more_is_better=False)


# -- in the child ------------------------------------------------------------------------------------------------------


def wait_dramatiq(url: str, namespace: str, many: int) -> None:
    """Messages on Dramatiq's broker."""
    broker = redis_broker(url, namespace)
    _send(broker, many)
    broker.close()


def wait_actor(url: str, namespace: str, many: int) -> None:
    """Messages on ours: a job and the mark of its id each."""
    app = app_on(url, namespace)
    _send(app.broker, many)
    app.bus.close_sync()


def _send(broker: dramatiq.Broker, many: int) -> None:
    @dramatiq.actor(broker=broker)
    def noted(agent_id: str, text: str) -> None:
        """Only sent, never run."""

    for agent, text in texts(many):
        noted.send(agent, text)


def wait_event(url: str, namespace: str, many: int, *, bound: bool) -> None:
    """Events on ours: a log entry, the mark of its id and, where a handler is bound, a job each."""
    app = app_on(url, namespace)
    if bound:

        @app.on(Noted)
        def noted(event: Noted) -> None:
            """Only published to, never run."""

    app.bind()
    fill_app(app, many)
    app.bus.close_sync()


# -- in the parent -----------------------------------------------------------------------------------------------------


def _bytes(bench: Bench, *, piece: Callable[..., None], **arguments: bool) -> Numbers:
    where, many = bench.fresh(), bench.many(2_000, 10_000)
    before = used(bench)
    child.run(piece, where | {"many": many} | arguments)
    return {WORK.name: (used(bench) - before) / many}


def used(bench: Bench) -> float:
    """What the server has in memory, in bytes."""
    with bench.server.client() as client:
        client.execute_command("MEMORY", "PURGE")
        return float(client.info("memory")["used_memory"])


BYTES = Family(
    (WORK,),
    (
        Case(BASELINE, partial(_bytes, piece=wait_dramatiq)),
        Case("callboard, actor", partial(_bytes, piece=wait_actor)),
        Case("callboard, event for a handler", partial(_bytes, piece=wait_event, bound=True)),
        Case("callboard, event, log only", partial(_bytes, piece=wait_event, bound=False)),
    ),
)
