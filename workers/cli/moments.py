"""Times as people write them at a command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["FORMS", "moment"]

FORMS = "2026-11-23T10:00Z, or 2h, 30m, 3d for so long ago"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime | None:
    """How long ago, or ISO 8601, which without a zone is UTC; ``None`` for what is no time."""
    try:
        if text[-1:] in _UNITS:
            return datetime.now(UTC) - timedelta(**{_UNITS[text[-1]]: float(text[:-1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
