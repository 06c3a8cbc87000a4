"""An app's resources on the worker's loop: the bus's side there, then the lifespans, opened and closed by one task.

One task from beginning to end, because task groups, timeouts and cancel scopes inside a lifespan belong to the task
that entered them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from bus import Bus
from workers.errors import BootFailed
from workers.whereabouts import name_of

__all__ = ["Lifespan", "Resources"]

Lifespan = Callable[[], AsyncIterator[None]]
LIFESPAN = "lifespan"

log = logging.getLogger("callboard.workers")


class Resources:
    """Opened once, closed once; both on the loop."""

    def __init__(self, bus: Bus, lifespans: Sequence[Lifespan]) -> None:
        self._bus = bus
        self._lifespans = lifespans
        self.at_hand = ""
        """What is being opened or closed, for people."""
        self._opened = False
        self._failed = ""
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open all, in order. Raises what the first failing one raised, with those before it closed again."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(opened), name="callboard resources")
        try:
            await opened
        except asyncio.CancelledError:  # the boot took too long
            self._task.cancel()
            raise

    @property
    def hint(self) -> str:
        """Where it failed, and what to do, once one has not opened; nothing else."""
        where = self._failed or self.at_hand  # nothing has failed yet where the boot has lost patience
        if self._opened or not where.startswith(LIFESPAN):
            return ""
        return f" (in {where}: mend it, or what it needs, and start again)"

    async def close(self) -> None:
        """Close all, in reverse. One that fails is logged, and does not keep the others open. Safe twice."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _hold(self, opened: asyncio.Future[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                self.at_hand = "the bus"
                await stack.enter_async_context(self._bus.using())
                stack.callback(self._turn_to, "the bus")
                for lifespan in self._lifespans:
                    await self._enter(lifespan, stack)
                self._opened = True
                opened.set_result(None)
                await self._closing.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(_failure(error))

    async def _enter(self, lifespan: Lifespan, stack: AsyncExitStack) -> None:
        self.at_hand = name = f"{LIFESPAN} {name_of(lifespan)}"
        resource = asynccontextmanager(lifespan)()
        try:
            await resource.__aenter__()
        except BaseException:
            self._failed = name
            raise
        stack.push_async_callback(_leave, resource)
        stack.callback(self._turn_to, name)

    def _turn_to(self, what: str) -> None:
        self.at_hand = what


async def _leave(resource: AbstractAsyncContextManager[None]) -> None:
    """Close one. Its own failure ends here: thrown into the outer ones it would keep them from closing."""
    try:
        await resource.__aexit__(None, None, None)
    except (Exception, SystemExit, KeyboardInterrupt):
        log.exception("closing a resource failed; going on with the others")


def _failure(error: BaseException) -> BaseException:
    """What a failed boot is told: an exit (``sys.exit("no API key")``) would unwind whoever waits, without a word."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return BootFailed(f"a resource asked for an exit: {str(error) or type(error).__name__}").with_traceback(
            error.__traceback__
        )
    return error
