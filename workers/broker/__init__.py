"""The room that makes Dramatiq's queues out of lanes."""

from workers.broker.broker import LaneBroker, MemoryBroker, make_broker
from workers.broker.message import LaneMessage

__all__ = ["LaneBroker", "LaneMessage", "MemoryBroker", "make_broker"]
