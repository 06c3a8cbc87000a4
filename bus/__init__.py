"""Callboard's bus: publish an event once; everyone who listens hears it live, numbered, with nothing lost.

Start with :class:`Bus` and :class:`Event`. The README beside this file tells how the rooms fit together.
"""

from bus.agents import AgentEventBus, agent_event_bus
from bus.client import Bus, Status
from bus.delivery import Closed, Delivery, Gap
from bus.envelope import Envelope
from bus.errors import (
    BusClosed,
    BusError,
    BusUnavailable,
    HookFailed,
    InvalidEvent,
    InvalidLog,
    InvalidPosition,
    InvalidSettings,
    InvalidTopic,
    LogClosed,
    PayloadTooLarge,
    Refused,
    UnsafeServer,
)
from bus.events import Event
from bus.listener import Listener
from bus.logs import Log
from bus.position import Position
from bus.publication import Publication
from bus.publisher import Receipt
from bus.threads import SyncListener

__all__ = [
    "AgentEventBus",
    "Bus",
    "BusClosed",
    "BusError",
    "BusUnavailable",
    "Closed",
    "Delivery",
    "Envelope",
    "Event",
    "Gap",
    "HookFailed",
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
    "Refused",
    "Status",
    "SyncListener",
    "UnsafeServer",
    "agent_event_bus",
]
