"""What is said while listeners are disturbed: one event, whose text anybody can tell from its name."""

from __future__ import annotations

import hashlib

from bus import Delivery, Event

__all__ = ["Line", "line", "name_of", "sound"]


STRANGE = 'ä☂𝄞\n"'


class Line(Event, type="fault.line", version=1):
    """The ``n``-th line of a speaker, said at ``sent_s`` (CLOCK_MONOTONIC) where that matters."""

    by: str
    n: int
    text: str
    sent_s: float = 0


def line(by: str, n: int, *, pad: int = 0, sent_s: float = 0) -> Line:
    """Publish it under its name (:func:`name_of`); ``pad`` makes it longer."""
    return Line(by=by, n=n, text=_text(by, n) + "x" * pad, sent_s=sent_s)


def name_of(by: str, n: int) -> str:
    """The id of a line."""
    return f"{by}-{n}"


def sound(delivery: Delivery) -> bool:
    """Whether a delivery holds what was said under its name, to the letter."""
    event = delivery.event
    if not isinstance(event, Line):
        return False
    return delivery.envelope.id == name_of(event.by, event.n) and event.text.rstrip("x") == _text(event.by, event.n)


def _text(by: str, n: int) -> str:
    """Some words in several alphabets, of some length: other ones for each line."""
    digest = hashlib.sha256(f"{by} {n}".encode()).hexdigest()
    return f"«{digest}» {STRANGE[n % 5]} {digest[: n % 64] * (n % 7)}."
