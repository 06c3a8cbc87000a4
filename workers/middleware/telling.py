"""Tells what happens to each job, for those who listen to ``$worker:**`` (``workers/notices.py`` has the words)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware

from workers.broker.message import Buried, LaneMessage
from workers.middleware.retries import NotForUs
from workers.notices import (
    JobDead,
    JobFailed,
    JobHandedBack,
    JobNotice,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobSucceeded,
)
from workers.teller import Teller

__all__ = ["Telling"]

log = logging.getLogger("callboard.workers")


class Telling(Middleware):
    """Says each step of a job to the teller. Where nobody listens it looks at the clock, and no more."""

    goes_last = True
    """Of the hooks before (see the broker): only what no middleware has skipped or failed is started."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if isinstance(message, LaneMessage):
            message.began_at = time.monotonic()
            if self._teller.listening and not message.failed:
                self._safely(self._begun, message)

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if self._teller.listening and isinstance(message, LaneMessage):
            self._safely(self._ended, message, exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        if self._teller.listening and isinstance(message, LaneMessage) and not message.withdrawn:
            self._safely(self._skipped, message)

    def after_bury(self, broker: Broker, buried: Buried) -> None:
        """A signal of our broker's: also for what could not be read, and for what had killed its workers."""
        if self._teller.listening:
            route, event_id, attempt, error = buried
            self._teller.say(
                JobDead, handler=route.handler, queue=route.queue, event_id=event_id, attempt=attempt, error=error
            )

    def _safely(self, tell: Callable[..., None], message: LaneMessage, *facts: Any) -> None:
        try:
            tell(message, *facts)
        except Exception as error:  # noqa: BLE001 - telling must not harm what it tells of
            log.debug("what happened to %s could not be told: %s", message, type(error).__name__)

    # -- what happened -------------------------------------------------------------------------------------------------

    def _begun(self, message: LaneMessage) -> None:
        waited_ms = max(0, self._teller.now_ms() - message.message_timestamp) if message.attempt == 1 else None
        self._say(JobStarted, message, waited_ms=waited_ms)

    def _ended(self, message: LaneMessage, exception: BaseException | None) -> None:
        """Whatever was to be judged about it has been judged."""
        error = type(exception).__name__ if exception is not None else None
        duration_ms = _duration_ms(message)
        if message.hand_back or isinstance(exception, NotForUs):
            self._say(JobHandedBack, message, duration_ms=duration_ms)
        elif error is not None:
            self._say(JobFailed, message, duration_ms=duration_ms, error=error)
        elif not message.failed:
            self._say(JobSucceeded, message, duration_ms=duration_ms)
            return
        if message.retry_in_ms is not None and not isinstance(exception, NotForUs):
            self._say(JobRetried, message, retry_in_ms=message.retry_in_ms)

    def _skipped(self, message: LaneMessage) -> None:
        if not message.failed:
            self._say(JobSkipped, message)

    def _say(self, kind: type[JobNotice], message: LaneMessage, **facts: Any) -> None:
        route = message.route
        self._teller.say(
            kind,
            handler=route.handler,
            queue=route.queue,
            event_id=message.message_id,
            attempt=message.attempt,
            **facts,
        )


def _duration_ms(message: LaneMessage) -> float:
    if message.performance is not None:
        seconds = message.performance.ran_s
    else:
        seconds = time.monotonic() - message.began_at if message.began_at is not None else 0.0
    return round(seconds * 1000, 3)
