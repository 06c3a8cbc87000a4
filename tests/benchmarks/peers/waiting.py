"""What the peers share on the waiting work: the load, the count, and the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvloop

from tests.benchmarks.meter import Meter

__all__ = ["Work", "run"]

TIMEOUT_S = 120.0
TEXT = "x" * 150


class Work:
    """Jobs that wait, counted on the loop that runs them."""

    def __init__(self, many: int, wait_s: float) -> None:
        self._left, self._many, self._wait_s = many, many, wait_s
        self._over = asyncio.Event()

    def load(self) -> Iterator[tuple[str, str]]:
        """The same as ours: (agent's id, text), over a hundred agents."""
        return ((f"agent-{number % 100:03}", TEXT) for number in range(self._many))

    async def one(self) -> None:
        """What a handler does."""
        await asyncio.sleep(self._wait_s)
        self._left -= 1
        if self._left == 0:
            self._over.set()

    async def over(self) -> None:
        """Until all are done."""
        await self._over.wait()

    async def measure(self, worker: Awaitable[Any]) -> dict[str, float]:
        """Run a worker until the last job is done."""
        meter = Meter()
        meter.start()
        running = asyncio.ensure_future(worker)
        over = asyncio.ensure_future(self._over.wait())
        done, _ = await asyncio.wait((running, over), timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        found = meter.read()
        if over not in done and self._left:
            raise RuntimeError(f"{self._left} jobs were not done")
        running.cancel()
        over.cancel()
        return found


def run(main: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    """Run a piece on uvloop, as ours does where it is installed."""

    async def whole() -> dict[str, float]:
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())
