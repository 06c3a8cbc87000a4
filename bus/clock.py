"""The one clock seam.

Everything in this system that asks for the time of day asks a :class:`Clock`: ids, envelope times, and in memory mode
also delays, retries, leases and expiry. On Redis those use the server's ``TIME`` instead, never a client's clock.

``time.time`` is looked up at each call, so that freezegun reaches it.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Wall time in milliseconds since 1970 (UTC), with an offset that tests may move forward."""

    __slots__ = ("_offset_ms",)

    def __init__(self) -> None:
        self._offset_ms = 0

    @property
    def offset_ms(self) -> int:
        """How far it is ahead of the time of day."""
        return self._offset_ms

    def now_ms(self) -> int:
        """The time in whole milliseconds since 1970-01-01T00:00:00Z. Never blocks; safe from any thread."""
        return int(time.time() * 1000) + self._offset_ms

    def travel(self, ms: int) -> None:
        """Move this clock ``ms`` milliseconds forward. For tests; whoever waits on the clock must be woken as well."""
        self._offset_ms += ms
