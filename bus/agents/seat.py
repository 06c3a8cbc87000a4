"""One socket's seat: a listener of its own, and a task that sends it what the listener hears, one after the other.

So a socket inherits what every listener has: the log's order, each event once, and bounded memory while it is slow. Its
topics may change while it listens: the new listener goes on exactly where the old one stood, and what is new to it
counts from the moment it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from bus.agents import dialect
from bus.client import Bus
from bus.delivery import Delivery, Gap
from bus.errors import BusClosed
from bus.listener import Listener
from bus.position import Position

__all__ = ["Seat", "Socket", "ended", "later"]

CLOSE_S = 2.0

log = logging.getLogger("callboard.bus")


class Socket(Protocol):
    """What can take a seat: a FastAPI or Starlette WebSocket, or anything else with this method."""

    async def send_json(self, data: Any, /) -> Any:
        """Send one event. Whatever it raises, and taking too long, costs the socket its seat."""


class Seat:
    """See the module. Belongs to one event loop; ``gone`` is called once, when it is empty."""

    def __init__(self, bus: Bus, socket: Socket, send_s: float, gone: Callable[[Seat], None]) -> None:
        self.socket = socket
        self._bus = bus
        self._send_s = send_s
        self._gone = gone
        self._claims: dict[tuple[str, str], Position | None] = {}
        """By agent and topic: after which position; ``None`` is from the socket's beginning."""
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None
        self._tuning = asyncio.Lock()
        self._left = False

    async def add(self, agent_id: str, topics: Iterable[str], after: Position | None) -> None:
        """Hear these too, from now on, which is after this position in any case.

        Returns once attached; raises what listening raises, and then the seat is empty.
        """
        async with self._tuning:
            new = [topic for topic in topics if (agent_id, topic) not in self._claims]
            if self._left or not new:
                return
            since = after if self._listener is None else later(after, self._bus.status().position)
            self._claims |= {(agent_id, topic): since for topic in new}
            await self._tune()

    async def remove(self, agent_id: str) -> None:
        """Free an agent's topics; without any left, the seat is empty and nothing more is sent. Safe twice."""
        async with self._tuning:
            claims = {claim: since for claim, since in self._claims.items() if claim[0] != agent_id}
            if len(claims) == len(self._claims):
                return
            self._claims = claims
            if claims:
                await self._tune()
                return
        await self.leave()

    async def leave(self) -> None:
        """Free everything, within a deadline. Safe twice, and from within ``send_json``."""
        self._forget()
        if self._listener is not None:
            await self._listener.close()
        if self._task is not None and self._task is not asyncio.current_task():
            await ended(self._task)

    async def _tune(self) -> None:
        """Listen to what is claimed now, from where the last listener stood."""
        old = self._listener
        topics = {topic for _, topic in self._claims}
        # Nothing is awaited between looking where the old one stands and ending it.
        self._listener = self._bus.listen(*topics, after=None if old is None else old.position)
        try:
            if old is not None:
                await old.close()
            await self._listener.__aenter__()
            if self._left:
                raise BusClosed("the bus was closed while a socket subscribed")  # noqa: TRY301 - undone like any failure
        except BaseException:
            self._forget()
            if self._task is not None:
                self._task.cancel()
            await self._listener.close()
            raise
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="callboard socket")

    async def _run(self) -> None:
        listener: Listener | None = None
        try:
            while True:
                async with self._tuning:  # or it might not be entered yet
                    if self._listener is None or self._listener is listener:
                        return  # not another one in its place: the bus has closed
                    listener = self._listener
                async for item in listener:
                    if self._listener is not listener:
                        break  # its successor begins before this item
                    if not await self._take(item):
                        self._forget()
                        await _hang_up(self.socket)
                        return
        finally:
            self._forget()
            if self._listener is not None:
                await self._listener.close()

    async def _take(self, item: object) -> bool:
        """Send an item on, if it is wanted. ``False`` says that the socket is of no use any more."""
        if isinstance(item, Gap):
            log.warning("a socket missed events %s to %s of the log (%s)", item.first, item.last, item.reason)
        if not isinstance(item, Delivery) or not self._wants(item):
            return True
        try:
            async with asyncio.timeout(self._send_s):
                await self.socket.send_json(dialect.to_event(item))
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.warning("a socket was dropped: its send_json ended in %s", type(error).__name__)
            return False
        return True

    def _wants(self, delivery: Delivery) -> bool:
        topics = delivery.envelope.topics
        return any(topic in topics and _counts(delivery, since) for (_, topic), since in self._claims.items())

    def _forget(self) -> None:
        if not self._left:
            self._left = True
            self._claims = {}
            self._gone(self)


def later(one: Position | None, other: Position | None) -> Position | None:
    """The later of two positions; of two lives of the log, the other one."""
    if one is None or other is None:
        return one or other
    return one if one.epoch == other.epoch and one.seq > other.seq else other


def _counts(delivery: Delivery, since: Position | None) -> bool:
    """Whether it came after this position. What is ephemeral was live a moment ago, and has no number of its own."""
    at = delivery.position
    return since is None or delivery.ephemeral or at.epoch != since.epoch or at.seq > since.seq


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end, within a deadline."""
    # Again and again: before Python 3.12 a cancellation that races the end of a read can be swallowed.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            while not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=0.1)


async def _hang_up(socket: Socket) -> None:
    """Close a dropped socket, if it knows how: its browser would wait for ever, and so it can come back."""
    close = getattr(socket, "close", None)
    if close is None:
        return
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_S):
            closing = close()
            if inspect.isawaitable(closing):
                await closing
