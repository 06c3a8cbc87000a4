"""Idling: how soon an idle worker starts what is published, and how much an idle worker talks."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import quantiles
from typing import Any

import dramatiq
import redis

from tests.benchmarks import child
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.peers import PeerMissing, python_with
from tests.benchmarks.stopwatch import WARM_UP, Stopwatch, at_leisure
from tests.benchmarks.systems import BASELINE, TEXT, Noted, app_on, redis_broker
from tests.servers import Server

__all__ = ["COMMANDS", "latency"]

SETTLE_S = 3.0
"""How long a worker is left alone before it counts as idle: Dramatiq's backoff needs some misses to reach its longest."""

P50 = Work("idle latency p50", "ms", more_is_better=False)
P99 = Work("idle latency p99", "ms", more_is_better=False)
TALK = Work("idle commands", "commands/s", more_is_better=False)


# -- in the children ---------------------------------------------------------------------------------------------------


def work_dramatiq(url: str, namespace: str, many: int) -> list[float]:
    """An idle worker on Dramatiq's broker; its answer are the latencies of so many messages."""
    watch = Stopwatch(many)
    broker = redis_broker(url, namespace)
    _declare(broker, watch.note)
    return _work(broker, watch, many)


def work_app(url: str, namespace: str, many: int) -> list[float]:
    """The same on ours, with an actor and a handler."""
    watch = Stopwatch(many)
    app = app_on(url, namespace)
    _declare(app.broker, watch.note)

    @app.on(Noted, name="handle", key="agent_id")
    def handle(event: Noted) -> None:
        watch.note(event.sent_ns)

    return _work(app.broker, watch, many)


def _declare(broker: dramatiq.Broker, note: Callable[[int], None]) -> dramatiq.Actor[[str, str, int], None]:
    @dramatiq.actor(broker=broker, actor_name="work")
    def work(agent_id: str, text: str, sent_ns: int) -> None:
        note(sent_ns)

    return work


def _work(broker: dramatiq.Broker, watch: Stopwatch, many: int) -> list[float]:
    worker = dramatiq.Worker(broker)
    worker.start()
    child.say("ready")
    if many:
        child.say(watch.latencies_ms())
    child.ended()
    worker.stop(timeout=10_000)
    broker.close()
    return []


def send_dramatiq(url: str, namespace: str, many: int) -> None:
    """A producer on Dramatiq's broker, in a process of its own."""
    broker = redis_broker(url, namespace)
    actor = _declare(broker, lambda _: None)
    at_leisure(lambda sent_ns: actor.send("agent-001", TEXT, sent_ns), many)
    broker.close()


def send_actor(url: str, namespace: str, many: int) -> None:
    """A producer on ours, that sends to the actor."""
    app = app_on(url, namespace)
    actor = _declare(app.broker, lambda _: None)
    at_leisure(lambda sent_ns: actor.send("agent-001", TEXT, sent_ns), many)
    app.bus.close_sync()


def publish(url: str, namespace: str, many: int) -> None:
    """A producer on ours, that publishes to the handler."""
    bus = app_on(url, namespace).bus
    topics = ["global", "agent:agent-001"]
    at_leisure(
        lambda sent_ns: bus.publish_sync(Noted(agent_id="agent-001", text=TEXT, sent_ns=sent_ns), topics=topics), many
    )
    bus.close_sync()


def hear(url: str, namespace: str, many: int) -> list[float]:
    """A thread that is subscribed, and is given the message's text: the least that a wake-up over the server takes."""
    watch = Stopwatch(many)
    with redis.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=False) as subscription:
        subscription.subscribe(namespace)
        assert next(subscription.listen())["type"] == "subscribe"
        child.say("ready")
        for number, message in enumerate(subscription.listen(), 1):
            watch.note(int(message["data"].partition(b" ")[0]))
            if number == WARM_UP + many:
                return watch.latencies_ms()
    raise RuntimeError("the subscription ended")


def send_bare(url: str, namespace: str, many: int) -> None:
    """Its publisher."""
    with redis.Redis.from_url(url) as client:
        at_leisure(lambda sent_ns: client.publish(namespace, f"{sent_ns} {TEXT}"), many)


# -- in the parent -----------------------------------------------------------------------------------------------------


Piece = Callable[..., Any] | str


def _latency(bench: Bench, *, worker: Piece, producer: Piece, python: str = sys.executable, **more: Any) -> Numbers:
    load = bench.fresh() | {"many": bench.many(50, 300)}
    with child.Child(worker, load, python=python) as idle:
        idle.heard()
        child.run(producer, load | more, python=python)
        latencies_ms = idle.heard()
    percentiles = quantiles(latencies_ms, n=100, method="inclusive")
    return {P50.name: percentiles[49], P99.name: percentiles[98]}


def _commands(bench: Bench, *, worker: Callable[..., Any]) -> Numbers:
    with child.Child(worker, bench.fresh() | {"many": 0}) as idle:
        idle.heard()
        time.sleep(SETTLE_S)
        seconds = bench.many(3, 5)
        commands = _commands_during(bench.server, seconds)
    return {TALK.name: commands / seconds}


def _commands_during(server: Server, seconds: float) -> int:
    """What clients send; the commands of their scripts are the server's own affair (INFO counts both)."""
    said = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        assert monitor.recv(5) == b"+OK\r\n"
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            monitor.settimeout(left_s)
            try:
                said += monitor.recv(65_536)
            except TimeoutError:
                break
    return sum(b" lua] " not in line for line in said.splitlines())


def latency() -> tuple[Family, dict[str, str]]:
    """The work, with huey if that could be installed, which is the quickest of the others; and if not, why."""
    cases = [
        Case(BASELINE, partial(_latency, worker=work_dramatiq, producer=send_dramatiq)),
        Case("callboard, actor", partial(_latency, worker=work_app, producer=send_actor)),
        Case("callboard, handler", partial(_latency, worker=work_app, producer=publish)),
        Case("bare pub/sub", partial(_latency, worker=hear, producer=send_bare)),
    ]
    missing: dict[str, str] = {}
    module = "tests.benchmarks.peers.huey_idling"
    try:
        python = python_with("huey", ["huey", "redis[hiredis]"])
    except PeerMissing as why:
        missing["huey"] = str(why)
    else:
        measure = partial(_latency, worker=f"{module}:work", producer=f"{module}:send", python=python, text=TEXT)
        cases.insert(3, Case("huey", measure))
    return Family((P50, P99), tuple(cases)), missing


COMMANDS = Family(
    (TALK,),
    (Case(BASELINE, partial(_commands, worker=work_dramatiq)), Case("callboard", partial(_commands, worker=work_app))),
)
