"""A consumer: how one queue's jobs reach Dramatiq's worker threads.

It takes its share of the process's room (see ``room.py``), settles what has gathered in the same round trip, and where
its queue is empty it sleeps until the bell rings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

from dramatiq import Consumer, MessageProxy

from bus import BusUnavailable
from bus.clock import Clock
from bus.store.base import ALONE, Exchange, Settlement, Taken
from workers.broker.books import GATHER
from workers.broker.lease import Lease
from workers.broker.message import UNDECODABLE, LaneMessage, open_job, undecodable
from workers.broker.room import Room, Wish

__all__ = ["LaneConsumer"]

GATHER_S = 0.005
"""How long settlements wait for company."""
ENDING_S = 0.1
"""How often it comes back to its thread once the worker is quiet: that is how it hears of its end."""

HANDLER: Callable[[Taken], str] = attrgetter("route.handler")

log = logging.getLogger("callboard.workers")


class Declared(Protocol):
    """What a consumer asks of its broker."""

    @property
    def clock(self) -> Clock:
        """The bus's."""

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The handlers that this process serves on a queue."""

    def bury(self, message: LaneMessage) -> None:
        """A message of this process goes to the dead letters."""

    def bury_unread(self, taken: Taken, error: str) -> None:
        """So does a job that never was a message."""


class LaneConsumer(Consumer):
    """Used by one consumer thread; ``ack`` and ``nack`` come from any worker thread and never block."""

    def __init__(
        self, broker: Declared, lease: Lease, queue: str, prefetch: int, timeout_ms: int, *, exact: bool = False
    ) -> None:
        self._broker = broker
        self._lease = lease
        self._rooms = lease.rooms
        self._queue = queue
        self._timeout_s = timeout_ms / 1000
        self._buffer: deque[LaneMessage] = deque()
        self._caller: Any = None  # Dramatiq's ConsumerThread, once it has asked for a message
        self._hopes = set(broker.handlers_of(queue))
        """Handlers for which there may be work that the bell does not tell of: we look for ourselves, once there is room."""
        self._away = False
        self._turn = 0
        with lease.changed:
            for room in (self._rooms.threads, self._rooms.loop):
                room.enter(queue, prefetch, partial(self._hopes_for, room), exact=exact)
        lease.serve(queue, self)

    # -- what Dramatiq calls -------------------------------------------------------------------------------------------

    def __next__(self) -> MessageProxy | None:
        """The next message, or ``None`` after the timeout. A lost connection is waited out here, never raised.

        Of several all but the last are passed on at once: between two, Dramatiq would look for delayed messages, which cannot be.
        """
        self._caller = threading.current_thread()
        if not self._buffer and self._await_reason(time.monotonic() + self._timeout_s):
            self._exchange()
        pass_on = self._way_to_the_threads()
        while pass_on is not None and len(self._buffer) > 1:
            pass_on(self._buffer.popleft())
        return self._buffer.popleft() if self._buffer else None

    def ack(self, message: MessageProxy) -> None:
        """Have the message's own verdict settled."""
        if isinstance(message, LaneMessage) and not message.withdrawn:
            settlement = message.settlement()
            if settlement.verdict == "dead":
                self._broker.bury(message)  # before anybody can see that the job is finished
            self._lease.settle(self._queue, settlement)

    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Hand jobs that were not begun back to the heads of their lanes; last first, so that they keep their order."""
        for message in reversed(list(messages)):
            if isinstance(message, LaneMessage):
                self._settle(message.handed_back())

    def close(self) -> None:
        """Hand back what was taken and not passed on, and have all that waits settled."""
        self._lease.unserve(self._queue, self)
        self.requeue(self._buffer)
        self._buffer.clear()
        with self._lease.changed:
            self._rooms.leave(self._queue)
        try:
            self._lease.flush()
        except BusUnavailable as error:
            log.warning("the last settlements of queue %r wait for the server: %s", self._queue, error)

    # -- what the bell calls -------------------------------------------------------------------------------------------

    def waits(self) -> list[Wish]:
        if getattr(self._caller, "paused", False):
            return []
        drained = [handler for handler in self._in_turn() if handler not in self._hopes]
        wishes = self._rooms.wishes_soon(self._queue, drained)
        self._hopes.update(set(drained).difference(*(wish.handlers for wish in wishes)))
        return wishes

    def bring(self, taken: Sequence[Taken]) -> None:
        messages = self._opened(taken)
        pass_on = self._way_to_the_threads()
        if pass_on is not None:  # without waking our caller first
            for message in messages:
                pass_on(message)
        elif messages:
            with self._lease.changed:
                self._buffer.extend(messages)
                self._lease.changed.notify_all()

    # -- the inside ----------------------------------------------------------------------------------------------------

    def _way_to_the_threads(self) -> Callable[[LaneMessage], None] | None:
        """How our caller passes a message on, where it is Dramatiq's."""
        return getattr(self._caller, "handle_message", None)

    def _settle(self, settlement: Settlement) -> None:
        self._lease.settle(self._queue, settlement)

    def _hopes_for(self, room: Room) -> bool:
        return any(self._rooms.of(handler) is room for handler in self._hopes)

    def _in_turn(self) -> tuple[str, ...]:
        """The handlers, each first in its turn."""
        handlers = self._broker.handlers_of(self._queue)
        turn = self._turn % len(handlers) if handlers else 0
        return handlers[turn:] + handlers[:turn]

    def _wishes(self) -> list[Wish]:
        """What it would ask for now. Under ``changed``."""
        if self._lease.quiet or not self._hopes:
            return []
        return self._rooms.wishes(self._queue, [handler for handler in self._in_turn() if handler in self._hopes])

    def _heard(self) -> bool:
        """Whether the bell has rung: then there may be work for any handler. Under ``changed``."""
        rung = self._lease.has_rung(self._queue)
        if rung:
            self._hopes.update(self._broker.handlers_of(self._queue))
        return rung

    def _await_reason(self, deadline: float) -> bool:
        """Wait until there is something to exchange; ``False`` if the time is over first."""
        lease = self._lease
        with lease.changed:
            self._heard()
            gathering_until: float | None = None
            while not self._buffer:
                wants = self._wishes()
                if self._rooms.load(self._queue) == 0 and (wants or lease.unsettled):
                    return True
                if lease.unsettled >= GATHER:
                    return True
                now = time.monotonic()
                if lease.quiet:
                    deadline = min(deadline, now + ENDING_S)
                if wants or lease.unsettled:
                    gathering_until = gathering_until or now + GATHER_S
                    if now >= gathering_until or any(wish.urgent for wish in wants):
                        return True
                left = min(deadline, gathering_until or deadline) - now
                if left <= 0:
                    return False
                # A whole wait without a word is the end of it, whatever the clock says: a test's clock may have stood still,
                # or have come back from another year.
                if not lease.changed.wait(min(left, self._timeout_s)):
                    if gathering_until is None:
                        return False
                    gathering_until = time.monotonic()
                if self._heard():
                    gathering_until = time.monotonic()
            return False

    def _exchange(self) -> None:
        """Settle and take in one round trip, and open what was taken."""
        wishes = self._ask()
        try:
            answer = self._lease.exchange(wishes)
        except BusUnavailable as error:
            self._wait_for_server(error)
            return
        if self._away:
            log.info("queue %r: the server is back", self._queue)
            self._away = False
        drained = self._learn(wishes, answer)
        self._buffer.extend(self._opened(answer.taken))
        if drained and not self._lease.awaits(self._queue, drained) and not self._lease.quiet:
            self._lease.refresh()

    def _ask(self) -> list[Wish]:
        """What it asks for; places are kept for it."""
        with self._lease.changed:
            self._rooms.measure()
            wishes = self._wishes()
            self._rooms.serve(wishes)
            self._rooms.promise(wishes)
        self._turn += 1
        return wishes

    def _learn(self, wishes: Sequence[Wish], answer: Exchange) -> set[str]:
        """Give up hope for the handlers that had no more than they gave. Returns these."""
        came = Counter(map(HANDLER, answer.taken))
        drained: set[str] = set()
        for wish in wishes:
            if not answer.apart and sum(came[handler] for handler in wish.handlers) < wish.limit:
                drained.update(handler for handler, most in wish.limits if came[handler] < most)
        with self._lease.changed:
            self._hopes -= drained
        return drained

    def _opened(self, taken: Iterable[Taken]) -> list[LaneMessage]:
        """Jobs as messages. What cannot be read goes to the dead letters, out of its neighbours' way."""
        clock, messages = self._broker.clock, []
        for one in taken:
            try:
                message = open_job(one, clock)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread and the other jobs go on
                self._bury_unread(one, error)
                continue
            if one.lost >= ALONE:
                log.warning("%d workers have died with %s: it is tried once more, alone", one.lost, message)
            messages.append(message)
        return messages

    def _bury_unread(self, one: Taken, error: Exception) -> None:
        # Ours say what is wrong and quote nothing; of a surprise only the kind is known to be safe to tell.
        why = str(error) if type(error) is ValueError else f"reading it raised {type(error).__name__}"
        log.error("job %s cannot be read and goes to the dead letters: %s", one.job, why)
        self._broker.bury_unread(one, UNDECODABLE)
        self._settle(undecodable(one, why, self._broker.clock.now_ms()))

    def _wait_for_server(self, error: BusUnavailable) -> None:
        """Dramatiq would throw a consumer away that raises; what is in flight is safer in this one."""
        if not self._away:
            log.warning("queue %r: %s; trying on", self._queue, error)
        self._away = True
        with self._lease.changed:
            self._hopes.update(self._broker.handlers_of(self._queue))
        time.sleep(min(0.2, self._timeout_s))
