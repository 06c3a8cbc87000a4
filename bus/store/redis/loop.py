"""The log side on Redis for one event loop: commands on one connection, and all subscriptions on another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import NoScriptError

from bus.position import Position
from bus.store.base import (
    NO_LIMITS,
    Announced,
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
from bus.store.redis.commands import Commands
from bus.store.redis.link import ATTEMPT_S, Link, translated
from bus.store.redis.live import LiveChannels
from bus.store.redis.scripts import Call
from bus.store.redis.wire import Command

__all__ = ["RedisLoopStore"]

T = TypeVar("T")


class RedisLoopStore:
    """See :class:`bus.store.base.LoopStore`."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._prefix = prefix
        self._commands = Commands(link, partial(_connection, link))
        self._live = LiveChannels(link, partial(_connection, link))

    def __repr__(self) -> str:
        return f"<RedisLoopStore {self._prefix} at {self._link.where}>"

    async def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        first, *others = calls = scripts.append(batch)
        with translated(self._link, writing=True):
            came, *more = await self._commands.ask([self._command(call) for call in calls], tells=True)
            return scripts.joined(await self._answered(first, came), zip(others, more, strict=True))

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
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
        self._commands.close()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn

    async def _run(self, call: Call[T], *, writing: bool = True) -> T:
        with translated(self._link, writing=writing):
            (answer,) = await self._commands.ask([self._command(call)], tells=call.tells)
            return await self._answered(call, answer)

    def _command(self, call: Call[Any]) -> Command:
        return ("EVALSHA", call.script.sha, 1, self._prefix, *call.arguments)

    async def _answered(self, call: Call[T], answer: Any) -> T:
        """As in the blocking store."""
        if isinstance(answer, NoScriptError):
            (answer,) = await self._commands.ask([("EVAL", call.script.text, 1, self._prefix, *call.arguments)])
        if isinstance(answer, Exception):
            raise answer
        return call.answer(answer)


def _connection(link: Link) -> Any:
    """A connection of redis-py's, not open yet, without timeouts of its own: ours are on the loop."""
    options = {name: value for name, value in link.options.items() if name != "tls"}
    kind: Any = redis.asyncio.Connection
    if "path" in options:
        kind = redis.asyncio.UnixDomainSocketConnection
    elif link.options["tls"]:
        kind = redis.asyncio.SSLConnection
    return kind(socket_timeout=None, socket_connect_timeout=ATTEMPT_S, retry=None, protocol=2, **options)
