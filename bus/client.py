"""The bus: what an app holds in its hand. Builds the parts, counts who opened it, and forwards to them.

What belongs to an event loop (async connections, hubs) lives in a *side*, one for each loop that uses the bus, and is
closed on that loop by its last user. Everything else is blocking and shared by all threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, cast
from urllib.parse import urlsplit

from bus.bindings import Binding
from bus.clock import Clock
from bus.delivery import Delivery, Gap
from bus.errors import (
    BusClosed,
    BusUnavailable,
    InvalidEvent,
    InvalidPosition,
    InvalidSettings,
    UnsafeServer,
)
from bus.events import Event
from bus.listener import After, Joined, Listener, start_of
from bus.logs import Log
from bus.mailbox import Policy, make_mailbox
from bus.position import Position
from bus.publication import Hook
from bus.publisher import Answer, Delay, Letter, Pause, Publication, Publisher, Receipt
from bus.reader import Reader
from bus.settings import Limits, check_log, settle_namespace, settle_url
from bus.sides import Side, Sides
from bus.store.base import Store, Whisper
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.threads import ListeningThread, SyncListener
from bus.topics import Matcher
from bus.whispers import ThreadWhispers

__all__ = ["Bus", "Status"]

log = logging.getLogger("callboard.bus")

_shared: dict[tuple[str, str], MemoryStore] = {}
"""Named memory stores of this process: ``memory://name`` means the same one everywhere in it."""


class Status(NamedTuple):
    """How a bus is doing, seen from the calling loop.

    ``mode``: ``memory``, ``redis`` or ``fallback`` (memory, because the server was away). ``connected``: whether the
    hubs of this loop are live (with none: whether the bus is open). ``position``: of the default log's hub. ``lag``: how
    many events the slowest listener of this loop is behind its hub. ``state``: of the hub that is worst off (``live``,
    ``repairing`` from the log, ``connecting`` for the first time, ``degraded`` while its link is lost), and ``since`` when.
    """

    mode: str
    connected: bool
    position: Position | None
    listeners: int
    lag: int
    state: str = "live"
    since: datetime | None = None


class Bus:
    """Publish events, listen to them, and hand them to workers: in memory, or on Redis across machines.

    ``url``: ``memory://`` (private to this object), ``memory://name`` (shared in the process), or ``redis://``,
    ``rediss://``, ``unix://``. Without one, ``BUS_URL``, then ``REDIS_URL``, then memory. ``namespace`` is the app's own
    world on that server (else ``BUS_NAMESPACE``, else ``callboard``). With ``fallback="memory"`` a server that
    is away when the bus is opened is replaced by memory, with a warning; nothing is handed over later. The numbers are explained in :class:`bus.settings.Limits`.

    One object serves several event loops and threads. ``async with bus`` (or ``open`` and ``close``) frees what a loop
    used; a bus that was never opened opens what it needs by itself, and is closed with :meth:`close_sync`.

    Raises :class:`~bus.errors.InvalidSettings` for what cannot be used; connects to nothing yet.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        fallback: Literal["memory"] | None = None,
        source: str | None = None,
        max_bytes: int = Limits().max_bytes,
        cap: int = Limits().cap,
        ttl_s: float = Limits().ttl_s,
        window_s: float = Limits().window_s,
        deadline_s: float = Limits().deadline_s,
        lease_s: float = Limits().lease_s,
        clock: Clock | None = None,
    ) -> None:
        self.namespace = settle_namespace(namespace)
        self.limits = Limits(max_bytes, cap, ttl_s, window_s, deadline_s, lease_s).checked()
        self.clock = clock or Clock()
        if fallback not in (None, "memory"):
            raise InvalidSettings("fallback= is 'memory' or None")
        self._fallback = fallback
        self._fell_back = False
        self._store = self._make_store(settle_url(url))
        self._publisher = Publisher(source or f"/{self.namespace}", self.limits, self.clock)
        self._lock = threading.RLock()
        self._sides = Sides()
        self._whispers = ThreadWhispers(lambda: self._store)
        self._listening = ListeningThread()
        self._thread_owners = 0
        self._openings = 0
        self._counting = threading.Lock()
        self._reached = False
        self._failure: tuple[float, BusUnavailable] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._reached else "not opened"
        return f"<Bus {self.namespace} in {self.mode} {state}>"

    def _make_store(self, url: str) -> Store:
        lease_ms = int(self.limits.lease_s * 1000)
        if not url.startswith("memory://"):
            return RedisStore(url, self.namespace, lease_ms=lease_ms)
        name = urlsplit(url).netloc
        if not name:
            return MemoryStore(self.clock, lease_ms=lease_ms)
        return _shared.setdefault((name, self.namespace), MemoryStore(self.clock, lease_ms=lease_ms))

    @property
    def mode(self) -> str:
        """``memory``, ``redis``, or ``fallback`` for memory in place of a server that was away."""
        return "fallback" if self._fell_back else self._store.mode

    @property
    def store(self) -> Store:
        """The store below, for the workers' side and for tools. Call :meth:`open_sync` first."""
        return self._store

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Reach the server, and make this loop an owner. Counted: as many ``close`` as ``open``.

        Raises :class:`~bus.errors.BusUnavailable` where the server is away or unfit (unless there is a fallback).
        """
        with self._opening():
            if self._store.mode == "memory":
                self._reach()
            else:
                await asyncio.to_thread(self._reach)
            self._sides.take(self._store.on_loop).owners += 1
        return self

    async def close(self) -> None:
        """Undo one ``open`` of this loop. The loop's last close ends its listeners and closes its connections.

        After the last close of all owners, publishing raises :class:`~bus.errors.BusClosed` until the bus is opened
        again. Without a matching ``open`` it does nothing, so it is safe twice. Bounded in time.
        """
        side = self._sides.here()
        if side is None or side.owners == 0:
            return
        side.owners -= 1
        if side.owners == 0:
            await side.whispers.close()
            await side.close_hubs()
        await self._sides.release(side)
        if self._whispers:
            await asyncio.to_thread(self._whispers.close)
        self._close_if_unowned()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open_sync(self) -> Self:
        """As :meth:`open`, for threads and scripts: all threads together are one more owner, counted likewise."""
        with self._opening():
            self._reach()
            with self._lock:
                self._thread_owners += 1
        return self

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """While somebody opens, somebody else's last close must not close it under their hands."""
        with self._counting:  # not the lock that is held while a server is being reached
            self._openings += 1
        try:
            yield
        finally:
            with self._counting:
                self._openings -= 1

    def close_sync(self) -> None:
        """Undo one ``open_sync``, or end a bus that was never opened by hand. Safe twice."""
        self._whispers.close()
        with self._lock:
            self._thread_owners = max(0, self._thread_owners - 1)
        self._close_if_unowned()

    def _reach(self) -> None:
        """Connect and check the server, once until the bus is closed.

        Threads that ask while one is trying share its failure, instead of each waiting for a hung server in turn.
        """
        asked = time.monotonic()
        with self._lock:
            if not self._reached:
                if self._failure is not None and self._failure[0] > asked:
                    raise type(self._failure[1])(str(self._failure[1]))
                try:
                    self._store.open()
                except BusUnavailable as error:
                    self._failure = (time.monotonic(), error)
                    self._fall_back(error)
                self._reached = True
            self._closed = False

    def _fall_back(self, error: BusUnavailable) -> None:
        self._store.close()  # an unfit server was reached all the same
        if self._fallback is None:
            raise error
        log.warning("%s: this process goes on IN MEMORY; nothing is shared with others or handed over later", error)
        self._store = MemoryStore(self.clock, lease_ms=int(self.limits.lease_s * 1000))
        self._fell_back = True

    def _close_if_unowned(self) -> None:
        with self._lock:
            if self._thread_owners or self._openings or self._sides.owned():
                return
            self._closed = True
            self._reached = False
            self._store.close()
            self._sides.end_listeners()

    def rest(self) -> None:
        """Close the blocking connections if nobody owns the bus; it opens by itself when it is used again. Safe twice.

        For whoever used it without owning it, as a worker does when it stops.
        """
        self._whispers.close()
        with self._lock:
            if self._reached and not self._thread_owners and not self._sides:
                self._reached = False
                self._store.close()

    def usable(self) -> None:
        """Make sure that it can be used: one that was never opened opens by itself, one that was closed raises."""
        if self._closed:
            raise BusClosed
        if not self._reached:
            self._reach()

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Side]:
        """Keep what this loop uses of the bus open for as long as the block runs, without owning the bus."""
        if self._closed:
            raise BusClosed
        if not self._reached:
            await asyncio.to_thread(self._reach)
        side = self._sides.take(self._store.on_loop)
        try:
            yield side
        finally:
            await self._sides.release(side)

    # -- publishing ----------------------------------------------------------------------------------------------------

    def before_publish(self, hook: Hook) -> Hook:
        """Have a plain function see every event before it is published, and change or refuse it: a decorator.

        ``hook(draft: Publication) -> Publication`` gives the draft back, or another one (``dataclasses.replace``), or
        raises :class:`~bus.errors.Refused`; then nothing is published. Hooks are asked in order of registration, once for
        each event, by every door of this object. See :mod:`bus.publication`. The hook is returned as it is.
        """
        self._publisher.hooks.add(hook)
        return hook

    async def publish(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: Delay | None = None,
        at: datetime | None = None,
        log: str | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """Number, log, announce and queue one event: all of it, or none.

        ``topics`` decide who hears it and which handlers get it; an empty list reaches no listener. ``key`` names the
        lane for all handlers, in place of the field each of them names. ``delay`` (a ``timedelta`` or seconds) or ``at``
        (a datetime with a zone) delay the handlers' jobs only. ``ephemeral`` tells live listeners and leaves no trace:
        no number, no jobs; those that come fast are gathered for up to 50 ms (:mod:`bus.whispers`) and then at most
        logged if they are lost, and their receipts have the last position known. The same ``id`` within the window (5 minutes) gives the first one's position.

        A lost connection is retried until the deadline (5 s). Raises ``InvalidEvent``, ``InvalidTopic``,
        ``PayloadTooLarge``, ``LogClosed``, what a hook raises (nothing was published), ``BusClosed``, or ``BusUnavailable``, whose ``outcome`` says whether
        the event was refused or its fate is unknown. On a loop that has not opened the bus it works through a thread.
        """
        publication = Publication(event, topics, key, id, delay, at, log)
        if ephemeral:
            return await self._announce(self._ephemeral(publication))
        return (await self._publish([publication]))[0]

    async def publish_many(self, publications: Iterable[Publication]) -> list[Receipt]:
        """Publish several, in order, in one round trip for each 500; each event is atomic, the whole is not.

        All are checked before the first is sent: a bad one raises as in :meth:`publish` and none is published. Where the
        server gives out on the way, the error's ``id`` is that of the first event that may be missing.
        """
        return await self._publish(publications)

    def publish_sync(
        self,
        event: Event | Mapping[str, Any],
        *,
        topics: Iterable[str] = ("global",),
        key: str | None = None,
        id: str | None = None,
        delay: Delay | None = None,
        at: datetime | None = None,
        log: str | None = None,
        ephemeral: bool = False,
    ) -> Receipt:
        """As :meth:`publish`, from threads and scripts: blocks, and opens what it needs by itself."""
        publication = Publication(event, topics, key, id, delay, at, log)
        if ephemeral:
            letter = self._ephemeral(publication)
            self.usable()
            position = self._whispers.say(letter.log, _whisper(letter))
            return Receipt(letter.id, position, duplicate=False, jobs=0)
        return self.publish_many_sync([publication])[0]

    def publish_many_sync(self, publications: Iterable[Publication]) -> list[Receipt]:
        """As :meth:`publish_many`, from threads and scripts."""
        return self._send([self._publisher.letter(publication) for publication in publications])

    async def _publish(self, publications: Iterable[Publication]) -> list[Receipt]:
        letters = [self._publisher.letter(publication) for publication in publications]
        side = None if self._closed else self._sides.here()
        if side is None:
            return await asyncio.to_thread(self._send, letters)
        if side.whispers:
            for name in {letter.log for letter in letters}:
                await side.whispers.flush(name)
        plan = self._publisher.plan(letters)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return list(done.value)
            answer = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await side.store.append(step.batches)
            except BusUnavailable as error:
                answer = error

    def _send(self, letters: list[Letter]) -> list[Receipt]:
        try:
            self.usable()
        except UnsafeServer:
            raise
        except BusUnavailable as error:
            first = letters[0].id if letters else None
            raise BusUnavailable(f"{error}; nothing was published", outcome="refused", id=first) from error
        if self._whispers:
            for name in {letter.log for letter in letters}:
                self._whispers.flush(name)
        plan = self._publisher.plan(letters)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return list(done.value)
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._store.append(step.batches)
            except BusUnavailable as error:
                answer = error

    def _ephemeral(self, publication: Publication) -> Letter:
        if publication.delay is not None or publication.at is not None:
            raise InvalidEvent("an ephemeral event has no jobs to delay: leave delay= and at= out")
        return self._publisher.letter(publication)

    async def _announce(self, letter: Letter) -> Receipt:
        side = None if self._closed else self._sides.here()
        if side is not None:
            position = await side.whispers.say(letter.log, _whisper(letter))
        else:
            async with self.using() as passing:
                position = await passing.whispers.say(letter.log, _whisper(letter))
        return Receipt(letter.id, position, duplicate=False, jobs=0)

    async def flush(self, log: str | None = None) -> None:
        """Return once the ephemeral events are out that this loop has published to a log until now. Raises nothing.

        Publishing to that log and closing do it by themselves.
        """
        side = self._sides.here()
        if side is not None:
            await side.whispers.flush(check_log(log))

    def flush_sync(self, log: str | None = None) -> None:
        """As :meth:`flush`, for those of all threads; blocks."""
        self._whispers.flush(check_log(log))

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(
        self,
        *patterns: str,
        after: str | datetime | None = None,
        log: str | None = None,
        policy: Policy = "catch-up",
        key: str | None = None,
    ) -> Listener:
        """Listen to the events whose topics match a pattern (default ``"global"``): ``async with`` it, then iterate.

        ``after`` is exclusive: a position resumes behind it, ``"0"`` begins with all that is kept, a datetime (with a
        zone) with what was published from then on as far as it is kept, ``None`` means from now on. Entering returns once
        attached, and raises ``BusUnavailable`` if that cannot be; afterwards the listener repairs itself. It yields
        :class:`~bus.delivery.Delivery`, :class:`~bus.delivery.Gap` before a hole that cannot be repaired, and last, when
        the log or the bus is closed, :class:`~bus.delivery.Closed`.

        Up to 1,000 deliveries and 4 MB wait for one that is slow. Then its ``policy`` decides: ``"catch-up"`` reads on from
        the log, so that nothing is missed; ``"latest"`` keeps only the newest waiting event of each ``key`` (a field of the
        data; without one the key of the publish), at any time; ``"disconnect"`` ends the listener.

        Raises ``InvalidTopic``, ``InvalidPosition``, ``InvalidLog``, ``InvalidSettings``.
        """
        name, start = check_log(log), _after(after)

        async def join() -> Joined:
            using = self.using()
            side = await using.__aenter__()
            try:
                hub = await side.hub(name)
            except BaseException:
                await using.__aexit__(None, None, None)
                raise

            async def leave() -> None:
                side.left(hub)
                await using.__aexit__(None, None, None)

            return Joined(hub, side.store, leave)

        mailbox = make_mailbox(policy, key)
        matcher = Matcher(patterns or ("global",))
        return Listener(join, name, matcher, start, mailbox, disconnects=policy == "disconnect")

    def listen_sync(
        self,
        *patterns: str,
        after: str | datetime | None = None,
        log: str | None = None,
        policy: Policy = "catch-up",
        key: str | None = None,
    ) -> SyncListener:
        """As :meth:`listen`, for threads: ``with`` it, then iterate, or ``get(timeout_s)`` one item at a time.

        All listeners of threads share one event loop, which runs on a thread of its own while there are any.
        """
        listener = self.listen(*patterns, after=after, log=log, policy=policy, key=key)
        return SyncListener(self._listening, listener)

    def log(self, name: str, *, cap: int | None = None, ttl: Delay | None = None) -> Log:
        """A handle for one log: to publish to it, listen to it and close it, as in ``bus.log(f"run:{id}", ttl=3600)``.

        ``cap`` (events) and ``ttl`` (a ``timedelta`` or seconds) are limits of its own in place of the bus's. The log
        keeps them from the first event on that is published (or the close) through a handle that has them, for every
        publisher; the last ones given count. Connects to nothing. Raises ``InvalidLog``, ``InvalidSettings``.
        """
        return Log(self, name, cap=cap, ttl=ttl)

    async def history(
        self, *patterns: str, after: str | datetime = "0", limit: int | None = None, log: str | None = None
    ) -> AsyncIterator[Delivery | Gap]:
        """The matching events that the log keeps, oldest first, up to what is its top when that is reached.

        ``limit`` counts items. The same items, the same gaps and the same errors as :meth:`listen`.
        """
        name, matcher, after_ = check_log(log), Matcher(patterns or ("**",)), _after(after)
        async with self.using() as side:
            start = await start_of(side.store, name, after_ or "0")
            reader = Reader(side.store, name, matcher, start, side.decoder)
            handed = 0
            while not reader.caught_up:
                for found in await reader.page():
                    if limit is not None and handed >= limit:
                        return
                    yield cast("Delivery | Gap", found.item)
                    handed += 1

    def status(self) -> Status:
        """How the bus is doing, as the calling loop sees it. Never blocks; works outside of a loop as well."""
        side = self._sides.here()
        hubs = [hub for hub in side.hubs.values() if hub.state != "closed"] if side else []
        main = next((hub.position for hub in hubs if hub.name == check_log(None)), None)
        worst = max(hubs, key=lambda hub: _TROUBLE.index(hub.state), default=None)
        state = "closed" if self._closed else worst.state if worst else "live" if self._reached else "not opened"
        listeners = [listener for hub in hubs for listener in hub.listeners]
        return Status(
            mode=self.mode,
            connected=state in ("live", "ended"),
            position=main,
            listeners=len(listeners),
            lag=max((each.lag for each in listeners), default=0),
            state=state,
            since=worst.since if worst else None,
        )

    # -- for the workers' side -----------------------------------------------------------------------------------------

    def bind(self, bindings: Iterable[Binding]) -> None:
        """Write bindings to the store, so that publishers everywhere queue work for these handlers. Blocks; safe twice."""
        self.usable()
        self._store.bind({binding.handler: binding.encode() for binding in bindings})


def _whisper(letter: Letter) -> Whisper:
    return Whisper(letter.topics, letter.body)


_TROUBLE = ("closed", "ended", "live", "repairing", "connecting", "degraded")


def _after(after: str | datetime | None) -> After:
    if isinstance(after, datetime):
        if after.tzinfo is None:
            raise InvalidPosition("a datetime without a time zone")
        return after
    return after if after is None or after == "0" else Position.parse(after)  # type: ignore[return-value]  # "0" is "0"
