"""Sockets for the tests of ``AgentEventBus``: real objects with an async ``send_json``, good ones and bad ones."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.waiting import eventually

__all__ = ["Failing", "Hung", "Socket"]


class Socket:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.closed = 0

    async def send_json(self, data: Any) -> None:
        self.heard.append(data)

    async def close(self) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        """The ``n`` of each event that has one."""
        return [event["n"] for event in self.heard if "n" in event]

    async def hears(self, count: int, timeout: float = 10) -> list[Any]:
        """What it has heard, once it is this much."""
        await eventually(lambda: len(self.heard) >= count, f"a socket to hear {count} events", timeout)
        return self.heard


class Failing(Socket):
    """Its browser has gone: sending raises, from the ``good``-th time on."""

    def __init__(self, good: int = 0) -> None:
        super().__init__()
        self._good = good
        self.tries = 0

    async def send_json(self, data: Any) -> None:
        self.tries += 1
        if len(self.heard) >= self._good:
            raise RuntimeError('Cannot call "send" once a close message has been sent: secret-payload')
        await super().send_json(data)


class Hung(Socket):
    """Its browser neither reads nor goes away; ``freed`` lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.freed = asyncio.Event()

    async def send_json(self, data: Any) -> None:
        self.tries += 1
        await self.freed.wait()
        await super().send_json(data)
