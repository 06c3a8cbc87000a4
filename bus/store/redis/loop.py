"""The log side on Redis for one event loop: commands on a small pool, each subscription on a connection of its own.

The read loop is ours, on redis-py's public ``Connection``: its ``PubSub`` reconnects silently (events published meanwhile
are lost without a word), and on Python 3.11 and later reads a dead socket as "no message", at 100 % CPU. Timeouts are
``asyncio.timeout`` around a client without a socket timeout: with one, redis-py swallowed a third of all cancellations
on Python before 3.12.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import NoScriptError

from bus.errors import BusUnavailable
from bus.position import Position
from bus.store.base import (
    CONFIRMED,
    NO_LIMITS,
    Appended,
    Batch,
    Confirmed,
    Ended,
    Frame,
    OwnLimits,
    Page,
    Stale,
    Whisper,
    decode_frame,
)
from bus.store.redis import scripts
from bus.store.redis.link import ATTEMPT_S, Link, translated
from bus.store.redis.scripts import Call

__all__ = ["RedisLoopStore"]

T = TypeVar("T")

PING_S = 2.0
"""A subscription that heard nothing for this long asks whether the server is there, and gives it as long to answer."""
CLOSE_S = 1.0
POOL = 16
"""Connections for commands, a loop."""


class RedisLoopStore:
    """See :class:`bus.store.base.LoopStore`."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._prefix = prefix
        # Waiting for a free connection is not waiting for the server, so it stands outside of the deadline.
        self._turn = asyncio.Semaphore(POOL)
        self._commands: Any = redis.asyncio.Redis(connection_pool=_pool(link))

    def __repr__(self) -> str:
        return f"<RedisLoopStore {self._prefix} at {self._link.where}>"

    async def append(self, batches: Sequence[Batch]) -> list[list[Appended] | Stale | Ended]:
        # One after the other: pipelined, a chunk that is refused or not known could be passed by the next one.
        return [await self._run(scripts.append(batch)) for batch in batches]

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Position | Ended:
        return await self._run(scripts.announce(log, epoch, whispers))

    async def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        return await self._run(scripts.close_log(log, epoch, own))

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        return await self._run(scripts.read(log, epoch, after, limit), writing=False)

    async def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        return await self._run(scripts.seek(log, epoch, at_ms), writing=False)

    async def subscribe(self, log: str) -> AsyncIterator[Frame | Confirmed]:
        connection = self._commands.connection_pool.make_connection()
        try:
            with translated(self._link, writing=False):
                async with asyncio.timeout(ATTEMPT_S):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", f"{self._prefix}live:{log}", check_health=False)
            while True:
                frame = self._read(await self._next(connection))
                if frame is not None:
                    yield frame
        finally:
            await _hang_up(connection)

    async def _next(self, connection: Any) -> Any:
        """The next thing the server says. A silence of two ping intervals, an end or an error is a dead link."""
        pinged = False
        while True:
            with translated(self._link, writing=False):
                try:
                    async with asyncio.timeout(PING_S):
                        # Otherwise redis-py hangs up when our timeout cancels its read, and a silence is a lost link.
                        heard = await connection.read_response(
                            disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                        )
                except TimeoutError:
                    if pinged or not connection.is_connected:
                        raise
                    pinged = True
                    await connection.connect()
                    await connection.send_command("PING", check_health=False)
                    continue
            if heard is None:
                raise BusUnavailable(f"the live link to {self._link.where} broke")
            return heard

    @staticmethod
    def _read(heard: Any) -> Frame | Confirmed | None:
        if not isinstance(heard, list):
            return None
        match heard[0]:
            case b"message":
                return decode_frame(heard[2])
            case b"subscribe":
                return CONFIRMED
            case _:
                return None

    async def close(self) -> None:
        # Its sockets may be hung: do not let a server that is away hold up a shutdown.
        with contextlib.suppress(TimeoutError, redis.RedisError, OSError):
            async with asyncio.timeout(CLOSE_S):
                await self._commands.aclose(close_connection_pool=True)

    async def _run(self, call: Call[T], *, writing: bool = True) -> T:
        """As in the blocking store; the deadline is ours."""
        with translated(self._link, writing=writing):
            async with self._turn, asyncio.timeout(ATTEMPT_S):
                try:
                    answer = await self._commands.execute_command(
                        "EVALSHA", call.script.sha, 1, self._prefix, *call.arguments
                    )
                except NoScriptError:
                    answer = await self._commands.execute_command(
                        "EVAL", call.script.text, 1, self._prefix, *call.arguments
                    )
        return call.answer(answer)


def _pool(link: Link) -> redis.asyncio.ConnectionPool:
    options = {name: value for name, value in link.options.items() if name != "tls"}
    if "path" in options:
        options["connection_class"] = redis.asyncio.UnixDomainSocketConnection
    elif link.options["tls"]:
        options["connection_class"] = redis.asyncio.SSLConnection
    return redis.asyncio.BlockingConnectionPool(
        max_connections=POOL,
        timeout=ATTEMPT_S,
        socket_timeout=None,
        socket_connect_timeout=ATTEMPT_S,
        retry=None,
        protocol=2,
        **options,
    )


async def _hang_up(connection: Any) -> None:
    """Close one connection at once; nothing that is still in it matters."""
    with contextlib.suppress(TimeoutError, redis.RedisError, OSError):
        async with asyncio.timeout(CLOSE_S):
            await connection.disconnect(nowait=True)
