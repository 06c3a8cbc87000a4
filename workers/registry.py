"""What a handler is, before anybody runs it: a function, the events it wants, and where its work goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bus.bindings import Binding
from bus.errors import BusError
from bus.events import Event, check_type
from workers.errors import InvalidHandler

__all__ = ["Handler", "Priority", "make_handler"]

Priority = Literal["high", "normal", "low"]
PRIORITIES: dict[str, int] = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class Handler:
    """A declared handler. ``options`` are Dramatiq's actor options."""

    name: str
    function: Callable[..., Any]
    binding: Binding
    wants_context: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function, and so runs on the event loop."""
        return inspect.iscoroutinefunction(self.function)


def make_handler(
    function: Callable[..., Any],
    types: Sequence[type[Event] | str],
    *,
    name: str | None,
    topics: str | Sequence[str],
    key: str | None,
    queue: str,
    priority: Priority,
    options: dict[str, Any],
) -> Handler:
    """Check a declaration. Raises :class:`~workers.errors.InvalidHandler` in one line that says what to change."""
    chosen = name or f"{function.__module__}.{function.__qualname__}".replace("<locals>.", "")
    if priority not in PRIORITIES:
        raise InvalidHandler(f"handler {chosen}: priority is 'high', 'normal' or 'low'")
    try:
        binding = Binding.make(
            handler=chosen,
            queue=queue,
            types=tuple(_type_name(chosen, wanted) for wanted in types),
            topics=(topics,) if isinstance(topics, str) else tuple(topics),
            key=key,
            priority=PRIORITIES[priority],
        )
    except BusError as error:
        raise InvalidHandler(f"handler {chosen}: {error}") from None
    _check_key(chosen, key, types)
    return Handler(chosen, function, binding, _wants_context(chosen, function), options)


def _type_name(name: str, wanted: type[Event] | str) -> str:
    if isinstance(wanted, str):
        return check_type(wanted)
    if not (isinstance(wanted, type) and issubclass(wanted, Event)):
        raise InvalidHandler(f"handler {name}: app.on takes event classes or type names, as in @app.on(PostCreated)")
    if wanted.__event_type__ is None:
        raise InvalidHandler(f"handler {name}: {wanted.__name__} has no type=, so nobody can publish it")
    return wanted.__event_type__


def _check_key(name: str, key: str | None, types: Sequence[type[Event] | str]) -> None:
    """A typo in ``key=`` would silently cost the order of an agent's events."""
    for wanted in types:
        if key is not None and not isinstance(wanted, str) and key not in wanted.model_fields:
            fields = ", ".join(wanted.model_fields) or "none"
            raise InvalidHandler(f"handler {name}: {wanted.__name__} has no field {key!r} for key= (it has {fields})")


def _wants_context(name: str, function: Callable[..., Any]) -> bool:
    """Whether it takes ``(event, ctx)``; ``(event)`` alone will do."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidHandler(f"handler {name}: a handler cannot yield; use ctx.progress(...) to report on the way")
    signature = inspect.signature(function)
    for arguments in (("event", "ctx"), ("event",)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise InvalidHandler(f"handler {name}: it is called with (event, ctx), and cannot be")
