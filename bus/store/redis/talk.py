"""A connection of an event loop as asyncio itself would have it: bytes in, answers out, without a task in between.

redis-py makes the connection, with its TLS, its login and its database; then its transport is ours. Its own client spends
twice as long on a command as the server does, and its reader hangs up when a wait is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import hiredis
import redis

from bus.errors import BusUnavailable
from bus.store.redis.link import ATTEMPT_S, Link
from bus.store.redis.wire import Command, pack, refusal

__all__ = ["Line", "Talk"]

T = TypeVar("T", bound="Talk")


class Talk(asyncio.Protocol):
    """One open connection. Once ``dead`` it stays so; whoever subclasses it hears what the server says, and of its end."""

    def __init__(self, link: Link, connection: Any) -> None:
        self.dead = False
        self.where = link.where
        self.loop = asyncio.get_running_loop()
        self.heard_at = self.loop.time()
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - there is no other door to it
        self._said = hiredis.Reader(replyError=refusal, errors="replace")
        self._transport.set_protocol(self)

    @abstractmethod
    def hear(self, said: Any) -> None:
        """An answer, or a message; an error answer is an exception."""

    @abstractmethod
    def end(self, why: BusUnavailable) -> None:
        """The connection is gone; called once."""

    def send(self, commands: Sequence[Command]) -> None:
        """Write at once, or as soon as the socket takes it. A dead one takes nothing."""
        # To one that broke a moment ago asyncio would log each write.
        if not self.dead and not self._transport.is_closing():
            self._transport.write(pack(commands))

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self.heard_at = self.loop.time()
        try:
            self._said.feed(data)
            while (said := self._said.gets()) is not False:
                self.hear(said)
        except hiredis.ProtocolError:
            self.lose(f"what answers at {self.where[20:]} is no Redis server")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See :class:`asyncio.Protocol`."""
        self.lose(f"the connection to {self.where} broke")

    def lose(self, why: str | BusUnavailable) -> None:
        """Hang up. Safe twice."""
        if self.dead:
            return
        self.dead = True
        self._transport.abort()
        self._connection._close()  # noqa: SLF001 - its only door without a wait
        self.end(why if isinstance(why, BusUnavailable) else BusUnavailable(why))


class Line(Generic[T]):
    """Keeps one talk open: the first who asks connects, and who asks after its death connects anew."""

    def __init__(self, link: Link, connect: Callable[[], Any], talk: Callable[[Link, Any], T]) -> None:
        self._link = link
        self._connect = connect
        self._make = talk
        self._opening = asyncio.Lock()
        self._talk: T | None = None

    def open(self) -> T | Awaitable[T]:
        """The open talk, or one to wait for. Waiting raises redis-py's errors, and ``TimeoutError``."""
        talk = self._talk
        return self._open() if talk is None or talk.dead else talk

    async def _open(self) -> T:
        async with self._opening:
            if self._talk is None or self._talk.dead:
                connection = self._connect()
                try:
                    async with asyncio.timeout(ATTEMPT_S):
                        await connection.connect()
                except BaseException:
                    await _hang_up(connection)
                    raise
                self._talk = self._make(self._link, connection)
            return self._talk

    def close(self, why: str) -> None:
        """Hang up. Safe twice."""
        if self._talk is not None:
            self._talk.lose(why)
            self._talk = None


async def _hang_up(connection: Any) -> None:
    with contextlib.suppress(TimeoutError, redis.RedisError, OSError):
        async with asyncio.timeout(ATTEMPT_S):
            await connection.disconnect(nowait=True)
