"""The live channels of one event loop: every log's subscription, all on one connection.

Not redis-py's ``PubSub``: it reconnects silently (events published meanwhile are lost without a word), and on Python 3.11
and later reads a dead socket as "no message", at 100 % CPU. Frames go from the socket straight to the hubs' inboxes.

A link says something at least every :data:`PING_S`, for it is asked to; one that owes an answer for as long is dead. Then
every inbox fails, and whoever subscribes again opens another.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from typing import Any

from bus.errors import BusUnavailable
from bus.store.base import CONFIRMED, QUIET, Heard, decode_frame
from bus.store.inbox import Inbox
from bus.store.redis.link import Link, translated
from bus.store.redis.talk import Line, Talk

__all__ = ["LiveChannels"]

PING_S = 2.0
"""After so long a silence the server is asked whether it is there, and given as long to answer."""

log = logging.getLogger("callboard.bus")


class LiveChannels:
    """Subscriptions of one loop. The first one opens the connection, the last one that leaves closes it."""

    def __init__(self, link: Link, connect: Callable[[], Any]) -> None:
        self._link = link
        self._line = Line(link, connect, _Channels)

    async def subscribe(self, channel: str) -> AsyncGenerator[Heard]:
        """See :meth:`bus.store.base.LoopStore.subscribe`."""
        inbox = Inbox()
        with translated(self._link, writing=False):
            talk = self._line.open()
            if not isinstance(talk, _Channels):
                talk = await talk
        talk.join(channel.encode(), inbox)
        try:
            async for heard in inbox:
                yield heard
        finally:
            talk.leave(channel.encode(), inbox)

    def close(self) -> None:
        """Hang up. Safe twice; whoever still subscribes is told that the link is gone."""
        self._line.close("the live link was closed")


class _Channels(Talk):
    """One connection and the inboxes on its channels."""

    def __init__(self, link: Link, connection: Any) -> None:
        super().__init__(link, connection)
        self._link = link
        self._channels: defaultdict[bytes, set[Inbox]] = defaultdict(set)
        self._joining: defaultdict[bytes, list[Inbox]] = defaultdict(list)
        self._talked: set[bytes] = set()
        self._pinged_at: float | None = None
        self._pulse = self.loop.call_later(PING_S, self._feel)

    # -- channels ------------------------------------------------------------------------------------------------------

    def join(self, channel: bytes, inbox: Inbox) -> None:
        """Have an inbox hear a channel, from its confirmation on."""
        self._joining[channel].append(inbox)
        self.send([(b"SUBSCRIBE", channel)])

    def leave(self, channel: bytes, inbox: Inbox) -> None:
        """Hear it no more. The last one hangs up."""
        if inbox in self._joining[channel]:
            self._joining[channel].remove(inbox)
        self._channels[channel].discard(inbox)
        if self._channels[channel] or self._joining[channel]:
            return
        del self._channels[channel], self._joining[channel]
        if not self._channels and not self._joining:
            self.lose("the live link is not needed any more")
        else:
            self.send([(b"UNSUBSCRIBE", channel)])

    # -- what the server says ------------------------------------------------------------------------------------------

    def hear(self, said: Any) -> None:
        match said:
            case [b"message", channel, data]:
                self._talked.add(channel)
                heard = _read(data)
                for inbox in self._channels.get(channel, ()):
                    inbox.put(heard)
            case [b"subscribe", channel, _]:
                joined = self._joining.pop(channel, [])
                self._channels[channel].update(joined)
                for inbox in joined:
                    inbox.put(CONFIRMED)
            case Exception():
                self._refused(said)
            case _:
                pass  # an unsubscription, or that the server is there

    def _refused(self, error: Exception) -> None:
        try:
            with translated(self._link, writing=False):
                raise error
        except BusUnavailable as why:
            self.lose(why)

    def _inboxes(self) -> list[Inbox]:
        rooms = (*self._channels.values(), *self._joining.values())
        return [inbox for inboxes in rooms for inbox in inboxes]

    # -- life and death ------------------------------------------------------------------------------------------------

    def _feel(self) -> None:
        """Feel the pulse: half-open links and servers that hang are found here, whatever the kernel thinks of them."""
        if self._pinged_at is not None and self.heard_at < self._pinged_at:
            self.lose(f"{self.where} does not answer on the live link")
            return
        for channel, inboxes in self._channels.items():
            if channel not in self._talked:  # each for itself: another log's talk says nothing of this one
                for inbox in inboxes:
                    inbox.put(QUIET)
        self._talked.clear()
        now = self.loop.time()
        self._pinged_at = None
        due = self.heard_at + PING_S
        if due <= now:
            self._pinged_at, due = now, now + PING_S
            self.send([(b"PING",)])
        self._pulse = self.loop.call_at(due, self._feel)

    def end(self, why: BusUnavailable) -> None:
        self._pulse.cancel()
        for inbox in self._inboxes():
            inbox.fail(why)


def _read(data: bytes) -> Heard:
    try:
        return decode_frame(data)
    except ValueError:
        log.warning("something that is no event was published on a live channel; looking into the log instead")
        return CONFIRMED
