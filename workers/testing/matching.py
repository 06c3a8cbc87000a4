"""Which events a test means, and how its failures tell of what there was instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bus import Delivery, Event, Receipt
from bus.store.base import Census
from workers.kit import Happened, Ran

__all__ = ["dose_of", "is_of", "means", "name_of", "told"]

SHOWN = 10


def is_of(type: type[Event] | str | None, delivery: Delivery) -> bool:
    """Whether a delivery is of a type; ``None`` is any."""
    if type is None:
        return True
    return delivery.envelope.type == type if isinstance(type, str) else isinstance(delivery.event, type)


def means(event: Happened | None, ran: Ran) -> bool:
    """Whether an attempt was at this event; ``None`` is any."""
    if event is None:
        return True
    if isinstance(event, str | Receipt):
        return ran.envelope is not None and ran.envelope.id == (event if isinstance(event, str) else event.id)
    if isinstance(event, Mapping):
        data = {name: value for name, value in event.items() if name != "type"}
        return ran.envelope is not None and ran.envelope.data == data and event.get("type") in (None, ran.envelope.type)
    return ran.event == event


def name_of(handler: Callable[..., Any] | str, functions: Mapping[str, Callable[..., Any]]) -> str:
    """A handler's name, from its function, its actor or the name itself. Raises ``AssertionError`` for a stranger."""
    wanted = getattr(handler, "actor_name", handler)
    for name, function in functions.items():
        if wanted in (name, function):
            return name
    known = ", ".join(sorted(functions)) or "none"
    raise AssertionError(f"this app has no handler {getattr(wanted, '__qualname__', wanted)!r} (it has: {known})")


def dose_of(times: int | None) -> str:
    """How often, in words."""
    return "" if times is None else " once" if times == 1 else f" {times} times"


def told(name: str, attempts: Sequence[Ran], census: Census) -> list[str]:
    """What a handler did, and what waits for it, line by line."""
    lines = [f"  it ran {len(attempts)} time(s){':' if attempts else ''}"]
    lines += [f"    {_line(ran)}" for ran in attempts[-SHOWN:]]
    waiting = [count for count in census.counts if count.handler == name and count.unfinished]
    for count in waiting:
        ready = count.unfinished - count.delayed - count.held
        lines.append(
            f"  waiting on queue {count.queue!r}: {ready} to be run (drain() does), {count.delayed} not due yet, "
            f"{count.held} for a retry (travel() to them)"
        )
    if not attempts and not waiting:
        lines.append(
            "  nothing waits for it: was the handler bound (app.bind(), or the fixture callboard) before the event was "
            "published, and do its types and topics match?"
        )
    return lines


def _line(ran: Ran) -> str:
    error = f", {type(ran.error).__name__}: {ran.error}" if ran.error is not None else ""
    again = f", again in {ran.retry_in_ms / 1000:g} s" if ran.retry_in_ms is not None else ""
    event = f" on {ran.event!r} (id {ran.envelope.id})" if ran.envelope is not None else ""
    return f"attempt {ran.attempt}{event}: {ran.outcome}{error}{again}"
