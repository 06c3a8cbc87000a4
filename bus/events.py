"""What an app publishes: its own pydantic models, each with a type and a version.

::

    class PostCreated(Event, type="agent.post.created", version=1):
        agent_id: str
        text: str

The type is the name that travels. It belongs to exactly the class that states it: a subclass without ``type=`` is an
abstract base again and cannot be published, because an inherited type would make two shapes travel under one name.

This module holds the one piece of state of the package that exists from import on: the process's table of types. Types
define themselves where their class statement runs, as actors and routes do, and a reader that holds only bytes has
nobody to ask but the process.
"""

from __future__ import annotations

import re
import threading
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bus.errors import InvalidEvent

__all__ = ["Event", "check_type", "lookup", "newest", "versions"]

_TYPE = re.compile(r"\$?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_MAX_TYPE = 255

_types: dict[str, dict[int, type[Event]]] = {}
_defining = threading.Lock()


class Event(BaseModel):
    """The base of all events. Instances are immutable; ``NaN`` and infinities are refused, because JSON has neither.

    The class statement takes ``type`` (dotted names, as in ``"agent.post.created"``) and ``version`` (from 1 up); both
    raise ``InvalidEvent`` where they are malformed, or taken by another class. A class without ``type`` is an abstract
    base. Fields may have any name pydantic allows, ``type``, ``version``, ``id`` and ``data`` among them.
    """

    model_config = ConfigDict(
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # pydantic's default writes null, which would hide a NaN in a field typed Any
        hide_input_in_errors=True,  # an event's payload stays out of logs and tracebacks
    )

    __event_type__: ClassVar[str | None] = None
    __event_version__: ClassVar[int] = 0
    """0 where there is no type."""

    def __init_subclass__(cls, *, type: str | None = None, version: int | None = None, **config: Any) -> None:
        # pydantic hands the class arguments to both hooks. This one only keeps them from object's, which takes none.
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str | None = None, version: int | None = None, **config: Any) -> None:
        """Name the finished class and enter it in the table. Runs once the fields stand: a broken one stays out."""
        super().__pydantic_init_subclass__(**config)
        generic = cls.__pydantic_generic_metadata__["origin"]
        # Moved[Post] is Moved with its fields filled in, not another event.
        if generic is not None and issubclass(generic, Event) and type is None:
            cls.__event_type__, cls.__event_version__ = generic.__event_type__, generic.__event_version__
            return
        if type is None and version is not None:
            raise InvalidEvent(f"{_name(cls)} has a version and no type: give the class a type= as well")
        cls.__event_type__ = None if type is None else check_type(type)
        cls.__event_version__ = 0 if type is None else _check_version(cls, 1 if version is None else version)
        if type is not None:
            _define(cls, type, cls.__event_version__)


def check_type(type: object) -> str:
    """Return ``type`` if it is the name of an event type; otherwise raise ``InvalidEvent``.

    Dotted names of letters, digits, ``_`` and ``-``, at most 255 characters. A first ``$`` marks the bus's own.
    """
    if isinstance(type, str) and len(type) <= _MAX_TYPE and _TYPE.fullmatch(type):
        return str.__str__(type)  # an enum's or another subclass's plain text
    given = f"{type[:80]!r}" if isinstance(type, str) else f"an object of type {type.__class__.__name__}"
    raise InvalidEvent(
        f"{given} is not the name of an event type: use dotted names of a-z A-Z 0-9 _ -, "
        f"as in 'agent.post.created', with at most {_MAX_TYPE} characters"
    )


def lookup(type: str, version: int) -> type[Event] | None:
    """The class of exactly this type and version, or None where this process does not know it."""
    known = _types.get(type)
    return None if known is None else known.get(version)


def versions(type: str) -> tuple[int, ...]:
    """The versions of a type that this process knows, lowest first; empty for an unknown type."""
    return tuple(sorted(_types.get(type, ())))


def newest(type: str) -> type[Event] | None:
    """The class of a type's highest version that this process knows, or None."""
    known = versions(type)
    return _types[type][known[-1]] if known else None


def _check_version(cls: type[Event], version: object) -> int:
    if isinstance(version, int) and not isinstance(version, bool) and version >= 1:
        return version
    raise InvalidEvent(f"{_name(cls)}: a version is a whole number from 1 up")


def _define(cls: type[Event], type: str, version: int) -> None:
    with _defining:
        known = _types.setdefault(type, {})
        other = known.get(version)
        if other is not None and not _may_replace(cls, other):
            raise InvalidEvent(
                f"{_name(cls)} and {_name(other)} both define {type!r} version {version}: give one another type or "
                "version (a file that is run as __main__ and imported as well defines everything twice)"
            )
        known[version] = cls


def _may_replace(cls: type[Event], other: type[Event]) -> bool:
    """A reloaded module redefines its own classes, and a class inside a function is made anew by each call."""
    return _name(cls) == _name(other) or any("<locals>" in one.__qualname__ for one in (cls, other))


def _name(cls: type[Event]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
