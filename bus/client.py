"""The bus: what an app holds in its hand. Builds the parts, and forwards to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, cast
from urllib.parse import urlsplit

from bus.bindings import Binding
from bus.clock import Clock
from bus.delivery import Delivery, Gap
from bus.errors import InvalidLog, InvalidPosition, InvalidSettings
from bus.events import Event
from bus.life import Life
from bus.listener import After, Joined, Listener, start_of
from bus.logs import Log
from bus.mailbox import Policy, make_mailbox
from bus.outgoing import Outgoing
from bus.position import Position
from bus.publication import Delay, Hook, Publication, drafted
from bus.publisher import Publisher, Receipt
from bus.reader import Reader
from bus.settings import Limits, check_log, settle_namespace, settle_url
from bus.sides import Side
from bus.store.base import NO_LIMITS, Store
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.threads import ListeningThread, SyncListener
from bus.topics import Matcher, own_log

__all__ = ["Bus", "Status"]

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
        self._life = Life(self._make_store(settle_url(url)), self._make_memory if fallback else None)
        self._publisher = Publisher(source or f"/{self.namespace}", self.limits, self.clock)
        self._outgoing = Outgoing(self._life, self._publisher)
        self._listening = ListeningThread()

    def __repr__(self) -> str:
        state = "closed" if self._life.closed else "open" if self._life.reached else "not opened"
        return f"<Bus {self.namespace} in {self.mode} {state}>"

    def _make_store(self, url: str) -> Store:
        if not url.startswith("memory://"):
            return RedisStore(url, self.namespace, lease_ms=self._lease_ms)
        name = urlsplit(url).netloc
        return _shared.setdefault((name, self.namespace), self._make_memory()) if name else self._make_memory()

    def _make_memory(self) -> MemoryStore:
        return MemoryStore(self.clock, lease_ms=self._lease_ms)

    @property
    def _lease_ms(self) -> int:
        return int(self.limits.lease_s * 1000)

    @property
    def mode(self) -> str:
        """``memory``, ``redis``, or ``fallback`` for memory in place of a server that was away."""
        return "fallback" if self._life.fell_back else self._life.store.mode

    @property
    def store(self) -> Store:
        """The store below, for the workers' side and for tools. Call :meth:`open_sync` first."""
        return self._life.store

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Reach the server, and make this loop an owner. Counted: as many ``close`` as ``open``.

        Raises :class:`~bus.errors.BusUnavailable` where the server is away or unfit (unless there is a fallback).
        """
        await self._life.open()
        return self

    async def close(self) -> None:
        """Undo one ``open`` of this loop. The loop's last close ends its listeners and closes its connections.

        After the last close of all owners, publishing raises :class:`~bus.errors.BusClosed` until the bus is opened
        again. Without a matching ``open`` it does nothing, so it is safe twice. Bounded in time.
        """
        await self._life.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open_sync(self) -> Self:
        """As :meth:`open`, for threads and scripts: all threads together are one more owner, counted likewise."""
        self._life.open_sync()
        return self

    def close_sync(self) -> None:
        """Undo one ``open_sync``, or end a bus that was never opened by hand. Safe twice."""
        self._life.close_sync()

    def usable(self) -> None:
        """Make sure that it can be used: one that was never opened opens by itself, one that was closed raises."""
        self._life.usable()

    def using(self) -> AbstractAsyncContextManager[Side]:
        """Keep what this loop uses of the bus open for as long as the block runs, without owning the bus."""
        return self._life.using()

    def rest(self) -> None:
        """Close the blocking connections if nobody owns the bus; it opens by itself when it is used again. Safe twice.

        For whoever used it without owning it, as a worker does when it stops.
        """
        self._life.rest()

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
        draft = (event, topics, key, id, delay, at, log, NO_LIMITS)
        if ephemeral:
            return await self._outgoing.whisper(draft)
        return (await self._outgoing.publish((draft,)))[0]

    async def publish_many(self, publications: Iterable[Publication]) -> list[Receipt]:
        """Publish several, in order, in one round trip for each 500; each event is atomic, the whole is not.

        All are checked before the first is sent: a bad one raises as in :meth:`publish` and none is published. Where the
        server gives out on the way, the error's ``id`` is that of the first event that may be missing.
        """
        return await self._outgoing.publish(map(drafted, publications))

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
        draft = (event, topics, key, id, delay, at, log, NO_LIMITS)
        if ephemeral:
            return self._outgoing.whisper_sync(draft)
        return self._outgoing.publish_sync((draft,))[0]

    def publish_many_sync(self, publications: Iterable[Publication]) -> list[Receipt]:
        """As :meth:`publish_many`, from threads and scripts."""
        return self._outgoing.publish_sync(map(drafted, publications))

    async def flush(self, log: str | None = None) -> None:
        """Return once the ephemeral events are out that this loop has published to a log until now. Raises nothing.

        Publishing to that log and closing do it by themselves.
        """
        await self._outgoing.flush(log)

    def flush_sync(self, log: str | None = None) -> None:
        """As :meth:`flush`, for those of all threads; blocks."""
        self._outgoing.flush_sync(log)

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

        Up to 1,000 deliveries and 4 MB wait for one that is slow (while it catches up, one page of 256 events). Then its ``policy`` decides: ``"catch-up"`` reads on from
        the log, so that nothing is missed; ``"latest"`` keeps only the newest waiting event of each ``key`` (a field of the
        data; without one the key of the publish), at any time; ``"disconnect"`` ends the listener.

        Patterns under ``$worker:`` hear what workers tell of themselves, live only, on a log of its own: no ``log=`` then.

        Raises ``InvalidTopic``, ``InvalidPosition``, ``InvalidLog``, ``InvalidSettings``.
        """
        (name, matcher), start = _whereto(patterns or ("global",), log), _after(after)

        async def join() -> Joined:
            using = self.using()
            side = await using.__aenter__()
            try:
                hub = await side.hub(name)
                self._life.usable()  # it may have been closed meanwhile, and nobody would tell this listener
            except BaseException:
                side.left(name)
                await using.__aexit__(None, None, None)
                raise

            async def leave() -> None:
                side.left(name)
                await using.__aexit__(None, None, None)

            return Joined(hub, side.store, leave)

        mailbox = make_mailbox(policy, key)
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
        (name, matcher), after_ = _whereto(patterns or ("**",), log), _after(after)
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
        side = self._life.sides.here()
        hubs = [hub for hub in side.hubs.values() if hub.state != "closed"] if side else []
        main = next((hub.position for hub in hubs if hub.name == check_log(None)), None)
        running = [hub for hub in hubs if hub.state != "ended"]  # a log that was closed is no trouble
        worst = max(running, key=lambda hub: _TROUBLE.index(hub.state), default=None)
        state = (
            "closed" if self._life.closed else worst.state if worst else "live" if self._life.reached else "not opened"
        )
        listeners = [listener for hub in hubs for listener in hub.listeners]
        return Status(
            mode=self.mode,
            connected=state == "live",
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
        self._life.store.bind({binding.handler: binding.encode() for binding in bindings})


_TROUBLE = ("closed", "live", "repairing", "connecting", "degraded")


def _whereto(patterns: tuple[str, ...], log: str | None) -> tuple[str, Matcher]:
    """The log that these patterns are for, and what they match."""
    own = own_log(patterns)
    if own is None:
        return check_log(log), Matcher(patterns)
    if log is not None:
        raise InvalidLog(str(log), f"'{own}:...' is told on a log of its own: leave log= out")
    return own, Matcher(patterns, reserved=True)


def _after(after: str | datetime | None) -> After:
    if isinstance(after, datetime):
        if after.tzinfo is None:
            raise InvalidPosition("a datetime without a time zone")
        return after
    return after if after is None or after == "0" else Position.parse(after)  # type: ignore[return-value]  # "0" is "0"
