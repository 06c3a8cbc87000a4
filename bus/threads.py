"""Listening from threads: the same listeners, on an event loop that runs on a thread of the bus's own.

The thread starts with the first listener and ends with the last one, so whoever only listens from tasks never has it. All
listeners of threads share that loop, and with it one connection.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_any
from types import TracebackType
from typing import Any, Self, TypeVar

from bus.delivery import Item
from bus.errors import BusClosed
from bus.listener import Listener
from bus.position import Position

__all__ = ["ListeningThread", "SyncListener"]

T = TypeVar("T")

END_S = 5.0


class ListeningThread:
    """Runs coroutines for as long as somebody needs it. Safe from any thread."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> asyncio.AbstractEventLoop:
        """One user more; the first one starts it."""
        if self._pid != os.getpid():
            self._start()  # the parent's thread stays the parent's
        with self._lock:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: whoever forgets to leave must not keep the process from ending.
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="callboard listening", daemon=True
                )
                self._thread.start()
            return self._loop

    def leave(self) -> None:
        """One user less; the last one ends it. Blocks until it has."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_all())
        loop.close()


async def _end_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class SyncListener:
    """Made by :meth:`bus.Bus.listen_sync`: ``with bus.listen_sync(...) as listener: for item in listener``.

    It belongs to one thread at a time; only ``close`` may come from another, and ends the iteration.
    """

    def __init__(self, thread: ListeningThread, listener: Listener) -> None:
        self._thread = thread
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: Future[Item | None] | None = None
        self._left = False
        self._leaving = threading.Lock()

    def __repr__(self) -> str:
        return f"<SyncListener of {self._listener!r}>"

    def __enter__(self) -> Self:
        with self._leaving:  # who closes it from elsewhere waits until it is there
            if self._loop is not None or self._left:
                raise BusClosed("this listener was entered before: call bus.listen_sync() again for another")
            self._loop = self._thread.enter()
            try:
                _run_on(self._loop, self._listener.__aenter__()).result()
            except BaseException:
                self._left = True
                self._thread.leave()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def position(self) -> Position | None:
        """As :attr:`bus.Listener.position`."""
        return self._listener.position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        item = self._wait(None)
        if item is None:
            raise StopIteration
        return item

    def get(self, timeout_s: float) -> Item | None:
        """The next item, or ``None`` where there is none in time, or no more at all. Blocks; a timeout loses nothing."""
        return self._wait(timeout_s)

    def _wait(self, timeout_s: float | None) -> Item | None:
        if self._loop is None:
            raise BusClosed("enter the listener first: with bus.listen_sync(...) as listener")
        if self._next is None:
            with self._leaving:
                if self._left:
                    return None
                self._next = _run_on(self._loop, _one(self._listener))
        done, _ = wait_for_any([self._next], timeout_s)
        if not done:
            return None  # the same wait goes on when it is asked for again
        found, self._next = self._next, None
        return None if found.cancelled() else found.result()  # closed while it waited for a server that hangs

    def close(self) -> None:
        """Leave, and end the iteration. Blocks until what it used is free; safe twice, and from any thread."""
        with self._leaving:
            if self._loop is None or self._left:
                return
            self._left = True
            try:
                _run_on(self._loop, self._listener.close()).result(END_S)
            finally:
                self._thread.leave()


def _run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, loop)


async def _one(listener: Listener) -> Item | None:
    try:
        return await anext(listener)
    except StopAsyncIteration:
        return None
