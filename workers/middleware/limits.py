"""Dramatiq's limits and shutdown notifications, for coroutines as well, and with a word about the limit.

Dramatiq raises what ends a message (its time is over, or its worker stops) in the message's thread. A coroutine has none of its own: raised in the loop's thread, they would
strike whatever runs there at that moment. Those of async jobs cancel the one coroutine they are meant for; threads are
left to Dramatiq.
"""

from __future__ import annotations

import threading
from typing import Any

from dramatiq import Broker, MessageProxy, Worker, middleware
from dramatiq.middleware import Shutdown

from workers.broker.message import LaneMessage, Performing

__all__ = ["AgeLimit", "ShutdownNotifications", "TimeLimit"]


def _performance(message: MessageProxy) -> Performing | None:
    return message.performance if isinstance(message, LaneMessage) else None


class AgeLimit(middleware.AgeLimit):
    """As Dramatiq's, and asked only where there may be a limit."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if self.max_age or message.options or "max_age" in broker.actors[message.actor_name].options:
            super().before_process_message(broker, message)  # type: ignore[no-untyped-call]


class TimeLimit(middleware.TimeLimit):
    """As Dramatiq's. An async job's limit is exact, and holds in embedded workers too (no thread has to watch it)."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        actor = broker.actors[message.actor_name]
        limit_ms = message.options.get("time_limit") or actor.options.get("time_limit", self.time_limit)
        performance = None
        if isinstance(message, LaneMessage):
            message.limit_s = limit_ms / 1000  # so that it can say which
            performance = message.performance
        if performance is None:
            self.manager.add_timeout(threading.get_ident(), limit_ms)  # type: ignore[no-untyped-call]
        else:
            performance.limit_s = limit_ms / 1000

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if not isinstance(message, LaneMessage) or message.performance is None:
            self.manager.remove_timeout(threading.get_ident())  # type: ignore[no-untyped-call]

    after_skip_message = after_process_message


class ShutdownNotifications(middleware.ShutdownNotifications):
    """As Dramatiq's: an async job that asked for it is cancelled as soon as its worker is told to stop."""

    def __init__(self, notify_shutdown: bool = False) -> None:  # noqa: FBT001, FBT002 - as its base's
        super().__init__(notify_shutdown)
        self._lock = threading.Lock()
        self._to_tell: set[Performing] = set()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        super().before_worker_shutdown(broker, worker)  # type: ignore[no-untyped-call]
        with self._lock:
            to_tell = list(self._to_tell)
        for performance in to_tell:
            performance.interrupt(Shutdown())

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        actor = broker.actors[message.actor_name]
        asked = self.notify_shutdown or message.options or "notify_shutdown" in actor.options  # by anybody at all
        if not asked or not self.should_notify(actor, message):  # type: ignore[no-untyped-call]
            return
        performance = _performance(message)
        if performance is None:
            self.manager.add_notification()
        else:
            with self._lock:
                self._to_tell.add(performance)

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        performance = _performance(message)
        if performance is None:
            self.manager.remove_notification()
            return
        with self._lock:
            self._to_tell.discard(performance)

    after_skip_message = after_process_message
