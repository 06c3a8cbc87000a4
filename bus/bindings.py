"""Bindings: who wants which events as work, and where that work goes.

A binding says "handler H wants events of these types on these topics, on this queue, keyed so". Bindings live in the
store, so a publisher needs none of the handlers' code: it matches each event against a cached copy, and the store tells
it when the copy is out of date.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import from_json

from bus.errors import InvalidSettings
from bus.store.base import PRIORITIES, Route, Stale
from bus.topics import Matcher

__all__ = ["Binding", "Routing"]

REMEMBERED = 4096
"""For how many (type, topics) pairs a publisher remembers who wants them."""

_HANDLER = re.compile(r"[^|\s\x00-\x1f\x7f]{1,255}")
_QUEUE = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,127}")


class Binding(BaseModel):
    """One handler's wish. ``types`` are event types, ``topics`` patterns; an event must match one of each."""

    model_config = ConfigDict(frozen=True)

    handler: str
    queue: str = "default"
    types: tuple[str, ...]
    topics: tuple[str, ...] = ("**",)
    key: str | None = None
    priority: int = 1

    @field_validator("handler")
    @classmethod
    def _is_handler(cls, handler: str) -> str:
        if not _HANDLER.fullmatch(handler):
            raise ValueError(
                "a handler's name has 1 to 255 characters, none of them '|', a space or a control character"
            )
        return handler

    @field_validator("queue")
    @classmethod
    def _is_queue(cls, queue: str) -> str:
        if not _QUEUE.fullmatch(queue):
            raise ValueError("a queue's name starts with a letter or '_', then letters, digits, '.', '_' or '-'")
        return queue

    @field_validator("priority")
    @classmethod
    def _is_priority(cls, priority: int) -> int:
        if not 0 <= priority < PRIORITIES:
            raise ValueError("a priority is 0 (high), 1 (normal) or 2 (low)")
        return priority

    @classmethod
    def make(cls, **fields: Any) -> Binding:
        """Build a binding; a field that does not fit raises :class:`~bus.errors.InvalidSettings` in one line."""
        Matcher(fields.get("topics", ("**",)))
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise InvalidSettings(f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None

    def encode(self) -> bytes:
        """Its bytes in the store. The same binding always has the same bytes, so that binding again changes nothing."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> Binding:
        """Read a binding back; unknown fields of a newer version are left out."""
        return cls.model_validate_json(data)

    @property
    def route(self) -> Route:
        """Where its jobs go."""
        return Route(self.queue, self.handler, self.priority)


class Routing:
    """One version of all bindings, ready to match. Immutable but for its bounded memory; safe from any thread."""

    __slots__ = ("_remembered", "_wishes", "routes", "version")

    def __init__(self, stale: Stale) -> None:
        bindings = [Binding.decode(data) for _, data in sorted(stale.bindings.items())]
        self.version = stale.version
        self._wishes = [
            (frozenset(binding.types), Matcher(binding.topics, reserved=True), binding.route, binding.key)
            for binding in bindings
        ]
        self._remembered: OrderedDict[tuple[str, str], tuple[tuple[Route, str | None], ...]] = OrderedDict()

    def jobs(
        self, type: str, topics: str, key: str | None, data: Mapping[str, Any] | bytes
    ) -> tuple[tuple[Route, str], ...]:
        """The jobs of one event: (route, lane key or ``""``). Its topics are separated by spaces.

        Data that is given as JSON is read only where a lane's key stands in it.
        """
        asked = (type, topics)
        wanted = self._remembered.get(asked)
        if wanted is None:
            wanted = self._wanted(asked)
        if key is not None:
            return tuple([(route, key) for route, _ in wanted])
        if isinstance(data, bytes):
            data = from_json(data) if any(field for _, field in wanted) else {}
        return tuple([(route, _lane_key(field, data)) for route, field in wanted])

    def _wanted(self, asked: tuple[str, str]) -> tuple[tuple[Route, str | None], ...]:
        wanted = tuple(
            (route, field)
            for types, matcher, route, field in self._wishes
            if asked[0] in types and matcher.matches(asked[1].split())
        )
        if len(self._remembered) >= REMEMBERED:
            self._remembered.popitem(last=False)
        self._remembered[asked] = wanted
        return wanted


def _lane_key(field: str | None, data: Mapping[str, Any]) -> str:
    """The lane of an event, by the handler's field. Missing, null and empty mean no lane."""
    value = data.get(field) if field is not None else None
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
