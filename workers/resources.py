"""An app's resources on the worker's loop: the bus's side there, then the lifespans, opened and closed by one task.

One task from beginning to end, because task groups, timeouts and cancel scopes inside a lifespan belong to the task
that entered them. So a lifespan can also fail while it is open: where a task of its task group fails, the group cancels
the task that entered it, which is this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from bus import Bus
from workers.errors import BootFailed
from workers.whereabouts import name_of

__all__ = ["Lifespan", "Resources"]

Lifespan = Callable[[], AsyncIterator[None]]
LIFESPAN = "lifespan"

log = logging.getLogger("callboard.workers")


class Resources:
    """Opened once, closed once; both on the loop."""

    def __init__(self, bus: Bus, lifespans: Sequence[Lifespan], when_lost: Callable[[], object] | None = None) -> None:
        """``when_lost`` is called on the loop when a lifespan has failed while it was open, before that one is closed."""
        self._bus = bus
        self._lifespans = lifespans
        self._when_lost = when_lost
        self.at_hand = ""
        """What is being opened or closed, for people."""
        self.unclean = False
        """Whether one has failed when it was closed."""
        self.lost: BaseException | None = None
        """Why a lifespan is not open any more, though nobody has asked for that."""
        self._open: list[tuple[str, AbstractAsyncContextManager[None]]] = []
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
            self.at_hand = "the bus"
            async with self._bus.using():
                try:
                    for lifespan in self._lifespans:
                        await self._enter(lifespan)
                    self._opened = True
                    opened.set_result(None)
                    await self._keep_open()
                finally:
                    await self._leave_all()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(_failure(error))

    async def _enter(self, lifespan: Lifespan) -> None:
        self.at_hand = self._failed = name = f"{LIFESPAN} {name_of(lifespan)}"
        resource = asynccontextmanager(lifespan)()
        try:
            await resource.__aenter__()
        except asyncio.CancelledError:
            lost = await self._unwind()
            if lost is None:
                raise
            self._failed, error = lost  # one that had opened
            raise error from None
        self._failed = ""
        self._open.append((name, resource))

    async def _keep_open(self) -> None:
        while not self._closing.is_set():
            try:
                await self._closing.wait()
            except asyncio.CancelledError:
                if self._closing.is_set():
                    raise
                await self._lose()

    async def _lose(self) -> None:
        """Close the lifespan that has failed, and before it those that were opened after it; the others stay open."""
        if self._when_lost is not None:
            self._when_lost()
        lost = await self._unwind()
        if lost is None:
            self.lost = asyncio.CancelledError("somebody has cancelled what holds the app's resources")
            log.error("%s: all are closed, and the worker stops", self.lost)
        else:
            who, self.lost = lost
            log.error("%s failed while it was open: it is closed, and the worker stops", who, exc_info=self.lost)

    async def _unwind(self) -> tuple[str, BaseException] | None:
        """This task is cancelled: close what is open, the last one first, until one takes that back, for then it was its own.

        Returns which it was, and why; nothing where it was nobody's, and all are closed.
        """
        task = asyncio.current_task()
        while self._open and task is not None and task.cancelling():
            name, error = await self._leave_last()
            if not task.cancelling():
                return name, error or asyncio.CancelledError(f"{name} has cancelled itself")
            self._tell(name, error)
        return None

    async def _leave_all(self) -> None:
        while self._open:
            self._tell(*await self._leave_last())

    async def _leave_last(self) -> tuple[str, BaseException | None]:
        """Close one. Its own failure is returned: thrown into the outer ones it would keep them from closing."""
        name, resource = self._open.pop()
        self.at_hand = name
        try:
            await resource.__aexit__(None, None, None)
        except BaseException as error:  # noqa: BLE001 - also an exit, which is no reason to leave the others open
            return name, error
        finally:
            self.at_hand = "the bus"
        return name, None

    def _tell(self, name: str, error: BaseException | None) -> None:
        if error is not None:
            self.unclean = True
            log.error("closing %s failed; going on with the others", name, exc_info=error)


def _failure(error: BaseException) -> BaseException:
    """What a failed boot is told: an exit (``sys.exit("no API key")``) would unwind whoever waits, without a word."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return BootFailed(f"a resource asked for an exit: {str(error) or type(error).__name__}").with_traceback(
            error.__traceback__
        )
    return error
