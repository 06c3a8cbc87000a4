"""What belongs to an event loop: its connections and its hubs, one *side* for each loop that uses a bus.

A side is made by its first user and closed, on its own loop, by its last. Users are owners (who opened the bus),
listeners and readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from bus.decoding import Decoder
from bus.hub import Hub
from bus.store.base import LoopStore
from bus.whispers import LoopWhispers

__all__ = ["Side", "Sides"]

LINGER_S = 10.0
"""How long a hub without listeners goes on: browsers come back, finished runs do not."""


@dataclass(slots=True)
class Side:
    """One loop's part. ``uses`` counts all users, ``owners`` those who opened the bus."""

    store: LoopStore
    decoder: Decoder
    uses: int = 0
    owners: int = 0
    hubs: dict[str, Hub] = field(default_factory=dict)
    whispers: LoopWhispers = field(init=False)
    _lingering: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.whispers = LoopWhispers(self.store)

    async def hub(self, log: str) -> Hub:
        """The hub of a log, running; made by the first who asks. Raises what :meth:`bus.hub.Hub.start` raises."""
        if log in self._lingering:
            self._lingering.pop(log).cancel()
        hub = self.hubs.get(log)
        if hub is None or hub.state == "closed":
            hub = self.hubs[log] = Hub(self.store, log, self.decoder)
        await hub.start()
        return hub

    def left(self, log: str) -> None:
        """A listener has left, or could not join. A hub that nobody needs any more is closed after a while."""
        hub = self.hubs.get(log)
        if hub is not None and not hub.listeners and log not in self._lingering:
            self._lingering[log] = asyncio.get_running_loop().call_later(LINGER_S, self._let_go, hub)

    def _let_go(self, hub: Hub) -> None:
        del self._lingering[hub.name]
        if not hub.listeners:
            del self.hubs[hub.name]
            closing = asyncio.get_running_loop().create_task(hub.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def end_listeners(self) -> None:
        """Tell all listeners that the bus is closed; they leave by themselves."""
        for hub in self.hubs.values():
            hub.end_listeners()

    async def close_hubs(self) -> None:
        """End all listeners. Safe twice."""
        for handle in self._lingering.values():
            handle.cancel()
        self._lingering.clear()
        for hub in tuple(self.hubs.values()):
            await hub.close()
        if self._closing:
            await asyncio.wait(self._closing)


class Sides:
    """The sides of one bus. Safe from any thread; each side is touched on its own loop only."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, Side] = {}

    def __bool__(self) -> bool:
        return bool(self._by_loop)

    def here(self) -> Side | None:
        """The running loop's side, if it has one. ``None`` outside of a loop."""
        try:
            return self._by_loop.get(asyncio.get_running_loop())
        except RuntimeError:
            return None

    def take(self, make: Callable[[], LoopStore]) -> Side:
        """The running loop's side, for one more user; made if need be."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._forget_ended_loops()
            side = self._by_loop.get(loop)
            if side is None:
                side = self._by_loop[loop] = Side(make(), self._decoder)
            side.uses += 1
            return side

    async def release(self, side: Side) -> None:
        """One user less; the last one closes it."""
        side.uses -= 1
        if side.uses == 0:
            with self._lock:
                self._by_loop.pop(asyncio.get_running_loop(), None)
            await side.whispers.close()
            await side.close_hubs()
            await side.store.close()

    def owned(self) -> bool:
        """Whether any living loop has opened the bus."""
        with self._lock:
            self._forget_ended_loops()
            return any(side.owners for side in self._by_loop.values())

    def end_listeners(self) -> None:
        """On every loop, those whose loop does not own the bus included."""
        with self._lock:
            self._forget_ended_loops()
            for loop, side in self._by_loop.items():
                with contextlib.suppress(RuntimeError):  # it ended just now
                    loop.call_soon_threadsafe(side.end_listeners)

    def _forget_ended_loops(self) -> None:
        """A loop that ended without closing took its sockets with it; all that is left of it is its entry here."""
        for ended in [loop for loop in self._by_loop if loop.is_closed()]:
            del self._by_loop[ended]
