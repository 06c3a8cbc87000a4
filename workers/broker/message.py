"""A job as Dramatiq sees it: a message, with what its settling needs."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from dramatiq import Message, MessageProxy
from dramatiq.errors import DecodeError
from dramatiq.middleware import TimeLimitExceeded

from bus import BusError, Envelope, codec
from bus.clock import Clock
from bus.opening import opened
from bus.store.base import Job, Route, Settlement, Taken, Verdict

__all__ = [
    "EVENT",
    "MESSAGE",
    "POISON",
    "UNDECODABLE",
    "Buried",
    "LaneMessage",
    "Performing",
    "body_of",
    "open_job",
    "undecodable",
]

T = TypeVar("T")

EVENT = b"e"
MESSAGE = b"m"
"""The first byte of a job's body: an event's envelope, or a Dramatiq message."""

WHOLE_ATTEMPTS = 20
"""The last so many attempts are kept with their tracebacks, earlier ones without."""
KEPT_ATTEMPTS = 500
KEPT_TEXT = 8_000
UNJUDGED_RETRY_MS = 1_000
MOST_UNJUDGED = 20
UNDECODABLE = "Undecodable"
POISON = "poison"
"""What is told to be the error of jobs that cannot be read, and of those under which too many workers died."""


class Performing(Protocol):
    """What runs the coroutine of an async job."""

    limit_s: float
    """How long the coroutine may run; for the hooks before it to set."""
    ran_s: float
    """How long it ran; for the hooks after it."""

    def is_alive(self) -> bool:
        """Whether it will come to its end yet, and settle its job."""

    def interrupt(self, reason: BaseException) -> None:
        """Cancel the coroutine, from any thread; if it lets itself be cancelled, the outcome is ``reason``."""


class Buried(NamedTuple):
    """A job that goes to the dead letters: at which attempt, and of what. ``event_id`` is empty where it cannot be read."""

    route: Route
    event_id: str
    attempt: int
    error: str | None


class _EventMessage(Message):  # type: ignore[type-arg] # with one, making an instance costs 20 us more
    """The message of an event. Its argument is the envelope's text, made when somebody asks for it.

    It has come as bytes and was read. Thousands may wait, so what was read is let go of where nobody needs it any more, and
    read again for who asks after all. The bytes stay: a handler may change the data that it was given.
    """

    body: bytes
    read: Envelope | None

    @classmethod
    def of(cls, taken: Taken, options: dict[str, Any]) -> _EventMessage:
        """The one of a job. Raises ``ValueError`` for bytes that are no envelope."""
        message, envelope, route = object.__new__(cls), _envelope_in(taken.body), taken.route
        put = object.__setattr__  # messages are frozen
        put(message, "queue_name", route.queue)
        put(message, "actor_name", route.handler)
        put(message, "options", options)
        put(message, "message_id", envelope.id)
        put(message, "body", taken.body)
        put(message, "read", envelope)
        put(message, "kwargs", {})
        return message

    def __getattr__(self, name: str) -> Any:
        if name == "args":
            return (self.body[len(EVENT) :].decode(),)
        if name == "message_timestamp":
            return (self.read or _envelope_in(self.body)).time_ms
        raise AttributeError(name)

    @property
    def envelope(self) -> Envelope:
        """What it has come in."""
        envelope = self.read
        if envelope is None:
            envelope = _envelope_in(self.body)
            object.__setattr__(self, "read", envelope)
        return envelope


class _Args:
    """A message's arguments, made when asked for. No property, so that a middleware may set others, as on any message."""

    def __get__(self, message: LaneMessage | None, kind: type[LaneMessage]) -> Any:
        if message is None:
            return self
        told = message._message  # noqa: SLF001 - it is a part of it
        return (told.body[len(EVENT) :].decode(),) if isinstance(told, _EventMessage) else told.args


class LaneMessage(MessageProxy):
    """A message that was taken from a lane. Whoever processed it leaves its verdict here; settling writes it.

    ``retry_in_ms`` asks for a retry, ``hand_back`` for another worker, ``fail()`` for the dead letters; otherwise it is
    done, unless it failed and nobody judged that. Its text never shows arguments: Dramatiq logs messages whole when they
    fail, secrets included.
    """

    # What few messages ever change stands here once for all.
    _before: Sequence[dict[str, Any]] = ()
    retry_in_ms: int | None = None
    holds_lane = True
    hand_back = False
    keep_exception = False
    args = _Args()
    withdrawn = False
    """Whether it was handed back before it began: nobody is to do, or to settle it here."""

    def __init__(self, message: Message[Any], taken: Taken, notes: dict[str, Any], clock: Clock) -> None:
        super().__init__(message)
        # Asked for twenty times a job, and the proxy would look for each here first.
        self.queue_name, self.actor_name = message.queue_name, message.actor_name
        self.message_id, self.options, self.kwargs = message.message_id, message.options, message.kwargs
        self._clock = clock
        self.job, self.ticket, self.route = taken.job, taken.ticket, taken.route
        self.attempts: list[dict[str, Any]] = notes.get("attempts", [])
        if "before" in notes:
            self._before = notes["before"]
        self.attempt = len(self.attempts) + 1
        """Which attempt this is, from 1."""
        self.began_at: float | None = None
        """When its handler was called, on the monotonic clock."""
        self.limit_s: float | None = None
        """How long that may run, once that is known."""
        self.performance: Performing | None = None
        """Where it is an async actor's: what runs its coroutine, from before the first hook on."""

    def __str__(self) -> str:
        return f"job {self.job} of {self._message.actor_name} ({self._message.message_id})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    @property
    def is_event(self) -> bool:
        """Whether it is an event's, and not a plain message."""
        return isinstance(self._message, _EventMessage)

    @property
    def envelope(self) -> Envelope | None:
        """The event's; ``None`` for a plain message."""
        message = self._message
        return (message.read or message.envelope) if isinstance(message, _EventMessage) else None

    def take_envelope(self) -> Envelope | None:
        """The same, for its handler: nobody else needs it, as far as is known, and it may be read again."""
        message = self._message
        if not isinstance(message, _EventMessage):
            return None
        envelope = message.read or message.envelope
        object.__setattr__(message, "read", None)
        return envelope

    def called(self, function: Callable[..., T]) -> T:
        """What a function gives that is called with the message's arguments."""
        return function(*self.args, **self.kwargs)

    def buried(self) -> Buried:
        """What is told of its death."""
        error = type(self._exception).__name__ if self._exception is not None else None
        return Buried(self.route, self.message_id, self.attempt, error)

    def stuff_exception(self, exception: BaseException) -> None:
        """Keep what it failed with. Dramatiq's error for a time limit does not say which: it does from now on."""
        if isinstance(exception, TimeLimitExceeded) and not exception.args and self.limit_s is not None:
            exception.args = (f"ran longer than its time limit of {self.limit_s:g} s",)
        super().stuff_exception(exception)

    def clear_exception(self) -> None:
        """Forget the exception, unless it is kept for ``broker.join(fail_fast=True)``, which raises it in tests."""
        if self._exception is not None and not self.keep_exception:
            super().clear_exception()

    def record(self, error: BaseException) -> None:
        """Note a failed attempt: when, what, and where (without the values of local variables)."""
        trace = _trace(error)
        self.attempts.append(
            {
                "at_ms": self._clock.now_ms(),
                "error": type(error).__name__,
                "message": _text(error)[:1000],
                "traceback": trace[-KEPT_TEXT:],
            }
        )

    def settlement(self) -> Settlement:
        """What the store is to be told."""
        if self.hand_back:
            return self.handed_back()
        if self.failed:
            if self._exception is not None and not self.attempts:
                self.record(self._exception)
            return Settlement(self.job, self.ticket, "dead", notes=self._notes())
        if self._exception is not None and self.retry_in_ms is None:
            # It failed, and whoever was to judge that was cut short (a time limit, say): not an ack.
            self.record(self._exception)
            self._message.options["retries"] = self._message.options.get("retries", 0) + 1
            if len(self.attempts) >= MOST_UNJUDGED:
                return Settlement(self.job, self.ticket, "dead", notes=self._notes())
            self.retry_in_ms = UNJUDGED_RETRY_MS
        if self.retry_in_ms is not None:
            verdict: Verdict = "retry" if self.holds_lane else "pass"
            return Settlement(self.job, self.ticket, verdict, self.retry_in_ms, self._notes())
        return Settlement(self.job, self.ticket, "ack")

    def handed_back(self) -> Settlement:
        """What the store is to be told of a job that was not begun."""
        return Settlement(self.job, self.ticket, "back")

    def _notes(self) -> bytes:
        # Options grow while a message is processed (retries, traceback); the attempts tell the rest.
        options = {name: value for name, value in self._message.options.items() if name != "traceback"}
        short = [{**one, "message": one["message"][:200], "traceback": ""} for one in self.attempts[:-WHOLE_ATTEMPTS]]
        notes = {"options": options, "attempts": [*short, *self.attempts[-WHOLE_ATTEMPTS:]][-KEPT_ATTEMPTS:]}
        if self._before:
            notes["before"] = self._before  # attempts of an earlier life, before it was replayed
        try:
            return json.dumps(notes, default=str).encode()
        except Exception:  # noqa: BLE001 - an option of somebody's that is no JSON: the attempts count more
            notes["options"] = {"retries": int(options.get("retries", 0))}
            return json.dumps(notes).encode()


def _text(error: BaseException) -> str:
    """What an error says; its ``__str__`` is the app's code, and may fail itself."""
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001 - whatever it raises, the attempt is recorded
        return f"(its text cannot be had: {type(fault).__name__})"


def _trace(error: BaseException) -> str:
    """Where it was raised; how its class answers to attributes that are looked up is the app's code as well."""
    try:
        return "".join(traceback.format_exception(error, limit=30))
    except Exception:  # noqa: BLE001 - whatever it raises, the attempt is recorded
        return "".join(traceback.format_tb(error.__traceback__, limit=30)) + type(error).__name__


def body_of(message: Message[Any]) -> bytes:
    """A plain message as a job's body."""
    return MESSAGE + message.encode()


def open_job(taken: Taken, clock: Clock) -> LaneMessage:
    """Read a job; ``clock`` dates its attempts. Raises ``ValueError`` for bytes that are none; the text names no content."""
    notes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if taken.notes:
        notes = json.loads(taken.notes)
        options = notes.get("options", {})
        options.pop("throws", None)  # classes: no JSON
    kind = taken.body[:1]
    if kind == EVENT:
        return LaneMessage(_EventMessage.of(taken, options), taken, notes, clock)
    if kind == MESSAGE:
        return LaneMessage(_plain_message(taken, options), taken, notes, clock)
    raise ValueError("the job's first byte names no known kind of work")


def _envelope_in(body: bytes) -> Envelope:
    """Raises ``ValueError`` for bytes that are none."""
    text = body[len(EVENT) :]
    try:
        return opened(text) or codec.decode(text, max_bytes=len(text))  # what was accepted is not refused here
    except BusError as error:
        raise ValueError(str(error)) from None


def _plain_message(taken: Taken, options: dict[str, Any]) -> Message[Any]:
    """A Dramatiq message that is what it should be: others would end the thread that meets them."""
    try:
        message: Message[Any] = Message.decode(taken.body[len(MESSAGE) :])
    except (DecodeError, TypeError):
        raise ValueError("these bytes are not a Dramatiq message") from None
    if (message.queue_name, message.actor_name) != (taken.route.queue, taken.route.handler):
        raise ValueError("this Dramatiq message is for another queue or actor than the one that it was queued for")
    fields = (message.args, list | tuple), (message.kwargs, dict), (message.options, dict), (message.message_id, str)
    if not all(isinstance(value, kind) for value, kind in fields):
        raise ValueError("a field of this Dramatiq message is of a wrong type")
    message.options.pop("throws", None)  # classes: no JSON
    message.options.update(options)
    put = object.__setattr__  # messages are frozen; thousands may wait, and share these texts
    put(message, "queue_name", taken.route.queue)
    put(message, "actor_name", taken.route.handler)
    return message


def undecodable(taken: Taken, why: str, now_ms: int) -> Settlement:
    """The settlement of a job that cannot be read: to the dead letters, out of its neighbours' way."""
    attempt = {"at_ms": now_ms, "error": UNDECODABLE, "message": why, "traceback": ""}
    return Settlement(taken.job, taken.ticket, "dead", notes=json.dumps({"attempts": [attempt]}).encode())


def job_of(message: Message[Any], id: str, priority: int, due: str) -> Job:
    """A plain message as a job."""
    return Job(id, Route(message.queue_name, message.actor_name, priority), "", body_of(message), due)
