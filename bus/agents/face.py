"""``AgentEventBus``: the old event bus's face on :class:`~bus.client.Bus`, so that an app moves over by an import."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from bus.agents import dialect
from bus.agents.bridge import Bridge
from bus.agents.seat import Seat, Socket, later
from bus.client import Bus
from bus.position import Position
from bus.publisher import Receipt
from bus.store.redis import RedisStore

__all__ = ["AgentEventBus"]

SEND_S = 5.0

log = logging.getLogger("callboard.bus")


class AgentEventBus:
    """Agents' sockets on a bus: subscribe them to topics, publish dicts, and each hears what it asked for, once.

    ``redis_url``, else ``BUS_URL``, else ``REDIS_URL``, else memory. A server that is away when the first method is
    called is replaced by memory, with a warning, until :meth:`close_redis`. ``bus`` is a :class:`~bus.client.Bus` of the
    app's own in place of all that, for one that it shares with workers, or that has hooks. ``bridge=True`` joins servers
    that still run the old bus (see :mod:`bus.agents.bridge`).

    A socket is anything with an async ``send_json``. It is sent the event dict as it was published, as JSON carries it (a
    ``datetime`` is text, wherever the socket is); do not change it, others are sent the same. Its sends wait for nobody
    else's: one that fails, or takes longer than ``send_s`` seconds, costs the socket its seat and is closed. A slow one
    reads on from the log.

    Connects to nothing before the first call. Belongs to one event loop at a time; ``publish`` works from any.
    """

    def __init__(
        self, redis_url: str | None = None, *, bus: Bus | None = None, bridge: bool = False, send_s: float = SEND_S
    ) -> None:
        self._url = redis_url or None
        self._given = bus
        self._bridging = bridge
        self._send_s = send_s
        self._start_afresh()

    def __repr__(self) -> str:
        return (
            f"<AgentEventBus on {self._bus!r} with {len(self._seats)} sockets>"
            if self._bus
            else "<AgentEventBus, not open>"
        )

    def _start_afresh(self) -> None:
        self._bus: Bus | None = None
        self._bridge: Bridge | None = None
        self._seats: dict[int, Seat] = {}
        self._latest: Position | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()

    # -- sockets -------------------------------------------------------------------------------------------------------

    async def subscribe(self, agent_id: str, websocket: Socket, topics: Iterable[str] | None = None) -> None:
        """Send an agent's socket what is published to these topics from now on; ``None`` means ``["global"]``.

        Nothing comes that was published here before; what another process published a moment ago may. An agent may have several sockets. The same socket again adds to its topics. What :meth:`broadcast_post` tells this
        agent alone it hears in any case. Returns once attached. Raises ``InvalidTopic`` for topics that are no list of
        text, and ``BusUnavailable``.
        """
        wanted = [dialect.inbox(str(agent_id)), *dialect.of_topics(topics)]
        bus = await self._opened()
        seat = self._seats.get(id(websocket))
        if seat is None:
            seat = self._seats[id(websocket)] = Seat(bus, websocket, self._send_s, self._gone)
        await seat.add(str(agent_id), wanted, self._latest)

    async def unsubscribe(self, agent_id: str, websocket: Socket) -> None:
        """Send this socket no more of what this agent asked for, and free its topics. Of one that is not there: nothing."""
        seat = self._seats.get(id(websocket))
        if seat is not None:
            await seat.remove(str(agent_id))

    def _gone(self, seat: Seat) -> None:
        self._seats.pop(id(seat.socket), None)

    # -- events --------------------------------------------------------------------------------------------------------

    async def publish(self, event: Mapping[str, Any], topics: Iterable[str] | None = None) -> Receipt:
        """Publish an event to topics: ``None`` means ``["global"]``, and ``[]`` reaches nobody. Waits for no socket.

        Any dict that JSON can carry; dates, sets and models become JSON. Raises as :meth:`bus.client.Bus.publish` does.
        """
        return await self._publish(dialect.of_event(event), dialect.of_topics(topics))

    async def broadcast_post(self, post: object) -> Receipt:
        """Tell of a post (a dict, a model, or an object with fields), as ``{"type": "agent_post", "post": {...}}``.

        To ``global`` and ``agent:{sender_id}``; an alert to ``alerts`` as well, and a question of somebody with a
        ``sender_category`` to ``category:{sender_category}``. A post that names an addressee (``recipient_id`` and the
        like) or is private goes to its sender's and its addressee's sockets, and to nobody else.
        """
        return await self._publish(*dialect.of_post(post))

    async def _publish(self, event: Mapping[str, Any], topics: list[str]) -> Receipt:
        bus = await self._opened()
        receipt = await bus.publish(event, topics=topics)
        self._latest = later(self._latest, receipt.position)
        return receipt

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def subscribe_to_redis(self) -> None:
        """Open the bus, and the bridge if there is to be one. Returns once that is done; safe twice, and never needed."""
        await self._opened()

    async def close_redis(self) -> None:
        """Let every socket go (they stay open) and close the bus: no task and no connection stays. Bounded in time.

        Safe twice. The next call of any other method opens it again, and tries the server again.
        """
        self._leave_ended_loop()
        async with self._opening:
            bridge, bus = self._bridge, self._bus
            self._bridge = self._bus = None
            await asyncio.gather(*(seat.leave() for seat in tuple(self._seats.values())))
            if bridge is not None:
                await bridge.close()
            if bus is not None:
                await bus.close()

    async def _opened(self) -> Bus:
        self._leave_ended_loop()
        if self._bus is not None:
            return self._bus
        async with self._opening:
            if self._bus is None:
                bus = self._given or Bus(self._url, fallback="memory")
                await bus.open()
                if self._bridging:
                    self._start_bridge(bus)
                self._bus, self._loop = bus, asyncio.get_running_loop()
            return self._bus

    def _start_bridge(self, bus: Bus) -> None:
        if isinstance(bus.store, RedisStore):
            self._bridge = Bridge(bus, bus.store)
            self._bridge.start()
        else:
            log.warning("there is no bridge to the old channels: this bus is in memory")

    def _leave_ended_loop(self) -> None:
        """A loop that ended without :meth:`close_redis` took the sockets with it."""
        if self._loop is not None and self._loop.is_closed():
            bus = self._bus
            self._start_afresh()
            if bus is not None and bus is not self._given:
                bus.close_sync()
