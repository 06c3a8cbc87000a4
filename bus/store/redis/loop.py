"""The log side on Redis for one event loop: commands on a small pool, and all subscriptions on one connection more.

Timeouts are ``asyncio.timeout`` around a client without a socket timeout: with one, redis-py swallowed a third of all
cancellations on Python before 3.12.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import NoScriptError

from bus.position import Position
from bus.store.base import (
    NO_LIMITS,
    Appended,
    Batch,
    Ended,
    Heard,
    OwnLimits,
    Page,
    Stale,
    Whisper,
)
from bus.store.redis import scripts
from bus.store.redis.link import ATTEMPT_S, Link, translated
from bus.store.redis.live import LiveChannels
from bus.store.redis.scripts import Call

__all__ = ["RedisLoopStore"]

T = TypeVar("T")

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
        self._live = LiveChannels(link, self._commands.connection_pool.make_connection)

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

    def subscribe(self, log: str) -> AsyncIterator[Heard]:
        return self._live.subscribe(f"{self._prefix}live:{log}")

    async def close(self) -> None:
        self._live.close()
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
