"""What a listener is handed: a :class:`Delivery` for each event, a :class:`Gap` where there is a hole, :class:`Closed` last.

:func:`follow` is the whole of the proof that there is none: it says whether a page of the log goes on exactly where a
reader stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bus.envelope import Envelope
from bus.events import Event
from bus.position import Position
from bus.store.base import Page

__all__ = ["Closed", "Delivery", "EndReason", "Gap", "Item", "follow"]

EndReason = Literal["log", "bus", "overflow"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as its listeners get it; all listeners in a process share it.

    ``event`` is the typed event, or the plain dict of its data where this process does not know that type and version.
    An ephemeral delivery has no number: ``position`` is that of the event it came after.
    """

    position: Position
    envelope: Envelope
    event: Event | dict[str, Any]
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole that cannot be repaired: events ``first`` to ``last`` of the log (both included) are not coming.

    ``trimmed``: the log no longer keeps them (nor what could prove that your events before them are still the log's). ``epoch``: the log lost its data and began another life; ``first`` counts
    in the old one, ``last`` in the new. ``fork``: the server
    went on from an older state of the log (a replica promoted too early); the numbers from ``first`` to ``last`` were given
    out twice, and what comes next begins with the new ``first``.
    """

    first: int
    last: int
    reason: Literal["trimmed", "epoch", "fork"]


@dataclass(frozen=True, slots=True)
class Closed:
    """The last item of a listener: nothing more comes. To listen on elsewhere or later, begin after ``position``.

    ``log``: the log was closed, and this was all of it. ``bus``: the bus was closed. ``overflow``: the listener was too
    slow for its policy ``disconnect``.
    """

    position: Position | None
    reason: EndReason


Item = Delivery | Gap | Closed
"""What a listener yields."""


def follow(at: Position, page: Page) -> Gap | None:
    """Whether ``page`` (read after ``at``) goes on where ``at`` ends: ``None`` if so, otherwise the gap between them.

    Of another epoch all that is kept is new, so ``last`` is right there for a page that was read from the beginning.
    """
    first_kept = page.entries[0].seq if page.entries else page.top + 1
    if page.epoch != at.epoch:
        return Gap(at.seq + 1, first_kept - 1, "epoch")
    if page.top < at.seq or _parts(at, page):
        return Gap(min(first_kept, at.seq), at.seq, "fork")
    if first_kept > at.seq + 1:
        return Gap(at.seq + 1, first_kept - 1, "trimmed")
    return None


def _parts(at: Position, page: Page) -> bool:
    """Whether the log holds another event than ours under our number: its successor, or its top, would name it."""
    if page.entries and page.entries[0].seq == at.seq + 1:
        return page.entries[0].prev != at.token
    return page.top == at.seq and page.top_token != at.token
