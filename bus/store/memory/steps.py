"""The step ledger in memory: what the steps of unfinished work gave.

Callers hold the store's lock around every method.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Steps"]


@dataclass(slots=True)
class _Ledger:
    ends_ms: int = 0
    values: dict[str, bytes] = field(default_factory=dict)


class Steps:
    """One ledger for each piece of work."""

    def __init__(self) -> None:
        self._ledgers: dict[str, _Ledger] = {}

    def recall(self, work: str, step: str, now_ms: int) -> bytes | None:
        """What a step gave, if that is known still."""
        ledger = self._ledgers.get(work)
        return ledger.values.get(step) if ledger is not None and ledger.ends_ms > now_ms else None

    def record(self, work: str, step: str, value: bytes, now_ms: int, keep_ms: int) -> bytes:
        """Keep it, unless something is kept already; returns what is kept."""
        # Ledgers end roughly in the order in which they were last written to, so the old ones stand first.
        while self._ledgers and next(iter(self._ledgers.values())).ends_ms <= now_ms:
            del self._ledgers[next(iter(self._ledgers))]
        ledger = self._ledgers.pop(work, None)
        if ledger is None or ledger.ends_ms <= now_ms:
            ledger = _Ledger()
        self._ledgers[work] = ledger
        ledger.ends_ms = now_ms + keep_ms
        return ledger.values.setdefault(step, value)
