"""The step ledger in memory: what the steps of jobs gave.

Callers hold the store's lock around every method.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

__all__ = ["Steps"]

LINGERS_MS = 3_600_000
"""A worker that has lost its lease and does not know may ask a little longer."""


@dataclass(slots=True)
class _Ledger:
    ends_ms: int | None = None
    values: dict[str, bytes] = field(default_factory=dict)


class Steps:
    """One ledger for each job."""

    def __init__(self) -> None:
        self._ledgers: dict[str, _Ledger] = {}
        self._ends: list[tuple[int, str]] = []  # when to look whether a ledger has ended; one may be named often

    def recall(self, job: str, step: str, now_ms: int) -> bytes | None:
        """What a step gave, if that is known still."""
        self._forget(now_ms)
        ledger = self._ledgers.get(job)
        return ledger.values.get(step) if ledger is not None else None

    def record(self, job: str, step: str, value: bytes, now_ms: int, linger_ms: int | None) -> bytes:
        """Keep it, unless something is kept already; returns what is kept. ``None`` is until the job's :meth:`end`."""
        self._forget(now_ms)
        ledger = self._ledgers.setdefault(job, _Ledger())
        if linger_ms is not None:
            self._keep_until(job, ledger, now_ms + linger_ms)
        return ledger.values.setdefault(step, value)

    def end(self, job: str, now_ms: int) -> None:
        """The job was done, or dropped."""
        ledger = self._ledgers.get(job)
        if ledger is not None:
            self._keep_until(job, ledger, now_ms + LINGERS_MS)

    def _keep_until(self, job: str, ledger: _Ledger, ends_ms: int) -> None:
        ledger.ends_ms = ends_ms
        heapq.heappush(self._ends, (ends_ms, job))

    def _forget(self, now_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            _, job = heapq.heappop(self._ends)
            ends_ms = self._ledgers[job].ends_ms if job in self._ledgers else None
            if ends_ms is not None and ends_ms <= now_ms:
                del self._ledgers[job]
