"""The job at hand: which one this thread (or coroutine) is working on, and what caused it."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware, SkipMessage

from bus.causation import CAUSE, Cause
from workers.broker import LaneBroker
from workers.broker.message import LaneMessage

__all__ = ["CURRENT", "CurrentJob"]

CURRENT: ContextVar[LaneMessage | None] = ContextVar("callboard_job", default=None)


class CurrentJob(Middleware):
    """Tells the lease what runs, and sets :data:`CURRENT` and the cause of what is published, around each message."""

    @property
    def actor_options(self) -> set[str]:
        """``max_concurrent``: how many jobs of an actor a process holds at once (see ``workers/broker/room.py``)."""
        return {"max_concurrent"}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if isinstance(message, LaneMessage) and isinstance(broker, LaneBroker):
            doer = message.performance or threading.current_thread()
            if not broker.lease.begin(message.job, message.ticket, doer):
                message.withdrawn = True
                raise SkipMessage("it was handed back before it began")
            CURRENT.set(message)
            envelope = message.envelope
            if envelope is not None:
                correlation = envelope.correlationid or envelope.id
                CAUSE.set(Cause(envelope.id, correlation, envelope.traceparent))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        CURRENT.set(None)
        CAUSE.set(None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        CURRENT.set(None)
        CAUSE.set(None)
