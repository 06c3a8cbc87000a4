"""The async suite: thousands of handlers that wait, ours beside Dramatiq's AsyncIO and other task queues.

::

    python -m tests.benchmarks async --json async.json            # some minutes; installs the peers the first time
    python -m tests.benchmarks async --quick --only short

Rows are as the queue suite's; a peer that could not be installed has one with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks import harness
from tests.benchmarks.waiting import families

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run the suite's command line."""
    works, missing = families()
    harness.main("async", works, arguments, missing)
