"""One job of an async actor: hooks before it, the coroutine, hooks after it.

::

    hooks thread: before ──> loop: coroutine ──> hooks thread: after, settle
                    └─ skipped, or failed already ───^

Hooks may block, so they run on threads, and in the coroutine's own context: what a hook before sets in a context
variable, the coroutine and the hooks after see.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from dramatiq import Broker, Worker
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Shutdown, SkipMessage, TimeLimitExceeded
from dramatiq.worker import has_results_middleware

from bus import BusUnavailable
from workers.broker.message import LaneMessage
from workers.loop.limits import NO_LIMIT, Limits

__all__ = ["Performance"]

log = logging.getLogger("callboard.workers")


class Performance:
    """Used by one thread at a time; :meth:`interrupt` alone is for everybody."""

    __slots__ = (
        "_began_at",
        "_broker",
        "_context",
        "_done",
        "_error",
        "_function",
        "_limits",
        "_over",
        "_reason",
        "_result",
        "_soon",
        "limit_s",
        "message",
        "ran_s",
        "task",
        "worker",
    )

    def __init__(
        self,
        broker: Broker,
        worker: Worker,
        message: LaneMessage,
        function: Callable[..., Any],
        soon: Callable[..., None],
    ) -> None:
        self.worker = worker
        self.message = message
        self.limit_s = NO_LIMIT
        """How long the coroutine may run."""
        self.ran_s = 0.0
        """How long it ran, once it has ended."""
        self._broker = broker
        self._function = function
        self._soon = soon
        self._context = Context()
        self.task: asyncio.Task[None] | None = None
        """What runs the coroutine, while it does."""
        self._limits: Limits | None = None
        self._reason: BaseException | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<Performance of {self.message}>"

    def is_alive(self) -> bool:
        """Whether it will come to its end yet, and settle its job."""
        task = self.task
        return not self._over and (task is None or not task.get_loop().is_closed())

    # -- on a hooks thread ---------------------------------------------------------------------------------------------

    def before(self) -> bool:
        """The hooks before. Whether there is something to run: they may have skipped or failed the message."""
        try:
            self._context.run(self._broker.emit_before, "process_message", self.message)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            self._error = error
            return False
        return not self.message.failed

    def after(self) -> None:
        """The hooks after, and then the settling, whatever became of these."""
        consumer = self.worker.consumers[self.message.queue_name]
        try:
            self._context.run(self._tell)
        finally:
            try:
                self._context.run(consumer.post_process_message, self.message)
            finally:
                self.leave()

    def hand_back(self) -> None:
        """Instead of beginning it."""
        try:
            self.worker.consumers[self.message.queue_name].requeue_messages([self.message])
        finally:
            self.leave()

    def leave(self) -> None:
        """It is over. An exception that is kept would keep all that its frames hold, and a cycle wait for the collector."""
        self._over = True
        self.message.clear_exception()
        self.message.performance = None
        self._error = self._result = self._reason = self.task = None

    def _tell(self) -> None:
        broker, message, error = self._broker, self.message, self._error
        if isinstance(error, SkipMessage):
            if message.failed:
                message.stuff_exception(error)
            log.warning("%s was skipped: %s", message, error)
            broker.emit_after("skip_message", message)
        elif error is not None:
            message.stuff_exception(error)
            if isinstance(self._reason, asyncio.CancelledError):
                log.debug("%s was cancelled: %s", message, self._reason, exc_info=self._reason.__cause__)
            elif isinstance(error, BusUnavailable):  # hundreds may fail at once by it, and where they were is no matter
                log.error("%s failed: %s", message, error)
            elif not isinstance(error, Retry | RateLimitExceeded) and not self._expected(error):
                log.error("%s failed", message, exc_info=error)
            broker.emit_after("process_message", message, exception=error)
        else:
            if self._result is not None and not message.options.get("pipe_target"):
                self._warn_of_a_lost_result()
            broker.emit_after("process_message", message, result=self._result)

    def _expected(self, error: BaseException) -> bool:
        actor = self._broker.actors.get(self.message.actor_name)
        throws = self.message.options.get("throws") or (actor and actor.options.get("throws"))
        return bool(throws and isinstance(error, throws))

    def _warn_of_a_lost_result(self) -> None:
        if not has_results_middleware(self._broker):
            log.warning(
                "%s returned something, and there is no Results middleware to keep it: it is lost", self.message
            )

    # -- on the loop ---------------------------------------------------------------------------------------------------

    def play(self, loop: asyncio.AbstractEventLoop, limits: Limits, done: Callable[[Performance], None]) -> None:
        """Start the coroutine; ``done`` is called on the loop, once it has let go of the context."""
        if self._reason is not None:  # interrupted before it began
            self._error = self._reason
            done(self)
            return
        self._done, self._limits, self._began_at = done, limits, time.monotonic()
        self.task = loop.create_task(self._act(), name=self.message.actor_name, context=self._context)
        self.task.add_done_callback(self._end)

    def fail(self, error: BaseException) -> None:
        """It could not be begun."""
        self._error = error

    async def _act(self) -> None:
        self._began_at = time.monotonic()
        try:
            if self._limits is not None:  # only now: others may have their first steps before ours in the same turn
                self._limits.begin(self, asyncio.get_running_loop())
            self._result = await self.message.called(self._function)
        except BaseException as error:  # noqa: BLE001 - an exit would end the loop, and with it all the others
            self._error = error

    def interrupt(self, reason: BaseException) -> None:
        """Cancel the coroutine, from any thread; if it lets itself be cancelled, the outcome is ``reason``. Safe twice."""
        try:
            self._soon(self._interrupt, reason)
        except RuntimeError:
            log.debug("%s cannot be interrupted: the event loop is closed", self.message)

    def time_over(self) -> None:
        """It has run for as long as it may."""
        self._interrupt(TimeLimitExceeded())

    def _interrupt(self, reason: BaseException) -> None:
        if self._reason is None or isinstance(reason, asyncio.CancelledError):  # its worker's end has the last word
            self._reason = reason
        if self.task is not None:
            self.task.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        self.ran_s = time.monotonic() - self._began_at
        if self._limits is not None:
            self._limits.end(self)
        if task.cancelled():  # before its first step
            self._error = asyncio.CancelledError()
        reason, error = self._reason, self._error
        if reason is not None and error is not None and _comes_of(error, reason):
            reason.__cause__ = error  # it knows where the coroutine was
            self._error = reason
        self._done(self)


def _comes_of(error: BaseException, reason: BaseException) -> bool:
    """Whether it ended so because it was interrupted, and the error is to be told as that.

    At its worker's end that is whatever it raises: its cleaning up fails (a connection is closed already), or it makes
    another error of the cancellation, and neither is a failed attempt.
    """
    if isinstance(error, asyncio.CancelledError):
        return not isinstance(reason, asyncio.CancelledError)
    return isinstance(reason, asyncio.CancelledError | Shutdown)
