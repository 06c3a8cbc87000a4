"""A bridge to servers that still run the old event bus, for the days in which both run beside each other.

The old bus published ``{"topics": [...], "event": {...}}`` to the Redis channel ``agent_events:{topic}`` of each topic.
What it publishes is published on our bus, once; what is published here goes to those channels, a copy for each topic as
before. Inboxes stay here: the old bus had none.

::

    old servers ──agent_events:*──> the copy for the first topic ──> bus.publish
         ^                                                                │ (not what came from there)
         └──── agent_events:{topic}, one for each topic <── bus.listen <──┘

Every process may have one: a lease on the server lets one of them work, and another takes over within seconds. Nothing
is echoed. Our copies end in a line feed, which JSON allows and the old bus never wrote, so whoever reads them back knows
them; what came in has an id that says so. Where the last bridge stopped is kept with each event it sent on, so a new one
goes on there. Inwards it is as good as the old channels were: what is published while no bridge listens is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bus import ids
from bus.agents import dialect
from bus.agents.seat import ended
from bus.client import Bus
from bus.delivery import Delivery
from bus.errors import BusClosed, BusError, BusUnavailable, InvalidPosition
from bus.store.redis import RedisStore
from bus.store.redis.link import Link, translated

__all__ = ["Bridge"]

CHANNELS = "agent_events:"
OURS = b"\n"
FOREIGN = "agent_events."
"""How the id of an event begins that came in over the bridge."""

ATTEMPT_S = 2.0
PING_S = 2.0
LEASE_MS = 4_000
TURN_S = 0.5
CURSOR_MS = 60_000

_KEEP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_LET_GO = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

log = logging.getLogger("callboard.bus")


class Bridge:
    """See the module. The bus must be open, and on Redis; ``start`` and ``close`` bear being called twice."""

    def __init__(self, bus: Bus, store: RedisStore) -> None:
        self._bus = bus
        self._link = store.link
        self._lease, self._cursor = f"{store.prefix}bridge", f"{store.prefix}bridge:cursor"
        self._name = ids.uuid7(bus.clock.now_ms())
        self._copies: Counter[bytes] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run in a task of its own, for as long as the server answers and whenever it does again."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="callboard bridge")

    async def close(self) -> None:
        """Let another process take over, and close the connections, within a deadline."""
        task, self._task = self._task, None
        if task is not None:
            await ended(task)

    async def _run(self) -> None:
        is_open = True
        while is_open:
            client = _client(self._link)
            try:
                await self._serve(client)
            except* BusClosed:
                is_open = False
            except* BusError as errors:
                log.warning("the bridge to the old channels is down and tries again: %s", _first(errors))
            except* Exception as errors:  # noqa: BLE001 - a defect must not end the bridge for good
                log.error("the bridge to the old channels failed and tries again: %s", type(_first(errors)).__name__)
            finally:
                with contextlib.suppress(TimeoutError, redis.RedisError, OSError):
                    async with asyncio.timeout(ATTEMPT_S):
                        await client.aclose()
            await asyncio.sleep(TURN_S)

    async def _serve(self, client: Any) -> None:
        """Wait for the lease, then carry both ways until something fails."""
        while not await self._ask(client.set(self._lease, self._name, nx=True, px=LEASE_MS)):  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(TURN_S)
        try:
            async with asyncio.TaskGroup() as ways:
                for way in (self._keep, self._inwards, self._outwards):
                    ways.create_task(way(client), name=f"callboard bridge {way.__name__}")
        finally:
            with contextlib.suppress(BusUnavailable):
                await self._ask(client.eval(_LET_GO, 1, self._lease, self._name))

    async def _ask(self, command: Any) -> Any:
        with translated(self._link, writing=False):
            async with asyncio.timeout(ATTEMPT_S):
                return await command

    async def _keep(self, client: Any) -> None:
        keys, arguments = (self._lease, self._cursor), (self._name, LEASE_MS, CURSOR_MS)
        while await self._ask(client.eval(_KEEP, len(keys), *keys, *arguments)):  # noqa: ASYNC110 - time is all it waits for
            await asyncio.sleep(LEASE_MS / 4000)
        raise BusUnavailable("another process took over")

    # -- from the old bus ----------------------------------------------------------------------------------------------

    async def _inwards(self, client: Any) -> None:
        self._copies.clear()
        async with client.pubsub() as channels:
            await self._ask(channels.psubscribe(f"{CHANNELS}*"))
            while True:
                message = await self._heard(channels)
                if message["type"] == "pmessage" and not message["data"].endswith(OURS):
                    await self._take_in(message["channel"].decode("utf-8", "replace"), message["data"])

    async def _heard(self, channels: Any) -> Any:
        """The next thing the server says; two silent intervals are a dead link, and so is a silence that came too soon."""
        clock = asyncio.get_running_loop()
        for pinged in (False, True):
            began = clock.time()
            with translated(self._link, writing=False):
                message = await channels.get_message(timeout=PING_S)
            if message is not None:
                return message
            if not pinged and clock.time() - began > PING_S / 2:
                await self._ask(channels.ping())
        raise BusUnavailable("the subscription to the old channels broke")

    async def _take_in(self, channel: str, data: bytes) -> None:
        topics, event = _read(data)
        if event is None:
            log.warning("a message on an old channel is none of the old bus's and was left out")
            return
        # The old bus sent a copy to each topic's channel. The first topic's stands for all of them, so that two equal
        # events are two; where a topic is named twice, its channel had two copies of each.
        if not topics or channel != f"{CHANNELS}{topics[0]}" or not self._is_first(data, topics.count(topics[0])):
            return
        try:
            await self._bus.publish(
                dialect.of_event(event),
                topics=dialect.of_topics(topics),
                id=f"{FOREIGN}{ids.uuid7(self._bus.clock.now_ms())}",
            )
        except BusClosed:
            raise
        except BusError as error:
            log.warning("an event of the old bus was not taken over: %s", error)

    def _is_first(self, data: bytes, copies: int) -> bool:
        if copies == 1:
            return True
        self._copies[data] += 1
        seen = self._copies[data]
        if seen == copies:
            del self._copies[data]
        return seen == 1

    # -- to the old bus ------------------------------------------------------------------------------------------------

    async def _outwards(self, client: Any) -> None:
        kept = await self._ask(client.get(self._cursor))
        try:
            listener = self._bus.listen("**", after=kept.decode() if kept else None)
        except InvalidPosition:
            listener = self._bus.listen("**")
        async with listener:
            await self._ask(client.set(self._cursor, str(listener.position), px=CURSOR_MS))
            async for item in listener:
                if isinstance(item, Delivery) and not item.envelope.id.startswith(FOREIGN):
                    await self._send_out(client, item)
        raise BusClosed

    async def _send_out(self, client: Any, item: Delivery) -> None:
        topics = [dialect.to_topic(topic) for topic in item.envelope.topics if not dialect.is_private(topic)]
        text = json.dumps({"topics": topics, "event": dialect.to_event(item)}).encode() + OURS
        async with client.pipeline(transaction=True) as sending:
            for topic in topics:
                sending.publish(f"{CHANNELS}{topic}", text)
            if not item.ephemeral:
                sending.set(self._cursor, str(item.position), px=CURSOR_MS)
            await self._ask(sending.execute())


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _read(data: bytes) -> tuple[list[str], dict[str, Any] | None]:
    """What the old bus put in a message; no event where it was not the old bus."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return [], None
    match message:
        case {"topics": list(topics), "event": dict(event)} if all(isinstance(topic, str) for topic in topics):
            return topics, event
        case _:
            return [], None


def _client(link: Link) -> Any:
    """A client of the bridge's own: no retries that we do not know of, and no timeout that eats a cancellation."""
    options = dict(link.options)
    tls, path = options.pop("tls", False), options.pop("path", None)
    return redis.asyncio.Redis(
        ssl=tls,
        unix_socket_path=path,
        socket_timeout=None,
        socket_connect_timeout=ATTEMPT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **options,
    )
