"""A feed by the page: hand the cursor back, and go on where the last page ended, with nothing twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bus import Bus, Delivery, Gap

__all__ = ["Page", "read_feed"]


class Page(NamedTuple):
    """Some deliveries, oldest first; ``missed`` counts those that are no longer kept. ``cursor`` is for the next page."""

    items: list[Delivery]
    cursor: str
    missed: int


async def read_feed(bus: Bus, patterns: Iterable[str], cursor: str = "0", size: int = 20) -> Page:
    """The next page after ``cursor``; ``"0"`` is the beginning. An empty page is the end, for now."""
    items: list[Delivery] = []
    missed = 0
    async for item in bus.history(*patterns, after=cursor):
        if isinstance(item, Gap):
            missed += item.last - item.first + 1
        elif isinstance(item, Delivery):
            items.append(item)
            if len(items) == size:
                break
    return Page(items, items[-1].position if items else cursor, missed)
