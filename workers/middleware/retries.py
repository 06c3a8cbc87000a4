"""Retries that only mark.

Dramatiq's middleware enqueues a copy and acknowledges the original: two commands, and a failure between them (which
Dramatiq swallows) loses the message. Ours leaves its verdict on the message; settling writes it, in one step, and the
job keeps its place at the head of its lane.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.common import compute_backoff
from dramatiq.errors import Retry
from dramatiq.middleware import Retries, Shutdown

from workers.broker import LaneBroker
from workers.broker.message import LaneMessage

__all__ = ["LaneRetries"]

log = logging.getLogger("callboard.workers")


class LaneRetries(Retries):
    """Dramatiq's options and names, with defaults for agents that wait in line: 5 tries, 1 s to 60 s between them."""

    def __init__(
        self,
        *,
        max_retries: int = 4,
        min_backoff: int = 1_000,
        max_backoff: int = 60_000,
        retry_when: Callable[[int, BaseException], bool] | None = None,
    ) -> None:
        super().__init__(
            max_retries=max_retries, min_backoff=min_backoff, max_backoff=max_backoff, retry_when=retry_when
        )

    @property
    def actor_options(self) -> set[str]:
        """Dramatiq's, and ``order``: whether later jobs of a lane wait for a retry (``strict``) or pass it (``loose``)."""
        return {*super().actor_options, "order"}

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None or not isinstance(message, LaneMessage):
            return
        try:
            self._judge(broker, message, exception)
        except Exception as fault:
            # Dramatiq would swallow this, and the message would count as done. The app's retry_when may have raised it.
            log.exception("%s could not be judged after it had failed, and goes to the dead letters", message)
            message.retry_in_ms = None
            message.fail()
            message.record(fault)

    def _judge(self, broker: Broker, message: LaneMessage, exception: BaseException) -> None:
        options = broker.get_actor(message.actor_name).options
        message.record(exception)
        throws = message.options.get("throws") or options.get("throws")
        if isinstance(exception, NotForUs):
            message.attempts.pop()  # not an attempt: nobody has tried
            message.retry_in_ms = LEFT_FOR_MS
            return
        if self._is_stopped(message, exception) and isinstance(broker, LaneBroker) and broker.lease.quiet:
            message.attempts.pop()  # the worker is stopping: another one begins it anew, at once
            message.hand_back = True
            return
        if throws and isinstance(exception, throws):
            Retries.after_process_message(self, broker, message, exception=exception)  # tells so at INFO, and fails it
            return
        if isinstance(exception, Unreadable):
            message.fail()
            return
        retries = message.options.get("retries", 0)
        message.options["retries"] = retries + 1
        message.options["traceback"] = message.attempts[-1]["traceback"]
        message.options["requeue_timestamp"] = message.attempts[-1]["at_ms"]
        if self._again(message, options, retries, exception):
            message.retry_in_ms = self._delay_ms(message, options, retries, exception)
            message.holds_lane = options.get("order", "strict") == "strict"
            log.info(
                "%s failed (%s) and is tried again in %d ms", message, type(exception).__name__, message.retry_in_ms
            )
        else:
            log.warning("%s failed for good (%s) and goes to the dead letters", message, type(exception).__name__)
            message.fail()
            self._tell_exhausted(broker, message, options, retries)

    def _is_stopped(self, message: LaneMessage, exception: BaseException) -> bool:
        """Whether that is how work ends when its worker does. A plain message tells of a Shutdown as Dramatiq would."""
        return isinstance(exception, asyncio.CancelledError) or (isinstance(exception, Shutdown) and message.is_event)

    def _again(self, message: LaneMessage, options: dict[str, Any], retries: int, exception: BaseException) -> bool:
        retry_when = options.get("retry_when", self.retry_when)
        if retry_when is not None:
            return bool(retry_when(retries, exception))
        most = self._most(message, options)
        return most is None or retries < most

    def _most(self, message: LaneMessage, options: dict[str, Any]) -> int | None:
        most: int | None = message.options.get("max_retries", options.get("max_retries", self.max_retries))
        return most

    def _delay_ms(self, message: LaneMessage, options: dict[str, Any], retries: int, exception: BaseException) -> int:
        if isinstance(exception, Retry) and exception.delay is not None:
            return int(exception.delay)
        shortest = message.options.get("min_backoff", options.get("min_backoff", self.min_backoff))
        longest = message.options.get("max_backoff", options.get("max_backoff", self.max_backoff))
        return compute_backoff(retries, factor=shortest, max_backoff=longest)[1]

    def _tell_exhausted(self, broker: Broker, message: LaneMessage, options: dict[str, Any], retries: int) -> None:
        name = message.options.get("on_retry_exhausted") or options.get("on_retry_exhausted")
        if name:
            facts = {"retries": retries, "max_retries": self._most(message, options)}
            broker.get_actor(name).send(message.asdict(), facts)


LEFT_FOR_MS = 1_000
"""How long a job that needs a newer worker waits before it is offered again."""


class NotForUs(Exception):
    """The event's type has a newer version than this process knows: leave it for a newer worker."""


class Unreadable(Exception):
    """The event cannot be read by any version that this process knows: to the dead letters."""
