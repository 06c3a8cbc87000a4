"""What ``broker.queues[name]`` is: the store's work for one queue, with the part of ``queue.Queue`` that tests use."""

from __future__ import annotations

import queue
import time
from typing import Any, Protocol

from dramatiq import Message

from bus import ids
from bus.clock import Clock
from bus.store.base import Settlement, Store, Take
from workers.broker.message import open_job

__all__ = ["QueueView"]

GET_POLL_S = 0.01


class Declared(Protocol):
    """What a view asks of its broker."""

    @property
    def store(self) -> Store:
        """The bus's store, reached."""

    @property
    def clock(self) -> Clock:
        """The bus's."""

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The handlers that this process serves on a queue."""

    def put(self, message: Message[Any], due: str = "") -> None:
        """Queue a message as it is."""

    def join(self, queue_name: str, *, timeout: int | None = None, fail_fast: bool | None = None) -> None:
        """Wait until a queue has no unfinished jobs."""


class QueueView:
    """Each call takes a round trip or two, and some cost the store more than work does: this is for tests."""

    def __init__(self, broker: Declared, name: str) -> None:
        self._broker = broker
        self._name = name

    def qsize(self) -> int:
        """Jobs that no worker has taken, delayed ones and those that wait for a retry included."""
        counts = [count for count in self._broker.store.census().counts if count.queue == self._name]
        return sum(count.unfinished - sum(count.in_flight.values()) for count in counts)

    @property
    def unfinished_tasks(self) -> int:
        """Jobs that are not finished, those in flight included."""
        return self._broker.store.pending(self._name)

    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return self.qsize() == 0

    def put(self, item: bytes) -> None:
        """Queue an encoded message as it stands, past the middleware. Raises ``DecodeError`` for other bytes."""
        message: Message[Any] = Message.decode(item)
        if message.queue_name != self._name:
            raise ValueError(f"the message is for queue {message.queue_name!r}, and this is {self._name!r}")
        self._broker.put(message)

    def get(self, block: bool = True, timeout: float | None = None) -> bytes:  # noqa: FBT001, FBT002 - as queue.Queue's
        """Take a job for good and return its message, encoded. Raises ``queue.Empty``.

        Only the jobs of actors that this process declares can be had.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (data := self._take()) is None:
            if not block or (deadline is not None and time.monotonic() >= deadline):
                raise queue.Empty
            time.sleep(GET_POLL_S)
        return data

    def get_nowait(self) -> bytes:
        """As ``get(block=False)``."""
        return self.get(block=False)

    def join(self) -> None:
        """Wait until nothing is unfinished."""
        self._broker.join(self._name, fail_fast=False)

    def _take(self) -> bytes | None:
        store, worker = self._broker.store, f"get-{ids.token()}"
        handlers = self._broker.handlers_of(self._name)
        if not handlers:
            return None
        try:
            for one in store.exchange(worker, [], [Take(1, self._name, handlers, 1)]).taken:
                data: bytes = open_job(one, self._broker.clock).encode()
                store.exchange(worker, [Settlement(one.job, one.ticket, "ack")], [])
                return data
        finally:
            store.leave(worker)  # what could not be read is for a worker, who puts it into the dead letters
        return None
