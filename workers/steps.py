"""The step ledger: what the steps of a job gave, so that a repeated attempt does not pay for them again."""

from __future__ import annotations

import json
from typing import Any

from bus import Bus
from workers.errors import InvalidStep

__all__ = ["StepLedger"]

LINGER_MS = 3_600_000
"""How long a step is kept of a job that is done already: its worker had lost its lease, and does not know."""
LONGEST_NAME = 200
MOST_BYTES = 256 * 1024


class StepLedger:
    """The ledger of one job. Blocking. Without a job (a handler called by hand) it lasts as long as itself."""

    __slots__ = ("_bus", "_job", "_loose")

    def __init__(self, bus: Bus, job: str | None) -> None:
        self._bus = bus
        self._job = job
        self._loose: dict[str, bytes] | None = None

    def recall(self, step: str) -> tuple[Any] | None:
        """What a step gave, in a tuple of one, or ``None``. Raises :class:`~workers.errors.InvalidStep` for a bad name."""
        if not step or len(step) > LONGEST_NAME or not step.isprintable():
            raise InvalidStep(f"a step's name is 1 to {LONGEST_NAME} printable characters, not {step[:40]!r}")
        value = (self._loose or {}).get(step) if self._job is None else self._bus.store.recall(self._job, step)
        return (json.loads(value),) if value is not None else None

    def record(self, step: str, value: Any) -> Any:
        """Keep what it gave; returns what is kept, which is another's where two attempts did the step at once."""
        try:
            data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise InvalidStep(
                f"step {step!r} was done, but what it gave cannot be kept as JSON ({error}): have it return plain data, "
                "or a retry does it again"
            ) from None
        if len(data) > MOST_BYTES:
            raise InvalidStep(
                f"step {step!r} was done, but what it gave is {len(data)} bytes, and {MOST_BYTES} can be kept: "
                "store it elsewhere and return where, or a retry does it again"
            )
        if self._job is not None:
            return json.loads(self._bus.store.record(self._job, step, data, LINGER_MS))
        self._loose = self._loose or {}
        return json.loads(self._loose.setdefault(step, data))
