"""Hearing what an app's listeners would hear, and waiting for it by condition."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bus import Bus, Closed, Delivery, Event, Gap
from bus.testing.waiting import NeverHappened, eventually
from workers.testing.matching import is_of

__all__ = ["Heard", "record"]

SHOWN = 20


class Heard:
    """See :class:`workers.kit.Recorder`."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.items: list[Delivery | Gap] = []
        self._patterns = patterns

    def __repr__(self) -> str:
        return f"<Heard {len(self.items)} on {' '.join(self._patterns)}>"

    @property
    def events(self) -> list[Event | dict[str, Any]]:
        return [item.event for item in self.items if isinstance(item, Delivery)]

    async def until(self, condition: Callable[[list[Any]], object], what: str = "", *, timeout_s: float = 5) -> None:
        try:
            await eventually(lambda: condition(self.events), what, timeout_s)
        except NeverHappened:
            awaited = what or "what the test asked for"
            raise AssertionError(f"{awaited} was not heard within {timeout_s:g} s; {self._told()}") from None

    async def first(self, type: type[Event] | str, *, timeout_s: float = 5) -> Any:
        def found(_: list[Any]) -> list[Any]:
            return [item.event for item in self.items if isinstance(item, Delivery) and is_of(type, item)]

        await self.until(found, f"an event of type {getattr(type, '__name__', type)}", timeout_s=timeout_s)
        return found([])[0]

    def _told(self) -> str:
        if not self.items:
            return f"nothing was heard on {' '.join(self._patterns)}"
        lines = [
            f"  {item.envelope.type} on {' '.join(item.envelope.topics)}: {item.event!r}"
            if isinstance(item, Delivery)
            else f"  {item}"
            for item in self.items[-SHOWN:]
        ]
        return "\n".join([f"heard on {' '.join(self._patterns)} were {len(self.items)}, the last of them:", *lines])


@asynccontextmanager
async def record(bus: Bus, patterns: tuple[str, ...], log: str | None) -> AsyncIterator[Heard]:
    """Listen from now on, in a task of its own, until the block ends."""
    heard = Heard(patterns)
    async with bus.listen(*patterns, log=log) as listener:

        async def hear() -> None:
            async for item in listener:
                if not isinstance(item, Closed):
                    heard.items.append(item)

        hearing = asyncio.create_task(hear(), name="callboard recorder")
        try:
            yield heard
        finally:
            hearing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hearing
