"""The publishers' half of the ledger: what was published, and what the publisher was told became of it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from bus import Bus, BusUnavailable, Receipt
from tests.faults.work import WORK, Work

__all__ = ["Load", "Outcome", "Publishing"]

Outcome = Literal["accepted", "rejected", "unknown"]


class Publishing:
    """Publishes through a bus, and remembers. Safe from any thread, each event from one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._events: dict[str, tuple[Work, str]] = {}
        self.told: dict[str, Outcome] = {}
        """What the publisher was told first, by id."""
        self.known: dict[str, Outcome] = {}
        """What it knows by now: an event whose fate was unknown may have been published again."""
        self.speechless: list[BusUnavailable] = []
        """Errors that did not say for which event, and with what outcome, as they must."""
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """The next event's number."""
        return next(self._numbers)

    def publish(
        self,
        event: Work,
        *,
        id: str | None = None,
        topic: str = WORK,
        delay_s: float | None = None,
        bus: Bus | None = None,
    ) -> Receipt | BusUnavailable:
        """Publish one event, and note and return what came of it."""
        event_id = id or f"event-{event.n}"
        self._events[event_id] = (event, topic)
        try:
            answer = (bus or self._bus).publish_sync(event, id=event_id, topics=[topic], delay=delay_s)
        except BusUnavailable as error:
            return self._failed(event_id, error)
        self.note(event_id, "accepted")
        return answer

    async def publish_on_loop(self, event: Work, bus: Bus) -> Receipt | BusUnavailable:
        """The same by the async door."""
        event_id = f"event-{event.n}"
        self._events[event_id] = (event, WORK)
        try:
            answer = await bus.publish(event, id=event_id, topics=[WORK])
        except BusUnavailable as error:
            return self._failed(event_id, error)
        self.note(event_id, "accepted")
        return answer

    def _failed(self, id: str, error: BusUnavailable) -> BusUnavailable:
        """A publish that failed says for which event, and with what outcome."""
        self.note(id, "rejected" if error.outcome == "refused" else "unknown")
        if error.id != id or error.outcome is None:
            self.speechless.append(error)
        return error

    def note(self, id: str, outcome: Outcome) -> None:
        """Note what somebody else was told."""
        self.told.setdefault(id, outcome)
        self.known[id] = outcome

    def publish_unknown_again(self) -> None:
        """Publish again, under its id, whatever nobody knows the fate of; now it must be accepted."""
        for event_id in self.ids("unknown"):
            event, topic = self._events[event_id]
            answer = self.publish(event, id=event_id, topic=topic)
            assert isinstance(answer, Receipt), f"{event_id} was published again: {answer}"

    def ids(self, outcome: Outcome) -> list[str]:
        """What is known to have had this outcome."""
        return [event_id for event_id, known in list(self.known.items()) if known == outcome]


class Load:
    """Publishes steadily, on threads of its own, until it has published ``total`` events or its ``with`` ends.

    The events have ``keys`` keys in turn, each of them published by one thread. What falls behind (the server was away)
    is made up for.
    """

    def __init__(
        self,
        publishing: Publishing,
        *,
        per_s: float,
        keys: int,
        total: int | None = None,
        threads: int = 2,
        event: Callable[[int, str], Work] = lambda n, key: Work(n=n, key=key),
    ) -> None:
        assert keys % threads == 0, "a key belongs to one thread"
        self._publishing = publishing
        self._per_s, self._keys, self._total, self._event = per_s, keys, total, event
        self._ending = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(n, threads), name=f"fault load {n}", daemon=True)
            for n in range(threads)
        ]
        self.longest_s = 0.0
        """The longest that any publish took."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        if self._failures and error is None:
            raise self._failures[0]

    @property
    def over(self) -> bool:
        """Whether everything has been published."""
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, first: int, step: int) -> None:
        began = time.monotonic()
        try:
            for n in itertools.count(first, step):
                if self._total is not None and n >= self._total:
                    return
                if self._ending.wait(max(0.0, began + n / self._per_s - time.monotonic())):
                    return
                at = time.monotonic()
                self._publishing.publish(self._event(n, f"k{n % self._keys}"), id=f"load-{n}")
                self.longest_s = max(self.longest_s, time.monotonic() - at)
        except BaseException as failure:
            self._failures.append(failure)
            raise
