"""A live listener beside the work: what it hears is the third column of the ledger."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from bus import Bus, Delivery, Gap
from tests.waiting import wait_until

__all__ = ["Hearing"]


class Hearing:
    """Listens to everything, on a thread of its own, for as long as its ``with`` lasts."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault listener", daemon=True)
        self.ids: list[str] = []
        """The ids of all events, as they were heard."""
        self.gaps: list[Gap] = []
        self.attached = False

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.attached, "the listener to attach", 10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._ending is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(15)

    async def _run(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        async with self._bus:
            listening = asyncio.create_task(self._listen())
            await self._ending.wait()
        # Closing the bus has ended the listener, as it does in a worker that stops.
        async with asyncio.timeout(5):
            await listening

    async def _listen(self) -> None:
        async with self._bus.listen("**") as listener:
            self.attached = True
            async for item in listener:
                if isinstance(item, Gap):
                    self.gaps.append(item)
                elif isinstance(item, Delivery):
                    self.ids.append(item.envelope.id)
