"""The test kit's face: what :attr:`workers.App.testing` promises.

A leaf of types, so that an app can name its kit and no program that works imports one: :mod:`workers.testing` makes it
when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, overload

from bus import Delivery, Envelope, Event, Gap, Receipt

__all__ = ["Fault", "Happened", "Kit", "Outcome", "Ran", "Recorder"]

E = TypeVar("E", bound=Event)

Outcome = Literal["done", "retry", "dead", "back", "skipped"]
"""``retry``: it failed, and will be tried again; ``dead``: it failed for good; ``back``: it was handed back, or taken from
under it; ``skipped``: a middleware kept it from running."""

Happened = Event | Mapping[str, Any] | Receipt | str
"""An event as a test knows it: itself, its data, the receipt of its publishing, or its id."""


class Ran(NamedTuple):
    """One attempt of a handler or an actor. ``event`` and ``envelope`` are ``None`` for a plain actor's message."""

    handler: str
    event: Event | dict[str, Any] | None
    envelope: Envelope | None
    attempt: int
    outcome: Outcome
    error: BaseException | None = None
    retry_in_ms: int | None = None


class Fault(Protocol):
    """Something that goes wrong once."""

    @property
    def struck(self) -> bool:
        """Whether it has happened. One that never does fails the test that used the fixture ``callboard``."""


class Recorder(Protocol):
    """What was heard live, in order. Belongs to the test's event loop."""

    @property
    def items(self) -> Sequence[Delivery | Gap]:
        """All of it."""

    @property
    def events(self) -> list[Event | dict[str, Any]]:
        """The events of it."""

    async def until(self, condition: Callable[[list[Any]], object], what: str = "", *, timeout_s: float = 5) -> None:
        """Return as soon as ``condition(events)`` is true; it is asked now, and after each item.

        Raises ``AssertionError`` after so many real seconds, with ``what`` was waited for and what was heard instead.
        """

    @overload
    async def first(self, type: type[E], *, timeout_s: float = 5) -> E: ...
    @overload
    async def first(self, type: str, *, timeout_s: float = 5) -> Any: ...
    async def first(self, type: type[Event] | str, *, timeout_s: float = 5) -> Any:
        """The first event of a type, heard already or waited for. Raises as :meth:`until`."""


class Kit(Protocol):
    """What a test can do to an app and ask of it. Everything that reaches the store blocks for a round trip."""

    @property
    def ran(self) -> Sequence[Ran]:
        """Every attempt since the kit was made, by :meth:`drain` or by a worker inside the test, in order of their ends."""

    async def drain(self, *, raise_errors: bool = True, most: int = 10_000) -> list[Ran]:
        """Run everything that is due, and what comes of it, until nothing is. Returns the attempts, in order.

        One job after the other, through the middleware and the handler as in a worker: async handlers on this loop, sync
        ones on a thread. What is not due stays: delays, and retries of what failed here. Lifespans are open meanwhile.

        Once all has run, the first error that a handler raised is raised here, whether it will be tried again or not; but
        for ``throws=`` of the handler and Dramatiq's ``Retry``. ``raise_errors=False`` leaves them in the answer, for tests
        about failures. Raises :class:`~workers.errors.CannotDrain` where a worker runs beside it, and after ``most``
        attempts: then a handler keeps itself busy.
        """

    def drain_sync(self, *, raise_errors: bool = True, most: int = 10_000) -> list[Ran]:
        """As :meth:`drain`, for tests without an event loop: sync handlers run on the calling thread, so debuggers work."""

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Keep the app's lifespans open for the block, so that each ``drain`` on this loop need not open its own."""

    def travel(
        self,
        by: timedelta | None = None,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        milliseconds: float = 0,
    ) -> None:
        """Move the bus's time forward: delays, retries, leases, ages in logs, dedupe windows, dead letters' retention.

        It runs nothing itself; a worker inside the test is woken. Raises :class:`~workers.errors.MemoryOnly` on a server,
        whose clock is its own.
        """

    @overload
    def published(self, type: type[E], *, log: str | None = None) -> list[E]: ...
    @overload
    def published(self, type: str | None = None, *, log: str | None = None) -> list[Any]: ...
    def published(self, type: type[Event] | str | None = None, *, log: str | None = None) -> list[Any]:
        """The events of a type (or all) that a log was given, in its order: by the test, by handlers, by anybody.

        Also those too old to be kept, if the kit has looked (each of its methods does) while they were.
        """

    def envelopes(self, type: type[Event] | str | None = None, *, log: str | None = None) -> list[Envelope]:
        """As :meth:`published`, with topics, key, cause and all."""

    def assert_handled(
        self, handler: Callable[..., Any] | str, event: Happened | None = None, *, times: int | None = None
    ) -> Ran:
        """That a handler has done an event (or any), at least once or exactly so many times (1 or more). Returns the last attempt.

        The ``AssertionError`` tells what the handler did instead, and what waits.
        """

    def recorder(self, *patterns: str, log: str | None = None) -> AbstractAsyncContextManager[Recorder]:
        """Listen as an app would, and keep what is heard: ``async with kit.recorder("agent:**") as heard``."""

    def drop_connection(self) -> int:
        """Break this process's connections to the server now; in memory, its live subscriptions. Returns how many."""

    def fail_next_take(self) -> Fault:
        """Lose the answer to the next take that brings work: the work is in nobody's hands, and must come back."""

    def duplicate_next_delivery(self) -> Fault:
        """Deliver the next job that is done once more, as if its worker had died just before it could say so."""
