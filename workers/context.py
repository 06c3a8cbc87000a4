"""What a handler is given beside its event."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from bus import Bus, BusError, Envelope, Event, Receipt
from workers.steps import StepLedger

__all__ = ["Context", "Progress"]

log = logging.getLogger("callboard.workers")


OffLoop = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Has a thread do something that blocks for a moment."""


class Progress(Event, type="$handler.progress", version=1):
    """What :meth:`Context.progress` tells the live listeners: which handler, on which event, what it said."""

    handler: str
    event_id: str
    attempt: int
    data: Any


class Context:
    """One attempt at one event. ``attempt`` counts from 1; ``bus`` is the app's bus, open.

    Whatever is published while the handler runs, through this object or through the bus, carries what caused it
    (``causationid``: this event; ``correlationid``: the first of the chain).
    """

    __slots__ = ("_latest", "_off_loop", "_steps", "_stopping", "_told", "attempt", "bus", "envelope", "handler")

    def __init__(
        self,
        bus: Bus,
        envelope: Envelope,
        handler: str,
        attempt: int,
        stopping: Callable[[], bool],
        steps: StepLedger | None = None,
        off_loop: OffLoop = asyncio.to_thread,
    ) -> None:
        self.bus = bus
        self.envelope = envelope
        self.handler = handler
        self.attempt = attempt
        self._stopping = stopping
        self._steps = steps or StepLedger(bus, None)
        self._off_loop = off_loop
        self._latest: asyncio.Task[None] | None = None
        self._told = False

    def __repr__(self) -> str:
        return f"<Context of {self.handler} on event {self.envelope.id}, attempt {self.attempt}>"

    @property
    def cancelled(self) -> bool:
        """Whether the worker is stopping: a long handler may look, and end early by raising ``dramatiq.errors.Retry``."""
        return self._stopping()

    async def publish(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        log: str | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """As :meth:`bus.Bus.publish`."""
        return await self.bus.publish(
            event, topics=topics, key=key, id=id, delay=delay, at=at, log=log, ephemeral=ephemeral
        )

    def publish_sync(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        log: str | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """As :meth:`bus.Bus.publish_sync`."""
        return self.bus.publish_sync(
            event, topics=topics, key=key, id=id, delay=delay, at=at, log=log, ephemeral=ephemeral
        )

    async def once(self, step: str, fn: Callable[[], Awaitable[Any] | Any]) -> Any:
        """Do a step of this handler's work on this event once, however often the event is attempted, and give what it gave.

        ``await ctx.once("charge", lambda: pay(event.account))``: the first attempt calls ``fn`` (async or not) and keeps
        what it returns, which is plain data (JSON, at most 256 KiB); later attempts, replays of a dead letter and another
        worker's too, are given that back. A step that raises is not done. One whose worker dies between doing and keeping is
        done again: hand ``ctx.envelope.id`` to whatever can tell a repeated request from a new one.

        Raises :class:`~workers.errors.InvalidStep`, and :class:`~bus.errors.BusUnavailable` where it cannot be kept.
        """
        known = await self._off_loop(lambda: self._steps.recall(step))
        if known is not None:
            return known[0]
        value = fn()
        if inspect.isawaitable(value):
            value = await value
        return await self._off_loop(lambda: self._steps.record(step, value))

    def once_sync(self, step: str, fn: Callable[[], Any]) -> Any:
        """As :meth:`once`, for a handler on a thread. Takes a round trip, or two the first time."""
        known = self._steps.recall(step)
        return known[0] if known is not None else self._steps.record(step, fn())

    def progress(self, data: Any) -> None:
        """Tell the live listeners of this event's topics how it is going. Live only: no number, no record, no work.

        ``data`` is anything JSON. What is told arrives in order, before the handler counts as done. In an async handler it
        does not wait; in a sync one the first takes a round trip, and what follows within 50 ms is gathered and goes in one
        (:mod:`bus.whispers`). A server that is away is logged, not raised.
        """
        event = Progress(handler=self.handler, event_id=self.envelope.id, attempt=self.attempt, data=data)
        topics = self.envelope.topics
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            try:
                self.bus.publish_sync(event, topics=topics, ephemeral=True)
                self._told = True
            except BusError as error:
                log.warning("progress of %s was not told: %s", self.handler, error)
            return
        self._latest = asyncio.create_task(self._tell(event, topics, self._latest))

    async def _tell(self, event: Progress, topics: tuple[str, ...], earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        try:
            await self.bus.publish(event, topics=topics, ephemeral=True)
        except BusError as error:
            log.warning("progress of %s was not told: %s", self.handler, error)

    async def settled(self) -> None:
        """Wait until all progress has been told."""
        if self._latest is not None:
            await self._latest
            await self.bus.flush()

    def settled_sync(self) -> None:
        """As :meth:`settled`, for a handler on a thread."""
        if self._told:
            self.bus.flush_sync()
