"""From entries to deliveries, each decoded once in a process however many listeners match.

The live side decodes an event when its first listener wants it. Those who read it from the log a little later, one after
the other, find it here.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from bus import codec
from bus.delivery import Delivery
from bus.errors import BusError
from bus.position import Position
from bus.store.base import Entry

__all__ = ["Decoder"]

KEPT = 1024
KEPT_BYTES = 8 << 20

log = logging.getLogger("callboard.bus")


class Decoder:
    """Remembers the last deliveries, bounded in number and bytes. Safe from any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Delivery] = {}
        self._order: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def deliver(self, position: Position, entry: Entry, *, ephemeral: bool = False) -> Delivery | None:
        """Decode an entry. ``None`` for bytes that are no event (a foreign writer's): logged, and of no use to anybody."""
        if ephemeral:
            return _decoded(position, entry, ephemeral=True)
        known = self._kept.get(position)
        if known is None:
            known = _decoded(position, entry)
            if known is not None:
                self._keep(known, len(entry.body))
        return known

    def _keep(self, delivery: Delivery, size: int) -> None:
        with self._lock:
            if delivery.position in self._kept:
                return
            self._kept[delivery.position] = delivery
            self._order.append((delivery.position, size))
            self._bytes += size
            while len(self._order) > KEPT or (self._bytes > KEPT_BYTES and len(self._order) > 1):
                oldest, its_size = self._order.popleft()
                self._bytes -= its_size
                del self._kept[oldest]


def _decoded(position: Position, entry: Entry, *, ephemeral: bool = False) -> Delivery | None:
    try:
        # Whatever its size: what another process was allowed to publish is not for us to drop.
        envelope = codec.decode(entry.body, max_bytes=len(entry.body))
    except BusError as error:
        log.error("event %s cannot be read and is left out: %s", position, error)
        return None
    try:
        return Delivery(position, envelope, codec.read(envelope), ephemeral)
    except BusError as error:
        log.warning("event %s is handed on as plain data: %s", position, error)
        return Delivery(position, envelope, envelope.data, ephemeral)
