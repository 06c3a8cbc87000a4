"""The grammar of topics and patterns, and the matching of one against the other.

::

    topic   = segment *( ":" segment )                at most 16 segments and 255 bytes
    segment = 1*128( A-Z a-z 0-9 _ . ~ @ - )
    pattern = a topic in which any segment may be "*" (exactly one segment)
              and the last may be "**" (one or more segments)

Topics that start with ``$`` are reserved for the bus itself. A wildcard in a pattern's first place does not match them
(the rule of MQTT 5.0, section 4.7.2), so that listening to everything does not mean listening to the bus's own talk.
Whoever wants that names it: ``$worker:**`` is what workers tell of themselves, live, on a log of its own.

Whatever does not fit raises :class:`~bus.errors.InvalidTopic`, whose ``why`` says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

from bus.errors import InvalidTopic

__all__ = ["WORKER", "Matcher", "check_pattern", "check_topic", "own_log", "plural", "topic_set"]

WORKER: Final = "$worker"
"""The first segment of all that workers tell, and the name of the log on which they tell it."""

_MAX_BYTES = 255
_MAX_SEGMENTS = 16
_MAX_SEGMENT = 128
_REMEMBERED = 4096  # valid topics, and small sets of them, whose check is remembered; each topic is at most 255 bytes
_FEW = 4

_SEGMENT = r"[A-Za-z0-9_.~@-]{1,128}"
_TOPIC = re.compile(rf"\$?{_SEGMENT}(?::{_SEGMENT}){{0,{_MAX_SEGMENTS - 1}}}")
_ALLOWED = "a-z A-Z 0-9 _ . ~ @ -"


def check_topic(topic: str, *, reserved: bool = False) -> str:
    """Return ``topic`` if it is a topic one can publish to; otherwise raise ``InvalidTopic``.

    ``reserved=True`` also lets the bus's own ``$...`` topics pass. Cheap for topics that were seen lately; safe from
    any thread.
    """
    if not isinstance(topic, str):
        raise _not_text(topic)
    return _checked_topic(topic, reserved)


def check_pattern(pattern: str, *, reserved: bool = False) -> str:
    """Return ``pattern`` if one can listen to it; otherwise raise ``InvalidTopic``. Every topic is a pattern.

    ``reserved=True`` also lets patterns on the bus's own ``$...`` topics pass. Cheap and thread-safe as
    :func:`check_topic` is.
    """
    if not isinstance(pattern, str):
        raise _not_text(pattern)
    return _checked_pattern(pattern, reserved)


def own_log(patterns: Iterable[str]) -> str | None:
    """The bus's own log that these patterns listen to; ``None`` where they are for an app's.

    Raises ``InvalidTopic`` for a mixture, since a listener has one log.
    """
    given = [pattern for pattern in plural(patterns) if isinstance(pattern, str)]
    others = [pattern for pattern in given if not pattern.startswith(f"{WORKER}:")]
    if len(others) == len(given):
        return None
    if others:
        raise InvalidTopic(others[0], f"'{WORKER}:...' is told on a log of its own: listen to the two apart")
    return WORKER


def topic_set(topics: Iterable[str], *, reserved: bool = False) -> tuple[str, ...]:
    """Check every topic and return them in their first order without repeats.

    An empty set is a valid one: it reaches no listener. A lone ``str`` raises ``InvalidTopic`` instead of being taken
    for a list of one-letter topics.
    """
    given = tuple(plural(topics))
    if len(given) > _FEW:
        return _checked_set(given, reserved)
    try:
        return _remembered_set(given, reserved)
    except TypeError:  # something in it cannot be hashed, so it is no text
        return _checked_set(given, reserved)


def plural(topics: Iterable[Any]) -> Iterator[Any]:
    """Its items, unchecked; a lone ``str``, and what has no items, raise ``InvalidTopic``."""
    if isinstance(topics, str):
        raise _lone_text(topics)
    try:
        return iter(topics)
    except TypeError:
        raise InvalidTopic(_kind(topics), "pass a list of topics") from None


def _checked_set(topics: tuple[Any, ...], reserved: bool) -> tuple[str, ...]:  # noqa: FBT001  # as below
    return tuple(dict.fromkeys([check_topic(topic, reserved=reserved) for topic in topics]))


_remembered_set = lru_cache(maxsize=_REMEMBERED)(_checked_set)
"""For every event its topics are asked for twice, and most are asked for again with the next."""


class Matcher:
    """Immutable: does an event with these topics reach a listener with these patterns?

    Exact topics cost one set lookup. What the wildcards say is remembered for up to 1,024 topics and then forgotten at
    once, so memory is bounded however many topics pass by. Safe from any thread.
    """

    __slots__ = ("_cache", "_exact", "_patterns", "_wild")

    _CACHED: Final = 1024

    def __init__(self, patterns: Iterable[str], *, reserved: bool = False) -> None:
        checked = dict.fromkeys([check_pattern(pattern, reserved=reserved) for pattern in plural(patterns)])
        self._patterns = tuple(checked)
        self._exact = frozenset(pattern for pattern in checked if "*" not in pattern)
        wild = [_expression(pattern) for pattern in checked if "*" in pattern]
        self._wild = re.compile("|".join(wild)) if wild else None
        self._cache: dict[str, bool] = {}

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns in their first order, without repeats."""
        return self._patterns

    def matches(self, topics: Iterable[str]) -> bool:
        """Whether any of ``topics`` matches any of the patterns. The topics are taken to be valid ones."""
        if isinstance(topics, str):
            raise _lone_text(topics)
        exact, cache = self._exact, self._cache
        for topic in topics:
            if topic in exact:
                return True
            known = cache.get(topic)
            if known or (known is None and self._judge(topic)):
                return True
        return False

    def _judge(self, topic: str) -> bool:
        if self._wild is None:
            return False
        verdict = self._wild.fullmatch(topic) is not None
        if len(self._cache) >= self._CACHED:
            self._cache.clear()  # cheaper on average than keeping the order of use
        self._cache[topic] = verdict
        return verdict

    def __repr__(self) -> str:
        return f"Matcher({', '.join(self._patterns)})"


@lru_cache(maxsize=_REMEMBERED)
def _checked_topic(topic: str, reserved: bool) -> str:  # noqa: FBT001  # by position is faster through lru_cache
    topic = str.__str__(topic)  # an enum's or another subclass's plain text
    if not _is_topic(topic, reserved=reserved):
        raise InvalidTopic(topic, _why(topic, reserved=reserved, wildcards=False))
    return topic


@lru_cache(maxsize=_REMEMBERED)
def _checked_pattern(pattern: str, reserved: bool) -> str:  # noqa: FBT001  # as above
    pattern = str.__str__(pattern)
    if not _is_topic(_without_wildcards(pattern), reserved=reserved) or len(pattern) > _MAX_BYTES:
        raise InvalidTopic(pattern, _why(pattern, reserved=reserved, wildcards=True))
    return pattern


def _is_topic(text: str, *, reserved: bool) -> bool:
    # The grammar is ASCII, so characters are bytes.
    return len(text) <= _MAX_BYTES and _TOPIC.fullmatch(text) is not None and (reserved or text[0] != "$")


def _without_wildcards(pattern: str) -> str:
    """Put a plain segment for each wildcard that stands where it may, so that only the wrong ones remain."""
    *inner, last = pattern.split(":")
    inner = ["x" if segment == "*" else segment for segment in inner]
    return ":".join([*inner, "x" if last in ("*", "**") else last])


def _expression(pattern: str) -> str:
    parts = {"*": "[^:]+", "**": "[^:]+(?::[^:]+)*"}
    body = ":".join(parts.get(segment) or re.escape(segment) for segment in pattern.split(":"))
    return rf"(?!\$){body}" if pattern.startswith("*") else body


def _why(text: str, *, reserved: bool, wildcards: bool) -> str:
    """Why ``text``, which does not fit the grammar, does not, and what to do about it."""
    kind = "pattern" if wildcards else "topic"
    if not text:
        return f"a {kind} has at least one segment: pass a name, as in 'agent:a1'"
    if len(text) > _MAX_BYTES:
        return f"it has {len(text):,} characters and the limit is {_MAX_BYTES} bytes: use shorter segments"
    if text.startswith("$") and not reserved:
        instead = f", or listen to '{WORKER}:**'" if wildcards else ""
        return f"a first '$' marks the bus's own topics: start your {kind} with another character{instead}"
    if not wildcards and "*" in text:
        return "that is a pattern, for listening: publish to topics without '*'"
    segments = (text.removeprefix("$") if reserved else text).split(":")
    if len(segments) > _MAX_SEGMENTS:
        return f"it has {len(segments)} segments and the limit is {_MAX_SEGMENTS}: use fewer ':'"
    return next(why for segment in segments if (why := _why_segment(segment)))


def _why_segment(segment: str) -> str | None:
    if not segment:
        return "a segment is empty: leave no ':' at either end and no two in a row"
    if segment == "**":
        return "'**' may stand only at the end: use '*' for a single segment"
    if "*" in segment and segment != "*":
        return "a '*' stands for a whole segment: write 'agent:*', not 'agent:a*'"
    if wrong := re.sub(r"[A-Za-z0-9_.~@*-]", "", segment):
        return f"{wrong[0]!r} is not allowed there: use only {_ALLOWED}, with ':' between segments"
    if len(segment) > _MAX_SEGMENT:
        return f"a segment has {len(segment)} characters and the limit is {_MAX_SEGMENT}: use a shorter one"
    return None


def _lone_text(text: str) -> InvalidTopic:
    return InvalidTopic(text, "pass a list of topics, not a single str: put it in brackets")


def _not_text(given: object) -> InvalidTopic:
    return InvalidTopic(_kind(given), "a topic is a str: pass its name")


def _kind(given: object) -> str:
    return f"<{type(given).__name__}>"
