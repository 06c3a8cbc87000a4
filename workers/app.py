"""The app: the one room that builds things. It owns a broker, handlers and resources, and runs nothing by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import dramatiq

from bus import Bus, BusError, Envelope, Event, codec, events
from bus.bindings import Binding
from bus.envelope import dataschema
from workers.broker import LaneBroker, make_broker
from workers.broker.options import check_names
from workers.broker.staff import HandlerActor
from workers.context import Context
from workers.errors import InvalidHandler
from workers.kit import Kit
from workers.middleware import CURRENT, NotForUs, Unreadable, stack
from workers.registry import Handler, Priority, make_handler
from workers.resources import Lifespan
from workers.runtime import Runtime
from workers.steps import StepLedger
from workers.teller import Teller

__all__ = ["App"]

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L", bound=Lifespan)


class App:
    """Handlers for the events of a bus, and the Dramatiq broker that brings them their work.

    Without a ``bus`` it makes one from the environment (``BUS_URL``, ``REDIS_URL``, else memory). ``broker`` is a
    ``dramatiq.Broker`` for plain actors as well; with a bus in memory it is a ``StubBroker``. ``concurrency`` bounds how
    many async handlers and actors run at once in a process. They run on its event loop and hold no thread; one that
    keeps the loop for ``blocked_s`` seconds without an ``await`` is named in the log. Its workers tell what happens in them
    to whoever listens to ``$worker:**`` (:mod:`workers.notices`), unless ``tell`` is false.
    """

    def __init__(
        self, bus: Bus | None = None, *, concurrency: int = 1000, blocked_s: float = 0.25, tell: bool = True
    ) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidHandler("concurrency= is a whole number from 1 up")
        self.bus = bus if bus is not None else Bus()
        self.concurrency = concurrency
        self.handlers: dict[str, Handler] = {}
        self._lifespans: list[Lifespan] = []
        if blocked_s <= 0:
            raise InvalidHandler("blocked_s= is a number of seconds above 0")
        self._runtime = Runtime(self.bus, self._lifespans, Teller(self.bus, mute=not tell))
        self._runtime.loop.watch.blocked_s = blocked_s
        self._is_stopping = lambda: (
            self._runtime.stopping
        )  # each of these once, and not for each of thousands of contexts
        self._off_loop = self._runtime.stage.backstage.run
        self.broker: LaneBroker = make_broker(self.bus, stack(self._runtime, self._bindings), concurrency=concurrency)

    def __repr__(self) -> str:
        return f"<App on {self.bus!r} with {len(self.handlers)} handlers>"

    def on(
        self,
        *types: type[Event] | str,
        topics: str | Sequence[str] = "**",
        key: str | None = None,
        queue: str = "default",
        priority: Priority = "normal",
        order: Literal["strict", "loose"] = "strict",
        name: str | None = None,
        max_concurrent: int | None = None,
        **options: Any,
    ) -> Callable[[F], F]:
        """Declare a handler of these event types: ``@app.on(PostCreated, topics="agent:**", key="agent_id")``.

        It is called as ``handler(event, ctx)`` (or just ``handler(event)``), on a thread, or on the event loop if it is
        ``async``. ``topics`` are patterns; ``key`` names the field whose value is the lane: events with the same value
        are handled one at a time, first in first out; while one waits for its retry, its lane waits (``order="strict"``) or
        lets later ones pass (``"loose"``). ``name`` defaults to ``module.function`` and must stay the same
        across deploys. ``max_concurrent`` bounds how many of its jobs each worker process has in hand at once; the others
        are left to other processes, and hold up nobody. Other options are Dramatiq's (``max_retries``, ``min_backoff``, ``time_limit``, ``throws`` ...).

        The function is returned as it is, so tests may call it. Raises :class:`~workers.errors.InvalidHandler`.
        """
        if not types or inspect.isroutine(types[0]):  # the latter: @app.on, without parentheses
            raise InvalidHandler("name the events a handler wants, as in @app.on(PostCreated)")

        def declare(function: F) -> F:
            if order not in ("strict", "loose"):
                raise InvalidHandler("order= is 'strict' or 'loose'")
            options["order"] = order
            if max_concurrent is not None:
                options["max_concurrent"] = max_concurrent
            handler = make_handler(
                function, types, name=name, topics=topics, key=key, queue=queue, priority=priority, options=options
            )
            self._add(handler)
            return function

        return declare

    def lifespan(self, function: L) -> L:
        """Declare resources, as an async generator function with one ``yield``.

        They are opened before the first event, in order of declaration, and closed after the last, in reverse. One that
        raises on the way in fails the boot.
        """
        self._lifespans.append(function)
        return function

    @property
    def runtime(self) -> Runtime:
        """What is open while a worker runs; for command lines."""
        return self._runtime

    def bind(self) -> None:
        """Write the handlers' bindings without starting a worker, as a step of a deploy. Blocks; safe twice.

        Publishers queue work for these handlers from then on. A worker does it by itself when it boots.
        """
        self.bus.bind(self._bindings())

    @cached_property
    def testing(self) -> Kit:
        """The app's test kit: :class:`workers.kit.Kit` says what it can do. Made when a test asks for it."""
        from workers.testing import AppKit  # noqa: PLC0415 - what works never imports what tests it

        return AppKit(self.bus, self.broker, self.handlers, self._lifespans, self._runtime, self.bind)

    def _bindings(self) -> list[Binding]:
        return [handler.binding for handler in self.handlers.values()]

    def _add(self, handler: Handler) -> None:
        check_names(handler.name, handler.options, self.broker.actor_options)
        try:
            dramatiq.actor(
                actor_name=handler.name,
                queue_name=handler.binding.queue,
                priority=handler.binding.priority - 1,
                broker=self.broker,
                actor_class=HandlerActor,
                **handler.options,
            )(self._runner(handler))
        except ValueError as error:
            raise InvalidHandler(f"handler {handler.name}: {error}") from None
        if handler.is_async and not handler.wants_context:
            self.broker.staff.begin_with(handler.name, self._caller(handler))
        self.handlers[handler.name] = handler

    def _runner(self, handler: Handler) -> Callable[[str], Any]:
        """What Dramatiq calls: reads the event and calls the handler. Its argument is the envelope's text."""
        function, run = handler.function, self._caller(handler)

        def run_with_context(text: str) -> Any:
            event, ctx = self._event_and_context(handler, text)
            try:
                return function(event, ctx)
            finally:
                ctx.settled_sync()

        async def run_async(text: str) -> Any:
            return await run(text)

        async def run_async_with_context(text: str) -> Any:
            event, ctx = self._event_and_context(handler, text)
            del text  # thousands of these wait here
            try:
                return await function(event, ctx)
            finally:
                await ctx.settled()

        runner: Callable[[str], Any]
        if handler.is_async:
            runner = run_async_with_context if handler.wants_context else run_async
        else:
            runner = run_with_context if handler.wants_context else run
        runner.__module__, runner.__name__ = handler.function.__module__, handler.function.__name__
        return runner

    def _caller(self, handler: Handler) -> Callable[[str], Any]:
        """Calls a handler that wants no context; what it gives is a coroutine where the handler is async."""
        function = handler.function

        def run(text: str) -> Any:
            job = CURRENT.get()
            envelope = job.take_envelope() if job is not None else None
            return function(_read(envelope or _envelope_in(text)))

        return run

    def _event_and_context(self, handler: Handler, text: str) -> tuple[Event | dict[str, Any], Context]:
        """What a handler is called with that wants the context of its job."""
        job = CURRENT.get()
        envelope = (job.envelope if job is not None else None) or _envelope_in(text)
        attempt = job.attempt if job is not None else 1
        steps = StepLedger(self.bus, job.job if job is not None else None)
        ctx = Context(self.bus, envelope, handler.name, attempt, self._is_stopping, steps, self._off_loop)
        return _read(envelope), ctx


def _envelope_in(text: str) -> Envelope:
    """That of a handler that is called by hand."""
    body = text.encode()
    return codec.decode(body, max_bytes=len(body))


def _read(envelope: Envelope) -> Event | dict[str, Any]:
    model = codec.model_of(envelope)
    try:
        return codec.read(_readable(envelope)) if model is None else codec.read_as(model, envelope.data)
    except BusError as error:
        raise Unreadable(str(error)) from None


def _readable(envelope: Envelope) -> Envelope:
    """One of another version than this process knows, or of none, as one that it can read, where there is any."""
    known, version = events.versions(envelope.type), envelope.version
    if known and version is not None and version > known[-1]:
        raise NotForUs(f"{envelope.type} version {version}; this process knows up to {known[-1]}")
    if not known:
        return envelope
    # An older version, or a publisher that knew the type by name alone (the command line, another language): a handler
    # still gets a model, the next newer one, if that can read it.
    readable = next(newer for newer in known if newer > (version or known[-1] - 1))
    return envelope.model_copy(update={"dataschema": dataschema(envelope.type, readable)})
