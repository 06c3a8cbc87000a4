"""What waits in an attached listener: bounded in number and bytes, and what a full one does.

``catch-up``     (the default) drops what waits; the listener reads on from the log, so nothing is missed.
``latest``       keeps only the newest waiting event of each key: for those who show a state. Once there are too many keys
                 it catches up like the first.
``disconnect``   ends the listener, with the position to resume from: for those who would rather begin anew elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count
from typing import Literal, NamedTuple

from bus.delivery import Delivery, Item
from bus.errors import InvalidSettings
from bus.position import Position

__all__ = ["QUEUE", "QUEUE_BYTES", "Found", "LatestMailbox", "Mailbox", "Policy", "make_mailbox"]

QUEUE = 1000
"""Deliveries that may wait in an attached listener."""
QUEUE_BYTES = 4 << 20
"""Their encoded bytes. A single one always fits."""

Policy = Literal["catch-up", "latest", "disconnect"]


class Found(NamedTuple):
    """An item, its bytes, and the position just before it: where to begin for this item to be the next."""

    before: Position
    item: Item
    size: int = 0


class Mailbox:
    """First in, first out."""

    __slots__ = ("_bytes", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Found] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def fits(self, found: Found) -> bool:
        """Whether there is room for it."""
        waiting = len(self._waiting)
        return not waiting or (waiting < QUEUE and self._bytes + found.size <= QUEUE_BYTES)

    def put(self, found: Found) -> None:
        """Take one in, whether it fits or not."""
        self._waiting.append(found)
        self._bytes += found.size

    def take(self) -> Item:
        """The next one; there must be one."""
        found = self._waiting.popleft()
        self._bytes -= found.size
        return found.item

    @property
    def before(self) -> Position | None:
        """Where to begin for all that waits to come again; ``None`` where nothing does."""
        return self._waiting[0].before if self._waiting else None

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self._bytes = 0


class LatestMailbox(Mailbox):
    """An event takes the place of the one of its key that still waits, at the end of the line.

    The key is the value of a field of the data, or without one the key that the event was published with. What has no key
    is never replaced.
    """

    __slots__ = ("_by_key", "_field", "_unkeyed")

    def __init__(self, field: str | None) -> None:
        super().__init__()
        self._field = field
        self._by_key: OrderedDict[str | int, Found] = OrderedDict()
        self._unkeyed = count()

    def __len__(self) -> int:
        return len(self._by_key)

    def fits(self, found: Found) -> bool:
        """Whether there is room for it, or one that it takes the place of."""
        waiting = len(self._by_key)
        room = waiting < QUEUE and self._bytes + found.size <= QUEUE_BYTES
        return not waiting or room or self._key(found.item) in self._by_key

    def put(self, found: Found) -> None:
        """Take one in, in place of the one of its key."""
        key = self._key(found.item)
        replaced = self._by_key.pop(key, None) if key is not None else None
        self._by_key[next(self._unkeyed) if key is None else key] = found
        self._bytes += found.size - (replaced.size if replaced is not None else 0)

    def _key(self, item: Item) -> str | None:
        if not isinstance(item, Delivery) or item.ephemeral:
            return None  # what is kept must not make room for what is not
        value = item.envelope.data.get(self._field) if self._field is not None else item.envelope.key
        return None if value is None else repr(value)

    def take(self) -> Item:
        """As ever."""
        _, found = self._by_key.popitem(last=False)
        self._bytes -= found.size
        return found.item

    @property
    def before(self) -> Position | None:
        """As ever; what was replaced lies before, and what replaced it after."""
        return next(iter(self._by_key.values())).before if self._by_key else None

    def clear(self) -> None:
        """Drop what waits."""
        self._by_key.clear()
        self._bytes = 0


def make_mailbox(policy: Policy, key: str | None) -> Mailbox:
    """The mailbox of a policy. Raises :class:`~bus.errors.InvalidSettings` for another one, or a key without use."""
    if policy not in ("catch-up", "latest", "disconnect"):
        raise InvalidSettings("policy= is 'catch-up', 'latest' or 'disconnect'")
    if policy == "latest":
        return LatestMailbox(key)
    if key is not None:
        raise InvalidSettings("key= names the field of policy='latest'; leave it out, or choose that policy")
    return Mailbox()
