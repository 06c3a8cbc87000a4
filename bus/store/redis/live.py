"""The live channels of one event loop: every log's subscription, all on one connection.

redis-py makes the connection, with its TLS, its login and its database; then its transport is ours, and frames go from
the socket to the hubs' inboxes without a task in between. redis-py's ``PubSub`` reconnects silently (events published
meanwhile are lost without a word), and on Python 3.11 and later reads a dead socket as "no message", at 100 % CPU.

A link says something at least every :data:`PING_S`, for it is asked to; one that owes an answer for as long is dead. Then
every inbox fails, and whoever subscribes again opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from typing import Any

import hiredis
import redis

from bus.errors import BusUnavailable
from bus.store.base import CONFIRMED, QUIET, Heard, decode_frame
from bus.store.inbox import Inbox
from bus.store.redis.link import ATTEMPT_S, Link, translated
from bus.store.redis.wire import pack, refusal

__all__ = ["LiveChannels"]

PING_S = 2.0
"""After so long a silence the server is asked whether it is there, and given as long to answer."""

log = logging.getLogger("callboard.bus")


class LiveChannels:
    """Subscriptions of one loop. The first one opens the connection, the last one that leaves closes it."""

    def __init__(self, link: Link, connect: Callable[[], Any]) -> None:
        self._link = link
        self._connect = connect
        self._opening = asyncio.Lock()
        self._live: _LiveLink | None = None

    async def subscribe(self, channel: str) -> AsyncGenerator[Heard]:
        """See :meth:`bus.store.base.LoopStore.subscribe`."""
        inbox = Inbox()
        live = await self._open()
        live.join(channel.encode(), inbox)
        try:
            async for heard in inbox:
                yield heard
        finally:
            live.leave(channel.encode(), inbox)

    async def _open(self) -> _LiveLink:
        async with self._opening:
            if self._live is None or self._live.dead:
                connection = self._connect()
                try:
                    with translated(self._link, writing=False):
                        async with asyncio.timeout(ATTEMPT_S):
                            await connection.connect()
                except BaseException:
                    await _hang_up(connection)
                    raise
                self._live = _LiveLink(self._link, connection)
            return self._live

    def close(self) -> None:
        """Hang up. Safe twice; whoever still subscribes is told that the link is gone."""
        if self._live is not None:
            self._live.lose(BusUnavailable("the live link was closed"))
            self._live = None


class _LiveLink(asyncio.Protocol):
    """One connection and the inboxes on its channels. Once ``dead`` it stays so."""

    def __init__(self, link: Link, connection: Any) -> None:
        self.dead = False
        self._link = link
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - there is no other door to it
        self._said = hiredis.Reader(replyError=_refusal)
        self._channels: defaultdict[bytes, set[Inbox]] = defaultdict(set)
        self._joining: defaultdict[bytes, list[Inbox]] = defaultdict(list)
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._owes_answer = False
        self._pulse = self._loop.call_later(PING_S, self._feel)
        self._transport.set_protocol(self)

    # -- channels ------------------------------------------------------------------------------------------------------

    def join(self, channel: bytes, inbox: Inbox) -> None:
        """Have an inbox hear a channel, from its confirmation on."""
        self._joining[channel].append(inbox)
        self._send(b"SUBSCRIBE", channel)

    def leave(self, channel: bytes, inbox: Inbox) -> None:
        """Hear it no more. The last one hangs up."""
        if inbox in self._joining[channel]:
            self._joining[channel].remove(inbox)
        self._channels[channel].discard(inbox)
        if self._channels[channel] or self._joining[channel]:
            return
        del self._channels[channel], self._joining[channel]
        if not self._channels and not self._joining:
            self.lose(BusUnavailable("the live link is not needed any more"))
        else:
            self._send(b"UNSUBSCRIBE", channel)

    def _send(self, *command: bytes) -> None:
        if not self.dead:
            self._transport.write(pack([command]))

    # -- what the server says ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._heard_at, self._owes_answer = self._loop.time(), False
        try:
            self._said.feed(data)
            while (said := self._said.gets()) is not False:
                self._hear(said)
        except hiredis.ProtocolError:
            self.lose(BusUnavailable(f"what answers on the live link to {self._link.where} is no Redis server"))

    def _hear(self, said: Any) -> None:
        match said:
            case [b"message", channel, data]:
                heard = _read(data)
                for inbox in self._channels.get(channel, ()):
                    inbox.put(heard)
            case [b"subscribe", channel, _]:
                joined = self._joining.pop(channel, [])
                self._channels[channel].update(joined)
                for inbox in joined:
                    inbox.put(CONFIRMED)
            case [b"pong", _]:
                for inbox in self._inboxes():
                    inbox.put(QUIET)
            case Exception():
                self._refused(said)
            case _:
                pass  # an unsubscription

    def _refused(self, error: Exception) -> None:
        try:
            with translated(self._link, writing=False):
                raise error
        except BusUnavailable as why:
            self.lose(why)

    def _inboxes(self) -> list[Inbox]:
        rooms = (*self._channels.values(), *self._joining.values())
        return [inbox for inboxes in rooms for inbox in inboxes]

    # -- life and death ------------------------------------------------------------------------------------------------

    def _feel(self) -> None:
        """Feel the pulse: half-open links and servers that hang are found here, whatever the kernel thinks of them."""
        now = self._loop.time()
        if now - self._heard_at < PING_S and not self._owes_answer:
            self._pulse = self._loop.call_at(self._heard_at + PING_S, self._feel)
        elif self._owes_answer:
            self.lose(BusUnavailable(f"{self._link.where} does not answer on the live link"))
        else:
            self._owes_answer = True
            self._send(b"PING")
            self._pulse = self._loop.call_at(now + PING_S, self._feel)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See :class:`asyncio.Protocol`."""
        self.lose(BusUnavailable(f"the live link to {self._link.where} broke"))

    def lose(self, why: BusUnavailable) -> None:
        """Hang up and tell everybody. Safe twice."""
        if self.dead:
            return
        self.dead = True
        self._pulse.cancel()
        for inbox in self._inboxes():
            inbox.fail(why)
        self._transport.abort()
        self._connection._close()  # noqa: SLF001 - its only door without a wait


def _read(data: bytes) -> Heard:
    try:
        return decode_frame(data)
    except ValueError:
        log.warning("something that is no event was published on a live channel; looking into the log instead")
        return CONFIRMED


def _refusal(text: str) -> Exception:
    return refusal(text.encode())


async def _hang_up(connection: Any) -> None:
    with contextlib.suppress(TimeoutError, redis.RedisError, OSError):
        async with asyncio.timeout(ATTEMPT_S):
            await connection.disconnect(nowait=True)
