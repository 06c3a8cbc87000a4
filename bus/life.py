"""The life of a bus: which store it uses, who owns it, and when it is open.

Loops and threads open it, each counted; the last close of all ends everything. Whoever merely uses it has it opened, and
closes nothing. What belongs to an event loop is a *side* (see ``sides.py``); everything else is blocking and shared.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from bus.errors import BusClosed, BusUnavailable
from bus.finishing import finished
from bus.sides import Side, Sides
from bus.store.base import Store
from bus.whispers import ThreadWhispers

__all__ = ["Life"]

log = logging.getLogger("callboard.bus")


class Life:
    """Safe from any thread. With an ``instead`` a server that is away when it is opened is replaced by that store."""

    def __init__(self, store: Store, instead: Callable[[], Store] | None) -> None:
        self.store = store
        self.sides = Sides()
        self.whispers = ThreadWhispers(lambda: self.store)
        self.reached = False
        self.closed = False
        self.fell_back = False
        self._instead = instead
        self._lock = threading.RLock()
        self._thread_owners = 0
        self._openings = 0
        self._counting = threading.Lock()
        self._failure: tuple[float, BusUnavailable] | None = None

    # -- owners --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See :meth:`bus.Bus.open`."""
        with self._opening():
            if self.store.mode == "memory":
                self._reach()
            else:
                await asyncio.to_thread(self._reach)
            # After this nothing waits: a cancellation comes before it or after it.
            self.sides.take(self.store.on_loop).owners += 1

    async def close(self) -> None:
        """See :meth:`bus.Bus.close`."""
        side = self.sides.here()
        if side is None or side.owners == 0:
            return
        side.owners -= 1
        await finished(self._end(side))

    async def _end(self, side: Side) -> None:
        if side.owners == 0:
            await side.whispers.close()
            await side.close_hubs()
        await self.sides.release(side)
        if self.whispers:
            await asyncio.to_thread(self.whispers.close)
        self._close_if_unowned()

    def open_sync(self) -> None:
        """See :meth:`bus.Bus.open_sync`."""
        with self._opening():
            self._reach()
            with self._lock:
                self._thread_owners += 1

    def close_sync(self) -> None:
        """See :meth:`bus.Bus.close_sync`."""
        self.whispers.close()
        with self._lock:
            self._thread_owners = max(0, self._thread_owners - 1)
        self._close_if_unowned()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """While somebody opens, somebody else's last close must not close it under their hands."""
        with self._counting:  # not the lock that is held while a server is being reached
            self._openings += 1
        try:
            yield
        finally:
            with self._counting:
                self._openings -= 1

    def owned(self) -> bool:
        """Whether a loop or a thread has opened it, or is about to."""
        with self._lock:
            return bool(self._thread_owners or self._openings or self.sides.owned())

    def end(self) -> None:
        """Close, whoever owns it."""
        with self._lock:
            self.closed = True
            self.reached = False
            self.store.close()
            self.sides.end_listeners()

    def _close_if_unowned(self) -> None:
        with self._lock:
            if not self.owned():
                self.end()

    # -- reaching the server -------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        """Connect and check the server, once until the bus is closed.

        Threads that ask while one is trying share its failure, instead of each waiting for a hung server in turn.
        """
        asked = time.monotonic()
        with self._lock:
            if not self.reached:
                if self._failure is not None and self._failure[0] > asked:
                    raise type(self._failure[1])(str(self._failure[1]))
                try:
                    self.store.open()
                except BusUnavailable as error:
                    self._failure = (time.monotonic(), error)
                    self._fall_back(error)
                self.reached = True
            self.closed = False

    def _fall_back(self, error: BusUnavailable) -> None:
        self.store.close()  # an unfit server was reached all the same
        if self._instead is None:
            raise error
        log.warning("%s: this process goes on IN MEMORY; nothing is shared with others or handed over later", error)
        self.store = self._instead()
        self.fell_back = True

    # -- users ---------------------------------------------------------------------------------------------------------

    def usable(self) -> None:
        """Make sure that it can be used: one that was never opened opens by itself, one that was closed raises."""
        if self.closed:
            raise BusClosed
        if not self.reached:
            self._reach()

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Side]:
        """Keep what this loop uses of the bus open for as long as the block runs, without owning the bus."""
        if self.closed:
            raise BusClosed
        if not self.reached:
            await asyncio.to_thread(self._reach)
        side = self.sides.take(self.store.on_loop)
        try:
            yield side
        finally:
            await finished(self.sides.release(side))

    def rest(self) -> None:
        """Close the blocking connections if nobody owns the bus; it opens by itself when it is used again. Safe twice.

        For whoever used it without owning it, as a worker does when it stops.
        """
        self.whispers.close()
        with self._lock:
            if self.reached and not self._thread_owners and not self.sides:
                self.reached = False
                self.store.close()
