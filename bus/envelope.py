"""What travels: an event with its CloudEvents 1.0 attributes.

Attribute names and rules are those of the CloudEvents specification (v1.0.2) and its extensions ``correlation`` and
``distributed-tracing``; ``topics`` and ``key`` are ours. ``WIRE.md`` in this folder describes the bytes.

An envelope that exists can be sent: its data is plain JSON within the limits of :func:`check_json`, its texts hold no
control characters, and its topics fit the grammar.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationInfo,
)

from bus.errors import InvalidTopic
from bus.topics import topic_set

__all__ = [
    "MAX_ATTRIBUTE",
    "MAX_DEPTH",
    "PATTERN_FAULTS",
    "Envelope",
    "check_json",
    "dataschema",
    "rfc3339",
    "step",
    "version_in",
    "written_ms",
]

MAX_DEPTH: Final = 64
"""How deep data may be nested; the data itself is the first level."""

MAX_ATTRIBUTE: Final = 1_024
"""How many characters an attribute may have."""

_INT_BOUND: Final = 10**1000  # CPython refuses to print more than 4,300 digits
_MAX_VERSION_DIGITS: Final = 9
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")
_SCHEMA: Final = "urn:callboard:"


@lru_cache(maxsize=16)
def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 text in UTC, as in ``2026-07-28T09:30:00.125Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


def written_ms(time: str) -> int | None:
    """Milliseconds since 1970 of a text that :func:`rfc3339` may have written; ``None`` for any other text."""
    if len(time) != 24 or time[19] != "." or time[23] != "Z":
        return None
    second, rest = _written_second(time[:19]), time[20:23]
    return second * 1000 + int(rest) if second is not None and rest.isascii() and rest.isdigit() else None


@lru_cache(maxsize=64)
def _written_second(text: str) -> int | None:
    try:
        return (
            (datetime.fromisoformat(f"{text}Z") - _EPOCH) // timedelta(seconds=1) if _SECOND.fullmatch(text) else None
        )
    except ValueError:  # no such day or hour
        return None


def dataschema(type: str, version: int) -> str:
    """The ``dataschema`` of an event's type and version."""
    return f"{_SCHEMA}{type}:{version}"


@lru_cache(maxsize=512)
def version_in(schema: str, type: str) -> int | None:
    """The version that :func:`dataschema` has written there, if it was for this type."""
    digits = schema.removeprefix(f"{_SCHEMA}{type}:")
    ours = digits != schema and digits.isascii() and digits.isdigit()
    return int(digits) if ours and digits[0] != "0" and len(digits) <= _MAX_VERSION_DIGITS else None


def check_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` if JSON carries it unchanged; otherwise raise ``ValueError`` naming the place, never the value.

    That is: ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and ``None`` themselves (no subclasses), keys
    that are ``str``, no ``NaN`` or infinity, no lone surrogates, integers of at most a thousand digits, at most 64
    levels. Never recurses; data that refers to itself is refused as too deep.
    """
    try:
        level = _containers(data)
        if not level:
            return data
        for _ in range(MAX_DEPTH - 1):
            level = [inner for container in level for inner in _containers(container)]
            if not level:
                return data
    except _NotJson as fault:
        raise ValueError(f"{_where(data, fault.culprit)}: {fault}") from None
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels, or refers to itself: publish a flatter event")


class _NotJson(Exception):
    """Something that JSON cannot carry; where it stands is found out afterwards, because that is slow and rare."""

    def __init__(self, culprit: object, why: str) -> None:
        super().__init__(why)
        self.culprit = culprit


def _containers(container: dict[Any, Any] | list[Any]) -> list[Any]:
    """Check one container without its inner ones, and return those. The hot loop: most leaves are ASCII text."""
    inner: list[Any] = []
    items: Iterable[Any] = container
    if type(container) is dict:
        for key in container:
            if type(key) is not str or not key.isascii():
                _check_key(key, container)
        items = container.values()
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            inner.append(item)
        elif kind is not str or not item.isascii():
            _check_leaf(item)
    return inner


def _check_key(key: object, container: object) -> None:
    if type(key) is not str:
        raise _NotJson(container, f"a key is of type {type(key).__name__}: use str keys")
    if not _is_unicode(key):
        raise _NotJson(container, "a key has a lone surrogate, which is not Unicode text: remove it")


def _check_leaf(leaf: Any) -> None:
    kind = type(leaf)
    if leaf is None or kind is bool:
        return
    if kind is int:
        if not -_INT_BOUND < leaf < _INT_BOUND:
            raise _NotJson(leaf, "the number has over a thousand digits: send it as text")
    elif kind is float:
        if not math.isfinite(leaf):
            raise _NotJson(leaf, "NaN and infinities are not JSON: use None or text")
    elif kind is not str:
        raise _NotJson(leaf, f"{kind.__name__} is not JSON: use str, int, float, bool, None, list or dict")
    elif not _is_unicode(leaf):
        raise _NotJson(leaf, "the text has a lone surrogate, which is not Unicode: remove it")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _where(data: dict[str, Any], culprit: object) -> str:
    """The path from ``data`` to an object inside it."""
    level: list[tuple[str, Any]] = [("data", data)]
    for _ in range(MAX_DEPTH + 1):
        for path, value in level:
            if value is culprit:
                return path
        level = [(step(path, key), value) for path, container in level for key, value in _members(container)]
    return "data"


def _members(value: object) -> Iterable[tuple[object, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def step(path: str, key: object) -> str:
    """``path`` prolonged by a key or an index, printable and bounded whatever the key holds."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = str(key)[:40]
    plain = name.isascii() and name.isidentifier()
    return f"{path}.{name}"[:200] if plain else f"{path}[{name!r}]"[:200]


def _read_topics(given: Any, info: ValidationInfo) -> tuple[str, ...]:
    """From the one text of the wire (CloudEvents attributes are scalars), or from any iterable in Python."""
    if info.mode == "json":
        if not isinstance(given, str):
            raise ValueError("topics are one text, separated by single spaces")
        given = given.split(" ") if given else ()
    try:
        return topic_set(given, reserved=True)
    except InvalidTopic as error:
        raise ValueError(str(error)) from None


def _check_time(time: str) -> str:
    try:
        datetime.fromisoformat(time)
    except ValueError:
        raise ValueError("there is no such day or hour") from None
    return time


def _check_extension(value: object) -> object:
    """CloudEvents attributes are scalars, those of later versions too."""
    if value is not None and type(value) not in (str, bool, int):
        raise ValueError("an attribute is text, a whole number or a boolean")
    try:
        _check_leaf(value)
    except _NotJson as fault:
        raise ValueError(str(fault)) from None
    return value


_SPEC_VERSION: Final = r"^1\.[0-9]+$"
_TEXT: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"  # CloudEvents 1.0, "Type System"; control characters also break SSE lines
_TIME: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$"

PATTERN_FAULTS: Final[dict[str, str]] = {
    _SPEC_VERSION: "only CloudEvents 1.x can be read",
    _TEXT: "control characters are not allowed",
    _TIME: "it must be an RFC 3339 time, as in 2026-07-28T09:30:00.125Z",
}
"""What a mismatch of each attribute's pattern means to a person."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ATTRIBUTE, pattern=_TEXT)]
Time = Annotated[str, StringConstraints(max_length=64, pattern=_TIME), AfterValidator(_check_time)]


class Envelope(BaseModel):
    """One event on its way. Immutable, apart from the inside of ``data``, which its readers share: do not change it.

    Attributes this version does not know are kept and written again. What prints an envelope shows neither its data
    nor anything else an app may have put there.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, hide_input_in_errors=True)

    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_check_extension)]]

    # The order of the fields is the order on the wire.
    specversion: Annotated[str, StringConstraints(max_length=16, pattern=_SPEC_VERSION)] = "1.0"
    id: Text
    type: Text
    source: Text
    time: Time
    datacontenttype: Text = "application/json"
    subject: Text | None = None
    dataschema: Text | None = None
    correlationid: Text | None = None
    causationid: Text | None = None
    traceparent: Text | None = None
    topics: Annotated[tuple[str, ...], BeforeValidator(_read_topics)] = ()
    key: Text | None = None
    data: Annotated[dict[str, Any], AfterValidator(check_json)]

    @property
    def version(self) -> int | None:
        """The version of the event's type; None where ``dataschema`` is absent or not one of ours for this type."""
        return None if self.dataschema is None else version_in(self.dataschema, self.type)

    @property
    def time_ms(self) -> int:
        """``time`` in whole milliseconds since 1970 (UTC)."""
        ms = written_ms(self.time)
        return (datetime.fromisoformat(self.time) - _EPOCH) // timedelta(milliseconds=1) if ms is None else ms

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        # pydantic builds repr, str and what rich prints from this alone.
        yield from (("id", self.id), ("type", self.type), ("topics", " ".join(self.topics)))
