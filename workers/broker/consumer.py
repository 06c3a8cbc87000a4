"""A consumer: how one queue's jobs reach Dramatiq's worker threads.

It takes as many as it has room for. Room follows the pace of the work: what is settled in ``AHEAD_S`` seconds, so that
fast handlers are fed in large gulps while slow ones leave the jobs to other processes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from dramatiq import Consumer, MessageProxy

from bus import BusUnavailable
from bus.store.base import Settlement
from workers.broker.lease import GATHER, Lease
from workers.broker.message import LaneMessage, open_job, undecodable

__all__ = ["LaneConsumer"]

AHEAD_S = 0.05
MOST_AHEAD = 256
PACE_S = 0.1
GATHER_S = 0.005
"""How long settlements wait for company."""

log = logging.getLogger("callboard.workers")


class Declared(Protocol):
    """What a consumer asks of its broker."""

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The handlers that this process serves on a queue."""

    def buried(self, message: LaneMessage) -> None:
        """A message of this process went to the dead letters."""


class LaneConsumer(Consumer):
    """Used by one consumer thread; ``ack`` and ``nack`` come from any worker thread and never block."""

    def __init__(self, broker: Declared, lease: Lease, queue: str, prefetch: int, timeout_ms: int) -> None:
        self._broker = broker
        self._lease = lease
        self._queue = queue
        self._least = max(1, prefetch // 2)
        self._most = prefetch if prefetch == 1 else max(prefetch, MOST_AHEAD)
        self._timeout_s = timeout_ms / 1000
        self._buffer: deque[LaneMessage] = deque()
        self._settled = 0
        self._pace_per_s = 0.0
        self._looked_at = time.monotonic()
        self._drained = False
        self._away = False
        self._turn = 0

    # -- what Dramatiq calls -------------------------------------------------------------------------------------------

    def __next__(self) -> MessageProxy | None:
        """The next message, or ``None`` after the timeout. A lost connection is waited out here, never raised."""
        if not self._buffer and self._await_reason(time.monotonic() + self._timeout_s):
            self._exchange()
        return self._buffer.popleft() if self._buffer else None

    def ack(self, message: MessageProxy) -> None:
        self._end(message)

    def nack(self, message: MessageProxy) -> None:
        self._end(message)
        if isinstance(message, LaneMessage):
            self._broker.buried(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Hand jobs that were not begun back to the heads of their lanes; last first, so that they keep their order."""
        for message in reversed(list(messages)):
            if isinstance(message, LaneMessage):
                self._settle(message.handed_back())

    def close(self) -> None:
        """Hand back what was taken and not passed on, and settle all that waits."""
        self.requeue(self._buffer)
        self._buffer.clear()
        try:
            self._lease.exchange([])
        except BusUnavailable as error:
            log.warning("the last settlements of queue %r wait for the server: %s", self._queue, error)

    def has_room(self) -> bool:
        """Whether a ring would tell it something: it has found its queue empty, and could take. Under ``changed``."""
        return self._drained and self._room > 0

    # -- the inside ----------------------------------------------------------------------------------------------------

    def _end(self, message: MessageProxy) -> None:
        if isinstance(message, LaneMessage):
            self._settle(message.settlement())

    def _settle(self, settlement: Settlement) -> None:
        with self._lease.changed:
            self._settled += 1
            self._lease.settle(self._queue, settlement)

    @property
    def _ahead(self) -> int:
        """How many jobs to have in this process, running ones included."""
        return min(self._most, max(self._least, int(self._pace_per_s * AHEAD_S)))

    @property
    def _room(self) -> int:
        return 0 if self._lease.quiet else self._ahead - self._lease.load(self._queue)

    def _await_reason(self, deadline: float) -> bool:
        """Wait until there is something to exchange; ``False`` if the time is over first."""
        lease = self._lease
        with lease.changed:
            if lease.has_rung(self._queue):
                self._drained = False
            gathering_until: float | None = None
            while True:
                wants = not self._drained and self._room > 0
                if lease.load(self._queue) == 0 and (wants or lease.unsettled):
                    return True
                if lease.unsettled >= GATHER:
                    return True
                now = time.monotonic()
                if wants or lease.unsettled:
                    gathering_until = gathering_until or now + GATHER_S
                    if now >= gathering_until or (wants and 2 * self._room >= self._ahead):
                        return True
                left = min(deadline, gathering_until or deadline) - now
                if left <= 0:
                    return False
                lease.changed.wait(left)
                if lease.has_rung(self._queue):
                    self._drained = False
                    gathering_until = time.monotonic()

    def _exchange(self) -> None:
        """Settle and take in one round trip, and open what was taken."""
        with self._lease.changed:
            self._measure()
            room = self._room
        handlers = self._broker.handlers_of(self._queue)
        self._turn += 1
        turn = self._turn % len(handlers) if handlers else 0
        wishes = [(self._queue, handlers[turn:] + handlers[:turn], room)] if handlers and room > 0 else []
        try:
            taken = self._lease.exchange(wishes)
        except BusUnavailable as error:
            self._wait_for_server(error)
            return
        if self._away:
            log.info("queue %r: the server is back", self._queue)
            self._away = False
        self._drained = (bool(wishes) and len(taken) < room) or (self._drained and not wishes)
        for one in taken:
            try:
                self._buffer.append(open_job(one))
            except ValueError as error:
                log.error("job %s cannot be read and goes to the dead letters: %s", one.job, error)
                self._settle(undecodable(one, str(error)))
        if self._drained and not self._lease.awaits(self._queue) and not self._lease.quiet:
            self._lease.refresh()

    def _measure(self) -> None:
        """Follow the pace at which jobs are settled, smoothed over ``PACE_S``; a longer silence forgets what was."""
        now = time.monotonic()
        elapsed = now - self._looked_at
        if elapsed > 0.001:
            self._pace_per_s += min(1.0, elapsed / PACE_S) * (self._settled / elapsed - self._pace_per_s)
            self._settled, self._looked_at = 0, now

    def _wait_for_server(self, error: BusUnavailable) -> None:
        """Dramatiq would throw a consumer away that raises; what is in flight is safer in this one."""
        if not self._away:
            log.warning("queue %r: %s; trying on", self._queue, error)
        self._away = True
        self._drained = False
        time.sleep(min(0.2, self._timeout_s))
