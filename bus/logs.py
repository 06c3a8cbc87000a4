"""A log of its own: for a stream that is heavy, or that ends, as an agent's run does.

A :class:`Log` is a handle, made by :meth:`bus.Bus.log`: it fills in the log's name and its limits, and does nothing else
that the bus does not. So it is free to make, holds nothing open, and may be made again, anywhere, for the same log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from bus import ids
from bus.delivery import Item
from bus.errors import BusUnavailable, InvalidLog
from bus.events import Event
from bus.listener import Listener
from bus.position import Position
from bus.publication import Delay, Publication, drafted
from bus.publisher import FIRST_PAUSE_S, LAST_PAUSE_S, Receipt
from bus.settings import Limits, check_log
from bus.sides import Side
from bus.store.base import OwnLimits, Store
from bus.threads import SyncListener

__all__ = ["Log"]


class Publishing(Protocol):
    """The bus, as a log's handle sees it."""

    limits: Limits

    @property
    def store(self) -> Store: ...
    def usable(self) -> None: ...
    def using(self) -> AbstractAsyncContextManager[Side]: ...
    async def flush(self, log: str | None = None) -> None: ...
    def flush_sync(self, log: str | None = None) -> None: ...
    @property
    def publish(self) -> Callable[..., Awaitable[Receipt]]: ...
    async def publish_many(self, publications: Iterable[Publication]) -> list[Receipt]: ...
    @property
    def publish_sync(self) -> Callable[..., Receipt]: ...
    def publish_many_sync(self, publications: Iterable[Publication]) -> list[Receipt]: ...
    @property
    def listen(self) -> Callable[..., Listener]: ...
    @property
    def listen_sync(self) -> Callable[..., SyncListener]: ...
    @property
    def history(self) -> Callable[..., AsyncIterator[Item]]: ...


class Log:
    """One log of a bus. See :meth:`bus.Bus.log`; every method does and raises what the bus's own does.

    Publishing to a log that was closed raises :class:`~bus.errors.LogClosed`.
    """

    def __init__(self, bus: Publishing, name: str, *, cap: int | None = None, ttl: Delay | None = None) -> None:
        self.name = check_log(name)
        self._bus = bus
        self._own = _own_limits(cap, ttl)

    def __repr__(self) -> str:
        return f"<Log {self.name}>"

    async def publish(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: Delay | None = None,
        at: datetime | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """As :meth:`bus.Bus.publish`, to this log."""
        if ephemeral:
            return await self._bus.publish(
                event, topics=topics, key=key, id=id, delay=delay, at=at, log=self.name, ephemeral=True
            )
        publication = Publication(event, topics, key, id, delay, at)
        return (await self.publish_many([publication]))[0]

    async def publish_many(self, publications: Iterable[Publication]) -> list[Receipt]:
        """As :meth:`bus.Bus.publish_many`, to this log; one that names another raises ``InvalidLog``."""
        return await self._bus.publish_many([self._here(each) for each in publications])

    def publish_sync(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: Delay | None = None,
        at: datetime | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """As :meth:`publish`, from threads and scripts."""
        if ephemeral:
            return self._bus.publish_sync(
                event, topics=topics, key=key, id=id, delay=delay, at=at, log=self.name, ephemeral=True
            )
        return self.publish_many_sync([Publication(event, topics, key, id, delay, at)])[0]

    def publish_many_sync(self, publications: Iterable[Publication]) -> list[Receipt]:
        """As :meth:`publish_many`, from threads and scripts."""
        return self._bus.publish_many_sync([self._here(each) for each in publications])

    def listen(self, *patterns: str, **options: Any) -> Listener:
        """As :meth:`bus.Bus.listen`, with the same options, to this log."""
        return self._bus.listen(*patterns, log=self.name, **options)

    def listen_sync(self, *patterns: str, **options: Any) -> SyncListener:
        """As :meth:`bus.Bus.listen_sync`, with the same options, to this log."""
        return self._bus.listen_sync(*patterns, log=self.name, **options)

    def history(self, *patterns: str, **options: Any) -> AsyncIterator[Item]:
        """As :meth:`bus.Bus.history`, with the same options, of this log."""
        return self._bus.history(*patterns, log=self.name, **options)

    async def close(self) -> Position:
        """End the log, once and for all publishers: whoever listens is told, and so is who comes later. Returns its top.

        What it keeps can be read for as long as it is kept, and that it ended is known for 30 days; then all of it is
        forgotten, and the name is free for another. Safe twice; a log that was never written to can be closed as well.
        What is on its way from elsewhere when it closes is refused or comes before the end, never after it.

        A lost connection is retried until the bus's deadline; then ``BusUnavailable``: close it again.
        """
        await self._bus.flush(self.name)
        pauses = _pauses(self._bus.limits.deadline_s)
        async with self._bus.using() as side:
            while True:
                try:
                    return await side.store.close_log(self.name, ids.epoch(), self._own)
                except BusUnavailable:
                    pause_s = next(pauses, None)
                    if pause_s is None:
                        raise
                    await asyncio.sleep(pause_s)

    def close_sync(self) -> Position:
        """As :meth:`close`, from threads and scripts."""
        self._bus.flush_sync(self.name)
        self._bus.usable()
        pauses = _pauses(self._bus.limits.deadline_s)
        while True:
            try:
                return self._bus.store.close_log(self.name, ids.epoch(), self._own)
            except BusUnavailable:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def _here(self, publication: Publication) -> Publication:
        *_, log, _ = drafted(publication)
        if log not in (None, self.name):
            raise InvalidLog(str(log), f"this is the handle of log {self.name!r}: leave log= out")
        return replace(publication, log=self.name, own=self._own)


def _pauses(deadline_s: float) -> Iterator[float]:
    """How long to wait before each further attempt, longer each time, until the deadline."""
    deadline, pause_s = time.monotonic() + deadline_s, FIRST_PAUSE_S
    while time.monotonic() + pause_s < deadline:
        yield pause_s
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _own_limits(cap: int | None, ttl: Delay | None) -> OwnLimits:
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    defaults = Limits()
    defaults._replace(
        cap=defaults.cap if cap is None else cap, ttl_s=defaults.ttl_s if seconds is None else seconds
    ).checked()
    return OwnLimits(cap, None if seconds is None else int(seconds * 1000))
