"""Dramatiq's time limits and shutdown notifications, for coroutines as well, and with a word about the limit.

Dramatiq raises both in the thread of a message. A coroutine has none of its own: raised in the loop's thread, they would
strike whatever runs there at that moment. Those of async jobs cancel the one coroutine they are meant for; threads are
left to Dramatiq.
"""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import Any

from dramatiq import Broker, MessageProxy, Worker, middleware
from dramatiq.middleware import Shutdown, TimeLimitExceeded
from dramatiq.threading import is_gevent_active, raise_thread_exception

from workers.broker.message import LaneMessage, Performing
from workers.loop.performance import over_limit

__all__ = ["ShutdownNotifications", "TimeLimit"]


def _performance(message: MessageProxy) -> Performing | None:
    return message.performance if isinstance(message, LaneMessage) else None


class TimeLimit(middleware.TimeLimit):
    """As Dramatiq's. An async job's limit is exact, and holds in embedded workers too (no thread has to watch it)."""

    def __init__(self, *, time_limit: float = 600_000, interval: int = 1_000) -> None:
        super().__init__(time_limit=time_limit, interval=interval)
        if not is_gevent_active():
            self.manager: Any = _Deadlines(interval / 1000)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        performance = _performance(message)
        if performance is None:
            super().before_process_message(broker, message)  # type: ignore[no-untyped-call]
            return
        actor = broker.get_actor(message.actor_name)
        limit_ms = message.options.get("time_limit") or actor.options.get("time_limit", self.time_limit)
        performance.limit_s = limit_ms / 1000

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if _performance(message) is None:
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]

    after_skip_message = after_process_message


class _Deadlines(threading.Thread):
    """Interrupts threads whose time is over, as Dramatiq's does, which raises an error without a text."""

    def __init__(self, interval_s: float) -> None:
        super().__init__(name="callboard time limits", daemon=True)
        self._interval_s = interval_s
        self._lock = threading.RLock()
        self._ends: dict[int, tuple[float, float]] = {}

    def add_timeout(self, thread_id: int, limit_ms: float) -> None:
        """The thread has so many milliseconds from now on."""
        with self._lock:
            self._ends[thread_id] = (monotonic() + limit_ms / 1000, limit_ms)

    def remove_timeout(self, thread_id: int) -> None:
        """It is done. Safe twice."""
        with self._lock:
            self._ends.pop(thread_id, None)

    def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            for thread_id, limit_ms in self._over():
                raise_thread_exception(thread_id, _exceeded(limit_ms))
            sleep(self._interval_s)

    def _over(self) -> list[tuple[int, float]]:
        now = monotonic()
        with self._lock:
            over = [(thread_id, limit_ms) for thread_id, (ends, limit_ms) in self._ends.items() if now >= ends]
            for thread_id, _ in over:
                del self._ends[thread_id]
        return over


def _exceeded(limit_ms: float) -> type[TimeLimitExceeded]:
    """The error of one limit. In another thread only a class can be raised, so that has the text."""

    class Exceeded(TimeLimitExceeded):
        def __init__(self) -> None:
            super().__init__(over_limit(limit_ms / 1000))

    Exceeded.__name__ = Exceeded.__qualname__ = TimeLimitExceeded.__name__
    Exceeded.__module__ = TimeLimitExceeded.__module__
    return Exceeded


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
        performance = _performance(message)
        if performance is None:
            super().before_process_message(broker, message)  # type: ignore[no-untyped-call]
        elif self.should_notify(broker.get_actor(message.actor_name), message):  # type: ignore[no-untyped-call]
            with self._lock:
                self._to_tell.add(performance)

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        performance = _performance(message)
        if performance is None:
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]
            return
        with self._lock:
            self._to_tell.discard(performance)

    after_skip_message = after_process_message
