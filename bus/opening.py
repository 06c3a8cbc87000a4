"""Opening an envelope: from the wire's bytes, quickly, and into little memory.

Thousands are opened a second, and thousands are held at once: by handlers that wait, by listeners' queues. What our own
publishers write is plain to see as right, and a model need not judge it. And a model that pydantic makes holds a dict and
a set of its own, 1.2 KB beside what is in it; here the attributes stand in the table of names that all envelopes share,
as those of plain Python objects do. To whoever uses it, it is the same :class:`~bus.envelope.Envelope`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from types import NoneType
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json

from bus.envelope import MAX_ATTRIBUTE, Envelope, check_json, written_ms
from bus.errors import InvalidTopic
from bus.topics import topic_set

__all__ = ["compact", "opened"]

_REQUIRED: Final = frozenset(name for name, field in Envelope.model_fields.items() if field.is_required())
_ABSENT: Final = {name: field.get_default() for name, field in Envelope.model_fields.items()}
_NO_TEXTS: Final = {"specversion", "time", "topics", "data"}
_SURE: Final = frozenset({str, int, bool, NoneType})
"""Values that JSON's reader gives as they may be; but in a text that is not short a number may have too many digits."""
_SHORT: Final = 1_000
_FEW_TOPICS: Final = 512  # characters: what is longer is not remembered

# What pydantic sets beside the attributes; an envelope is frozen, and has no other way.
_set_present = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__


def opened(body: bytes) -> Envelope | None:
    """The envelope that these bytes are, if a look shows that they are one; ``None`` where the model has to judge."""
    try:
        found = from_json(body)
        shape = _shape(tuple(found)) if type(found) is dict else None
        if shape is None or not _is_plain(shape.texts(found), found):
            return None
        topics = found.get("topics", "")
        found["topics"] = _topics(topics) if len(topics) <= _FEW_TOPICS else _read_topics(topics)
        data = found["data"]
        if len(body) > _SHORT or not _SURE.issuperset(map(type, data.values())):
            check_json(data)
    except (ValueError, TypeError, AttributeError, InvalidTopic):
        return None
    return _made(found, shape.present, {})


def compact(envelope: Envelope) -> Envelope:
    """The same in less memory."""
    present = _shared(frozenset(envelope.__pydantic_fields_set__))
    return _made(envelope.__dict__, present, envelope.__pydantic_extra__ or {})


def _made(found: dict[str, Any], present: set[str], extra: dict[str, Any]) -> Envelope:
    envelope = object.__new__(Envelope)
    attributes = envelope.__dict__
    for name, value in {**_ABSENT, **found}.items():  # not update(), which would give it a table of its own
        attributes[name] = value
    _set_present(envelope, present)
    _set_extra(envelope, extra)
    _set_private(envelope, None)
    return envelope


_made(
    _ABSENT, set(), {}
)  # the first ones give the table its names; CPython closes it after some thirty that pydantic makes


@lru_cache(maxsize=64)
def _shared(present: frozenset[str]) -> set[str]:
    """One set of names for all envelopes that have these: pydantic copies it before it changes it."""
    return set(present)


class _Shape(NamedTuple):
    """Which attributes there are, and which of them are texts like any other."""

    present: set[str]
    texts: Callable[[dict[str, Any]], tuple[Any, ...]]


@lru_cache(maxsize=64)
def _shape(names: tuple[str, ...]) -> _Shape | None:
    """``None`` where one is missing, or is of a later version."""
    if not _REQUIRED.issubset(names) or not _ABSENT.keys() >= {*names}:
        return None
    return _Shape(_shared(frozenset(names)), itemgetter(*(name for name in names if name not in _NO_TEXTS)))


def _is_plain(texts: tuple[str, ...], found: dict[str, Any]) -> bool:
    """Whether all but the topics and the inside of the data is right. Raises ``TypeError`` where a text is none."""
    together = "".join(texts)
    return (
        together.isprintable()
        and len(together) <= MAX_ATTRIBUTE
        and all(texts)
        and found.get("specversion", "1.0") == "1.0"
        and type(found["data"]) is dict
        and written_ms(found["time"]) is not None
    )


def _read_topics(text: str) -> tuple[str, ...]:
    return topic_set(text.split(" ") if text else (), reserved=True)


_topics = lru_cache(maxsize=1_024)(_read_topics)
