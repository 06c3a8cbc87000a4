"""The queue suite: ours beside Dramatiq's stock RedisBroker, on one server that it starts itself; latencies beside huey too.

::

    python -m tests.benchmarks queue --json queue.json            # some minutes
    python -m tests.benchmarks queue --quick --only publish drain

Each row is ``{"work", "system", "unit", "median", "min", "max", "ratio"}``. The ratio is to Dramatiq's row of the same
work, and above 1 is better: ours / theirs for rates, theirs / ours for latencies, commands and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks import harness
from tests.benchmarks.draining import DRAIN
from tests.benchmarks.fairness import FAIRNESS
from tests.benchmarks.idling import COMMANDS, latency
from tests.benchmarks.publishing import BATCHED, SINGLE
from tests.benchmarks.waiting_room import BYTES

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run the suite's command line."""
    idle, missing = latency()
    families = {
        "publish": SINGLE,
        "publish_many": BATCHED,
        "drain": DRAIN,
        "latency": idle,
        "commands": COMMANDS,
        "bytes": BYTES,
        "fairness": FAIRNESS,
    }
    harness.main("queue", families, arguments, missing)
