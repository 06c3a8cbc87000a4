"""What workers tell (``workers/notices.py``), as parts of a line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bus.topics import WORKER

__all__ = ["notice_parts"]

_STYLES = {"succeeded": "green", "failed": "red", "dead": "bold red", "retried": "yellow", "handed_back": "yellow"}
_UNITS = {
    "boot_ms": "in {:,.0f} ms",
    "stop_ms": "in {:,.0f} ms",
    "running": "{:,} running",
    "waited_ms": "waited {:,.0f} ms",
    "duration_ms": "{:,.1f} ms",
    "retry_in_ms": "in {:,.0f} ms",
}


def notice_parts(type: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Texts with their styles: what happened, to whom, how long it took, which attempt at which event, and where.

    Shows what it knows; the data may be a newer worker's.
    """
    name = type.removeprefix(f"{WORKER}.")
    facts = [unit.format(data[field]) for field, unit in _UNITS.items() if isinstance(data.get(field), int | float)]
    texts = (
        (f"{name.replace('_', ' '):<11}", _STYLES.get(name, "bold")),
        (str(data.get("handler", "")), "bold cyan"),
        (str(data.get("error") or ""), "red"),
        (", ".join(facts), ""),
        (f"attempt {data['attempt']}" if data.get("attempt", 1) != 1 else "", "yellow"),
        (str(data.get("event_id", "")), "dim"),
        (str(data.get("worker", "")), "dim"),
    )
    return [(text, style) for text, style in texts if text]
