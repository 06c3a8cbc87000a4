"""A hand at work: a worker without threads, which takes one job when it is told to and runs it to its end.

It is Dramatiq's worker and ours, unstarted: jobs pass the same middleware, books and settlements as in a worker process.
What those have and a hand has not is what would make a test wait: threads, a bell, a keeper.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dramatiq import Worker
from dramatiq.worker import ConsumerThread, WorkerThread

from bus import BusUnavailable
from workers.broker import LaneBroker, LaneMessage
from workers.broker.consumer import LaneConsumer
from workers.broker.room import Wish
from workers.errors import CannotDrain
from workers.loop.limits import Limits
from workers.loop.performance import Performance

__all__ = ["Hand"]

T = TypeVar("T")

MAX_LOST = 5
PATIENCE_S = 0.1
MOST_TRIES = 50
"""How often a server that is away is asked again."""


class _Consumer(LaneConsumer):
    """One that takes a single job, and only when it is told to."""

    def take(self) -> LaneMessage | None:
        """The next job of this queue that is due. One that cannot be read is settled on the way, as in a worker."""
        while handlers := self._in_turn():
            self._turn += 1
            wish = Wish(self._queue, handlers, 1)
            with self._lease.changed:
                self._rooms.promise([wish])
            taken = self._lease.exchange([wish]).taken
            messages = self._opened(taken)
            if messages or not taken:
                return messages[0] if messages else None
        return None


class Hand:
    """Made by :meth:`at`, for one drain. Blocks for round trips; belongs to one thread at a time."""

    def __init__(self, broker: LaneBroker) -> None:
        self._broker = broker
        self._worker = Worker(broker)
        self._thread = WorkerThread(
            broker=broker, consumers=self._worker.consumers, work_queue=self._worker.work_queue, worker_timeout=0
        )
        self._consumers: dict[str, _Consumer] = {}
        self._round: list[str] = []
        self._unsure = False
        """Whether an answer was lost."""

    @classmethod
    @contextmanager
    def at(cls, broker: LaneBroker) -> Iterator[Hand]:
        """A hand; at the end what it holds is handed back. Raises :class:`~workers.errors.CannotDrain` beside a worker."""
        if broker.lease.kept:
            raise CannotDrain(
                "a worker runs in this process and takes the work itself: wait for it with app.broker.join(queue), "
                "or drain without a worker"
            )
        broker.lease.books.quiet = False
        hand = cls(broker)
        try:
            yield hand
        finally:
            hand._leave()

    def take(self) -> LaneMessage | None:
        """A job that is due, from each queue in turn; ``None`` where there is none."""
        message = self._take()
        self._unsure = True
        while message is None and self._unsure:  # what a lost answer had brought is back only after another beat
            self._unsure = False
            self._reach(self._beat)
            message = self._take()
        return message

    def _take(self) -> LaneMessage | None:
        for _ in range(len(self._broker.queues)):
            message = self._reach(self._consumer(self._next_queue()).take)
            if message is not None:
                return message
        return None

    def _next_queue(self) -> str:
        self._round = [queue for queue in self._round if queue in self._broker.queues] or list(self._broker.queues)
        return self._round.pop(0)

    def _beat(self) -> None:
        """What any worker's beat does: leases that ended, work that is due, letters that are old, takes that were lost."""
        books, lease_ms = self._broker.lease.books, int(self._broker.bus.limits.lease_s * 1000)
        with books.changed:
            ticket, unanswered, held = books.statement()
        self._broker.store.beat(books.worker, lease_ms, ticket, held, MAX_LOST, unanswered=unanswered)

    def _consumer(self, queue: str) -> _Consumer:
        if queue not in self._consumers:
            consumer = _Consumer(self._broker, self._broker.lease, queue, 1, 0, exact=True)
            thread = ConsumerThread(
                broker=self._broker,
                queue_name=queue,
                prefetch=1,
                work_queue=self._worker.work_queue,
                worker_timeout=0,
            )
            thread.consumer = consumer
            self._worker.consumers[queue] = thread
            self._consumers[queue] = consumer
        return self._consumers[queue]

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, message: LaneMessage) -> None:
        """Run a sync job on this thread, hooks, settling and all. Raises nothing of the handler's."""
        self._worker.work_queue.put(None)  # type: ignore[arg-type] # counted as done by the thread
        self._worker.work_queue.get()
        self._thread.process_message(message)

    def performance(self, message: LaneMessage, loop: asyncio.AbstractEventLoop) -> Performance | None:
        """What runs an async job on a loop; ``None`` for a sync one."""
        function = self._broker.staff.coroutine_of(message.actor_name)
        if function is None:
            return None

        def soon(act: Callable[..., object], *arguments: object) -> None:
            loop.call_soon_threadsafe(act, *arguments)

        performance = Performance(self._broker, self._worker, message, function, soon)
        message.performance = performance
        return performance

    async def play(self, performance: Performance) -> None:
        """The coroutine of an async job, between its hooks. If this is cancelled, the coroutine is."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        limits = Limits()
        performance.play(loop, limits, lambda _: over.set_result(None))
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError as cancelled:
            performance.interrupt(cancelled)
            await over
            performance.leave()
            raise
        finally:
            limits.close()

    # -- the store -----------------------------------------------------------------------------------------------------

    def _reach(self, act: Callable[[], T]) -> T:
        """Do something in the store, about as patiently as a publish does."""
        for _ in range(MOST_TRIES):
            try:
                return act()
            except BusUnavailable:
                self._unsure = True
                time.sleep(PATIENCE_S)
        return act()

    def _leave(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()
        lease = self._broker.lease
        lease.books.store().leave(lease.worker)
        lease.books.clear()
