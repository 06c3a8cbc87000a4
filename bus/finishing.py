"""Ends that are not cut short: what was begun to be closed is closed, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finished"]

T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end; a cancellation is raised after that. For work whose steps have deadlines of their own."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001 - told below, whether or not we were cancelled before
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen, so that nobody complains of it
        raise cancelled
    return task.result()
