"""The witness: a middleware that notes what became of every attempt, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware

from bus import BusError, Envelope, Event, codec
from workers.broker import LaneMessage
from workers.kit import Outcome, Ran

__all__ = ["Witness"]


class Witness(Middleware):
    """First in the stack, so that its "after" comes last, when the others have judged. It tells on the thread of the hooks."""

    def __init__(self, tell: Callable[[Ran], None]) -> None:
        self._tell = tell

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._note(message, exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._note(message, None, skipped=True)

    def _note(self, message: MessageProxy, error: BaseException | None, *, skipped: bool = False) -> None:
        if not isinstance(message, LaneMessage):
            return
        envelope, outcome = message.envelope, _outcome(message, skipped=skipped)
        attempt = message.attempt
        event = _event(envelope) if envelope is not None else None
        handler = message.route.handler
        self._tell(Ran(handler, event, envelope, attempt, outcome, error, message.retry_in_ms))


def _outcome(message: LaneMessage, *, skipped: bool) -> Outcome:
    if message.withdrawn or message.hand_back:
        return "back"
    if message.failed:
        return "dead"
    if message.retry_in_ms is not None:
        return "retry"
    return "skipped" if skipped else "done"


def _event(envelope: Envelope) -> Event | dict[str, Any]:
    try:
        return codec.read(envelope)
    except BusError:
        return envelope.data
