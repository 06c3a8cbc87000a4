"""The faults of the live half: ``python -m tests.faults live [--quick] [--only NAME ...] [--json FILE]``."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import dying, failover, goings, halfopen, harness, neighbours, trimming

__all__ = ["FAULTS", "main"]

FAULTS = (
    *failover.FAULTS,
    *trimming.FAULTS,
    *halfopen.FAULTS,
    *dying.FAULTS,
    *neighbours.FAULTS,
    *goings.FAULTS,
)


def main(arguments: Sequence[str]) -> int:
    return harness.main("live", FAULTS, arguments)
