"""The queue's faults, in the order of the table: ``python -m tests.faults queue [--quick] [--only NAME ...] [--json FILE]``."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import harness, jobs, kills, replies, servers, slots

__all__ = ["FAULTS", "main"]

FAULTS = (*kills.FAULTS, *replies.FAULTS, *jobs.FAULTS, *slots.FAULTS, *servers.FAULTS)


def main(arguments: Sequence[str]) -> int:
    return harness.main("queue", FAULTS, arguments)
