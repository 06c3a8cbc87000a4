"""Everything that can go wrong on the bus, under one root.

Callers catch :class:`BusError` for "anything of the bus", or a subclass for one cause. What a program may want
to act on is an attribute, not a word in the text; the text is one line for a person and says what to do next.
Errors of other libraries are mapped to these at the boundary where they enter and never cross it.

No message here ever carries a URL, a password or an event's payload.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "BusClosed",
    "BusError",
    "BusUnavailable",
    "HookFailed",
    "InvalidEvent",
    "InvalidLog",
    "InvalidPosition",
    "InvalidSettings",
    "InvalidTopic",
    "LogClosed",
    "PayloadTooLarge",
    "Refused",
    "UnsafeServer",
]


class BusError(Exception):
    """The root of all errors of the ``bus`` package."""


class InvalidTopic(BusError):
    """A topic or pattern is outside the grammar of :mod:`bus.topics`; nothing was published."""

    def __init__(self, topic: str, why: str) -> None:
        super().__init__(f"invalid topic {topic[:80]!r}: {why}")
        self.topic = topic
        self.why = why


class InvalidEvent(BusError):
    """An event cannot be published or read: no type, values that are not JSON, fields that do not validate."""


class PayloadTooLarge(InvalidEvent):
    """The encoded event is over the limit; nothing was published."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the encoded event has {size:,} bytes and the limit is {limit:,}: "
            "publish a reference to the data instead, or raise Bus(max_bytes=...)"
        )
        self.size = size
        self.limit = limit


class Refused(BusError):
    """For an app's own ``before_publish`` hooks to raise: this event may not be published, and was not.

    ``why`` is for a person, ``rule`` for a program: whatever short name the app gives to what was broken. Keep payloads
    out of both, as they may be logged.
    """

    def __init__(self, why: str, *, rule: str | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.rule = rule


class HookFailed(BusError):
    """A ``before_publish`` hook broke, so nobody has judged the event; nothing was published. ``hook`` is its name."""

    def __init__(self, hook: str, why: str) -> None:
        super().__init__(f"the before_publish hook {hook} {why}; nothing was published")
        self.hook = hook
        self.why = why


class InvalidPosition(BusError):
    """A resume cursor that is not a position of this bus."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given[:80]!r} is not a position: pass one that a delivery or a receipt carried, "
            "'0' for everything that is kept, a datetime with a time zone, or leave it out for from now on"
        )
        self.given = given


class InvalidLog(BusError):
    """A log's name is malformed, or (where one must exist) names no log."""

    def __init__(self, log: str, why: str) -> None:
        super().__init__(f"log {log[:80]!r}: {why}")
        self.log = log
        self.why = why


class LogClosed(BusError):
    """The log was closed before this was published.

    ``position`` is the last one of the log. Of several events in one call ``id`` is the first that may be missing; those
    before it were published.
    """

    def __init__(self, log: str, position: str, id: str | None = None) -> None:
        super().__init__(f"log {log[:80]!r} is closed and takes no more events: publish to another log")
        self.log = log
        self.position = position
        self.id = id


class InvalidSettings(BusError):
    """A URL, namespace or number in the settings cannot be used. The text never repeats the URL."""


class BusUnavailable(BusError):
    """The server cannot be reached, or stopped answering.

    ``outcome`` says what that means for a publish: ``refused`` (nothing was written) or ``unknown`` (it may have been
    written; publish again with ``id=error.id`` and it counts once). It is ``None`` where nothing was being written.
    """

    def __init__(
        self, why: str, *, outcome: Literal["refused", "unknown"] | None = None, id: str | None = None
    ) -> None:
        super().__init__(why)
        self.outcome = outcome
        self.id = id


class UnsafeServer(BusUnavailable):
    """The server answers but would lose accepted events, so we refuse to start on it."""


class BusClosed(BusError):
    """The bus was closed by its last owner; open it again first."""

    def __init__(self, why: str = "the bus is closed: open it again (async with bus) before using it") -> None:
        super().__init__(why)
