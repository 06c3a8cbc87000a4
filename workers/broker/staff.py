"""What a process can do: the actors that it declares, on which queues, and how each of them runs."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from dramatiq import Actor
from dramatiq.asyncio import async_to_sync

from workers.errors import InvalidHandler

__all__ = ["HandlerActor", "Staff"]


async def _nothing() -> None: ...


BRIDGE = async_to_sync(_nothing).__code__
"""The code of the function that Dramatiq puts around a coroutine function, to run it from a thread."""


class HandlerActor(Actor[Any, Any]):
    """What a handler of events is to Dramatiq. It is called without a word: Dramatiq's actors log their arguments at DEBUG."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


class Staff:
    """A worker takes work for these and for no others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_queue: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        self._coroutines: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._limits: dict[str, int] = {}

    def join(self, actor: Actor[Any, Any]) -> None:
        """An actor was declared. Raises :class:`~workers.errors.InvalidHandler` for a limit that is none."""
        limit = actor.options.get("max_concurrent")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise InvalidHandler(f"max_concurrent= of {actor.actor_name} is a whole number from 1 up")
            self._limits[actor.actor_name] = limit
        coroutine = _coroutine_below(actor)
        if coroutine is not None:
            self._coroutines[actor.actor_name] = coroutine
        self.expect(actor.queue_name, actor.actor_name)

    def expect(self, queue: str, handler: str) -> None:
        """Take work of this name as well, known or not. Safe twice."""
        with self._lock:
            if handler not in self._by_queue[queue]:
                self._by_queue[queue] += (handler,)

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The handlers that this process serves on a queue."""
        return self._by_queue[queue]

    def is_async(self, handler: str) -> bool:
        """Whether it runs on the event loop."""
        return handler in self._coroutines

    def coroutine_of(self, handler: str) -> Callable[..., Awaitable[Any]] | None:
        """The coroutine function of an async actor."""
        return self._coroutines.get(handler)

    def begin_with(self, handler: str, function: Callable[..., Awaitable[Any]]) -> None:
        """Have the event loop call this for an async actor. It gives what is awaited, with no coroutine around it."""
        if handler in self._coroutines:
            self._coroutines[handler] = function

    def limit_of(self, handler: str) -> int | None:
        """How many of its jobs this process may hold at once, if that is limited (``max_concurrent``)."""
        return self._limits.get(handler)


def _coroutine_below(actor: Actor[Any, Any]) -> Callable[..., Awaitable[Any]] | None:
    """The coroutine function below Dramatiq's bridge.

    What the app put around a coroutine function itself is sync and stays so, and so does an actor of a class of the app's
    own that is called in its own way.
    """
    if getattr(actor.fn, "__code__", None) is not BRIDGE or type(actor).__call__ not in (
        Actor.__call__,
        HandlerActor.__call__,
    ):
        return None
    below: Callable[..., Awaitable[Any]] = actor.fn.__wrapped__  # type: ignore[attr-defined] # functools.wraps put it there
    return below
