"""The kit of one app: what :class:`workers.kit.Kit` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

from dramatiq.errors import Retry

from bus import Bus, Envelope, Event
from bus.testing.faults import Mischief, drop_connections
from bus.testing.moving import moved
from workers.broker import LaneBroker
from workers.errors import CannotDrain, MemoryOnly
from workers.kit import Fault, Happened, Kit, Ran, Recorder
from workers.registry import Handler
from workers.resources import Lifespan, Resources
from workers.runtime import Runtime
from workers.testing.hand import Hand
from workers.testing.matching import dose_of, is_of, means, name_of, told
from workers.testing.notebook import Notebook
from workers.testing.recording import record
from workers.testing.witness import Witness

__all__ = ["AppKit", "world"]


class AppKit:
    """Made by :attr:`workers.App.testing`. Belongs to one test at a time."""

    def __init__(
        self,
        bus: Bus,
        broker: LaneBroker,
        handlers: Mapping[str, Handler],
        lifespans: Sequence[Lifespan],
        runtime: Runtime,
        bind: Callable[[], None],
    ) -> None:
        self.bus = bus
        self._broker = broker
        self._handlers = handlers
        self._lifespans = lifespans
        self._runtime = runtime
        self.bind = bind
        self.ran: list[Ran] = []
        self._open = False
        broker.add_middleware(Witness(self._note), before=type(broker.middleware[0]))
        self.begin()

    def __repr__(self) -> str:
        return f"<AppKit of {self.bus!r}, {len(self.ran)} attempts seen>"

    def _note(self, ran: Ran) -> None:
        self.ran.append(ran)

    def begin(self) -> None:
        """Forget what was, for another test."""
        self.ran = []
        self._notebook: Notebook | None = None
        self._mischief: Mischief | None = None
        self._broker.dead_letters_by_queue.clear()

    def end(self) -> None:
        """Let the app be. Raises ``AssertionError`` for a fault that never struck. Safe twice."""
        mischief, self._mischief = self._mischief, None
        pending = mischief.remove() if mischief is not None else []
        if pending:
            raise AssertionError(
                f"the test proved nothing of it: {', '.join(fault.what for fault in pending)} never came"
            )

    # -- running -------------------------------------------------------------------------------------------------------

    async def drain(self, *, raise_errors: bool = True, most: int = 10_000) -> list[Ran]:
        loop, first = asyncio.get_running_loop(), len(self.ran)
        with self._hand() as hand:
            async with self.lifespan():
                for message in self._due(hand, first + most):
                    performance = hand.performance(message, loop)
                    if performance is None:
                        await asyncio.to_thread(hand.run, message)
                        continue
                    if await asyncio.to_thread(performance.before):
                        await hand.play(performance)
                    await asyncio.to_thread(performance.after)
        return self._answer(first, raise_errors=raise_errors)

    def drain_sync(self, *, raise_errors: bool = True, most: int = 10_000) -> list[Ran]:
        _check_no_loop()
        first = len(self.ran)
        with self._hand() as hand, asyncio.Runner() as runner:
            lifespan = self.lifespan()
            runner.run(_enter(lifespan))
            try:
                for message in self._due(hand, first + most):
                    performance = hand.performance(message, runner.get_loop())
                    if performance is None:
                        hand.run(message)
                        continue
                    if performance.before():
                        runner.run(hand.play(performance))
                    performance.after()
            finally:
                runner.run(_leave(lifespan))
        return self._answer(first, raise_errors=raise_errors)

    @contextmanager
    def _hand(self) -> Iterator[Hand]:
        self.bind()
        self._runtime.stopping = False  # a worker may have stopped before
        try:
            with Hand.at(self._broker) as hand:
                yield hand
        finally:
            self.bus.rest()

    def _due(self, hand: Hand, most: int) -> Iterator[Any]:
        """Jobs, until nothing is due. What they publish is noted while it is fresh."""
        while (message := hand.take()) is not None:
            if len(self.ran) >= most:
                raise CannotDrain(
                    f"after {most} attempts there is still work due, now for {message.actor_name}: "
                    "does a handler publish what it handles? (drain(most=...) allows more)"
                )
            yield message
            if self.ran and isinstance(self.ran[-1].error, KeyboardInterrupt):
                raise self.ran[-1].error
        with self._looking() as notes:
            notes.look()

    def _answer(self, first: int, *, raise_errors: bool) -> list[Ran]:
        ran = list(self.ran[first:])
        errors = [each.error for each in ran if each.error is not None and not self._expected(each)]
        if errors and raise_errors:
            if len(errors) > 1:
                errors[0].add_note(
                    f"and {len(errors) - 1} more attempt(s) failed; drain(raise_errors=False) returns all"
                )
            raise errors[0]
        return ran

    def _expected(self, ran: Ran) -> bool:
        actor = self._broker.actors.get(ran.handler)
        throws = (actor and actor.options.get("throws")) or ()
        return isinstance(ran.error, (Retry, *throws))

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        if self._open:
            yield
            return
        resources = Resources(self.bus, self._lifespans)
        await resources.open()
        self._open = True
        try:
            yield
        finally:
            self._open = False
            await resources.close()
            if resources.lost is not None:
                raise resources.lost

    # -- time ----------------------------------------------------------------------------------------------------------

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
        given = timedelta(
            weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds
        )
        far = given + (by or timedelta())
        if self.bus.store.mode != "memory":
            raise MemoryOnly
        if far < timedelta():
            raise ValueError("time moves forward alone: travel() takes no negative length")
        with self._looking() as notes:
            notes.look()  # before it is too old
        self.bus.clock.travel(far // timedelta(milliseconds=1))
        self.bus.store.poke("$due")

    # -- looking -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _looking(self) -> Iterator[Notebook]:
        """The notebook, also where the test has closed its bus by now."""
        closed = self.bus.status().state == "closed"
        if closed:
            self.bus.open_sync()
        else:
            self.bus.usable()
        if self._notebook is None:
            self._notebook = Notebook(self.bus.store)
        try:
            yield self._notebook
        finally:
            if closed:
                self.bus.close_sync()

    def published(self, type: type[Event] | str | None = None, *, log: str | None = None) -> list[Any]:
        with self._looking() as notes:
            return [delivery.event for delivery in notes.of(log) if is_of(type, delivery)]

    def envelopes(self, type: type[Event] | str | None = None, *, log: str | None = None) -> list[Envelope]:
        with self._looking() as notes:
            return [delivery.envelope for delivery in notes.of(log) if is_of(type, delivery)]

    def assert_handled(
        self, handler: Callable[..., Any] | str, event: Happened | None = None, *, times: int | None = None
    ) -> Ran:
        if times is not None and times < 1:
            raise ValueError(f"times is 1 or more, not {times}: what has not run is not in callboard.ran")
        name = name_of(handler, self._functions())
        attempts = [ran for ran in self.ran if ran.handler == name]
        done = [ran for ran in attempts if ran.outcome == "done" and means(event, ran)]
        if done and times in (None, len(done)):
            return done[-1]
        asked = f"{name} has not done {'anything' if event is None else repr(event)}{dose_of(times)}"
        if done:
            asked += f" but {len(done)} time(s)"
        with self._looking():
            raise AssertionError("\n".join([asked, *told(name, attempts, self.bus.store.census())]))

    def _functions(self) -> dict[str, Callable[..., Any]]:
        actors = {name: actor.fn for name, actor in self._broker.actors.items()}
        return actors | {name: handler.function for name, handler in self._handlers.items()}

    def recorder(self, *patterns: str, log: str | None = None) -> AbstractAsyncContextManager[Recorder]:
        return record(self.bus, patterns or ("**",), log)

    # -- breaking ------------------------------------------------------------------------------------------------------

    def drop_connection(self) -> int:
        return drop_connections(self.bus.store)

    def fail_next_take(self) -> Fault:
        return self._faults.fail_next_take()

    def duplicate_next_delivery(self) -> Fault:
        return self._faults.duplicate_next_delivery()

    @property
    def _faults(self) -> Mischief:
        if self._mischief is None or self._mischief.store is not self.bus.store:
            self._mischief = Mischief(self.bus.store)
        return self._mischief


@contextmanager
def world(kit: Kit, url: str, namespace: str) -> Iterator[Kit]:
    """An empty world for an app, at a URL, in which its handlers are bound; what it had before comes back at the end.

    Raises ``AssertionError`` at the end for a fault that never struck, and what :func:`bus.testing.moving.moved` raises.
    """
    if not isinstance(kit, AppKit):
        raise TypeError("world() is for app.testing")
    with moved(kit.bus, url, namespace):
        kit.begin()
        kit.bind()
        try:
            yield kit
            kit.end()
        finally:
            kit.begin()


async def _enter(lifespan: AbstractAsyncContextManager[None]) -> None:
    await lifespan.__aenter__()


async def _leave(lifespan: AbstractAsyncContextManager[None]) -> None:
    await lifespan.__aexit__(None, None, None)


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise CannotDrain("drain_sync() would block this event loop: await app.testing.drain()")
