"""Callboard's bus: publish an event once; everyone who listens hears it live, numbered, with nothing lost.

Start with :class:`Bus` and :class:`Event`. The README beside this file tells how the rooms fit together.
"""

from bus.client import Bus, Status
from bus.delivery import Closed, Delivery, Gap
from bus.envelope import Envelope
from bus.errors import (
    BusClosed,
    BusError,
    BusUnavailable,
    InvalidEvent,
    InvalidLog,
    InvalidPosition,
    InvalidSettings,
    InvalidTopic,
    LogClosed,
    PayloadTooLarge,
    UnsafeServer,
)
from bus.events import Event
from bus.listener import Listener
from bus.logs import Log
from bus.position import Position
from bus.publisher import Publication, Receipt
from bus.threads import SyncListener

__all__ = [
    "Bus",
    "BusClosed",
    "BusError",
    "BusUnavailable",
    "Closed",
    "Delivery",
    "Envelope",
    "Event",
    "Gap",
    "InvalidEvent",
    "InvalidLog",
    "InvalidPosition",
    "InvalidSettings",
    "InvalidTopic",
    "Listener",
    "Log",
    "LogClosed",
    "PayloadTooLarge",
    "Position",
    "Publication",
    "Receipt",
    "Status",
    "SyncListener",
    "UnsafeServer",
]
