"""What follows a message: Dramatiq's callbacks and pipelines, where there is something to follow."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, MessageProxy, middleware

from workers.broker.message import LaneMessage
from workers.middleware.retries import NotForUs

__all__ = ["Callbacks", "Pipelines"]

CALLBACKS = frozenset({"on_failure", "on_success"})


class Callbacks(middleware.Callbacks):
    """As Dramatiq's, but what is handed back has not failed: another worker begins it anew."""

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if not message.options and CALLBACKS.isdisjoint(broker.actors[message.actor_name].options):
            return
        handed_back = isinstance(exception, NotForUs) or (isinstance(message, LaneMessage) and message.hand_back)
        if not handed_back:
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]


class Pipelines(middleware.Pipelines):
    """As Dramatiq's, which runs an import statement after each message: a fortieth of what a job costs."""

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if "pipe_target" in message.options:
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]
