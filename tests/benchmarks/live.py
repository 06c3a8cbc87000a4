"""The live suite: ours beside redis-py's bare pub/sub, broadcaster and FastStream, on one server that it starts itself.

::

    python -m tests.benchmarks live --json live.json            # some minutes
    python -m tests.benchmarks live --quick --only latency

Rows are as in the queue suite; the ratio is to redis-py. Only ours numbers, keeps and deduplicates what it publishes, and
hands typed events to its listeners: FastStream's handlers get what is in the JSON, the listeners of the others get bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import Any

from tests.benchmarks import child, harness
from tests.benchmarks.harness import Bench, Case, Family, Numbers, Work
from tests.benchmarks.hearing.load import BATCH
from tests.benchmarks.history import BYTES, COST
from tests.benchmarks.peers import PeerMissing, python_with

__all__ = ["main"]

BROADCASTER = ("broadcaster", ["broadcaster==0.3.1", "redis[hiredis]==7.4.*"])
"""It hears nothing with redis-py 8, and there is no later one."""
FASTSTREAM = ("faststream-live", ["faststream[redis]"])

EVENTS = {1: 10_000, 10: 5_000, 100: 4_000}
"""To how many listeners so many are sent; a tenth in a quick run, and where somebody is that slow."""

P50 = Work("publish -> listener p50", "ms", more_is_better=False)
P99 = Work("publish -> listener p99", "ms", more_is_better=False)
TO = {many: Work(f"fan-out to {many}", "deliveries/s", more_is_better=True) for many in EVENTS}


@dataclass(frozen=True, eq=False)
class System:
    """Where a system's pieces are, how they are called, and the environment that has what they need (none: ours)."""

    name: str
    pieces: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: tuple[str, list[str]] | None = None
    share: float = 1.0
    """Of the load: less for one that would take minutes."""

    @property
    def python(self) -> str:
        """The Python to run it with. Raises :class:`PeerMissing` where that cannot be made."""
        return python_with(*self.environment) if self.environment else sys.executable

    def listening(self, piece: str, **arguments: Any) -> child.Child:
        """A piece of this system, running."""
        return child.Child(self._name(piece), arguments | self.options, python=self.python)

    def run(self, piece: str, **arguments: Any) -> Any:
        """A piece of this system, from start to end."""
        return child.run(self._name(piece), arguments | self.options, python=self.python)

    def _name(self, piece: str) -> str:
        return f"tests.benchmarks.hearing.{self.pieces}:{piece}"


REDIS_PY = System("redis-py pub/sub", "redis_py")
BY_HAND = System("redis-py, one subscription shared by hand", "redis_py")
BROADCAST = System("broadcaster", "broadcast", environment=BROADCASTER)
CHANNEL = System("faststream, channel", "faststream_redis", {"stream": False}, FASTSTREAM, share=0.1)
STREAM = System("faststream, stream", "faststream_redis", {"stream": True}, FASTSTREAM, share=0.1)
OURS = System("callboard", "ours")
LISTENING = (REDIS_PY, BROADCAST, CHANNEL, STREAM, OURS)


def _latency(bench: Bench, *, system: System, **options: Any) -> Numbers:
    where, many = bench.fresh(), bench.many(200, 1_000)
    with system.listening("hear_latencies", **where, many=many) as listener:
        listener.heard()
        system.run("publish_at_leisure", **where, many=many, **options)
        latencies_ms = listener.heard()
    percentiles = quantiles(latencies_ms, n=100, method="inclusive")
    return {P50.name: percentiles[49], P99.name: percentiles[98]}


def _fan_out(
    bench: Bench, *, system: System, listeners: int, publisher: System | None = None, piece: str = "hear_all"
) -> Numbers:
    """Begins with the first publish and ends when the last listener has all."""
    many = round(EVENTS[listeners] * (min(system.share, 0.1) if bench.quick else system.share) / BATCH) * BATCH or BATCH
    where = bench.fresh()
    with system.listening(piece, **where, many=many, listeners=listeners) as hearing:
        hearing.heard()
        started_ns = (publisher or system).run("publish_in_batches", **where, many=many)
        ended_ns = hearing.heard()
    return {TO[listeners].name: many * listeners / ((ended_ns - started_ns) / 1e9)}


def _families(there: Collection[System]) -> dict[str, Family]:
    """The works, with the systems that are there."""
    return {
        "latency": Family(
            (P50, P99),
            (
                *(Case(each.name, partial(_latency, system=each)) for each in LISTENING if each in there),
                Case("callboard, ephemeral", partial(_latency, system=OURS, ephemeral=True)),
            ),
        ),
        **{f"fan-out-{listeners}": _to(listeners, there) for listeners in TO},
        "bytes": BYTES,
        "cost": COST,
    }


def _to(listeners: int, there: Collection[System]) -> Family:
    pieces: dict[System, Callable[..., Numbers]] = {
        REDIS_PY: _fan_out,
        BY_HAND: partial(_fan_out, piece="hear_all_shared"),
        # It has no batches; what redis-py sends in a pipeline is the same to its listeners, and sooner there.
        BROADCAST: partial(_fan_out, publisher=REDIS_PY),
        CHANNEL: _fan_out,
        STREAM: _fan_out,
        OURS: _fan_out,
    }
    return Family(
        (TO[listeners],),
        tuple(
            Case(system.name, partial(measure, system=system, listeners=listeners))
            for system, measure in pieces.items()
            if system in there
        ),
    )


def main(arguments: Sequence[str]) -> None:
    """Run the suite's command line."""
    missing: dict[str, str] = {}
    there = [REDIS_PY, BY_HAND]
    for system in (BROADCAST, CHANNEL, STREAM, OURS):
        try:
            assert system.python
            there.append(system)
        except PeerMissing as why:
            missing[system.name] = str(why)
    harness.main("live", _families(there), arguments, missing)
