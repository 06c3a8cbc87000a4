"""Queues as people look at them: how much work there is, what it waits for, and who does it; pausing; bindings that go.

Nothing here names Dramatiq, and nothing needs the handlers' code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bus import Bus
from bus.store.base import Census, Count, Retrying
from workers.errors import UnknownName

__all__ = ["HeldLane", "QueueState", "Queues"]

_TIME = re.compile(rb'"time":"([^"]{10,40})"')
_TYPE = re.compile(rb'"(?:type|actor_name)":\s*"([^"]{1,200})"')
_STAMP = re.compile(rb'"message_timestamp":\s*([0-9]{10,16})')


@dataclass(frozen=True, slots=True)
class QueueState:
    """The unfinished work of one handler (or plain actor) on one queue.

    ``unfinished`` counts every job. Each is ``ready`` (of a lane only the head), in a lane behind another (``in_lanes``),
    ``delayed``, ``retrying`` (the head of a lane that waits for its retry), a suspect (two of its workers died: it is
    taken in small company), or in flight, by worker. ``oldest_s`` is the age of the oldest ready one, ``consumers`` counts the
    workers that serve the handler, ``bound`` says whether events become work for it. ``paused_as`` is what was paused, and is to
    be resumed: the queue's name, or else the handler's.
    """

    queue: str
    handler: str
    unfinished: int
    ready: int
    in_lanes: int
    delayed: int
    retrying: int
    suspects: int
    in_flight: Mapping[str, int]
    oldest_s: float | None
    consumers: int
    bound: bool
    paused: bool
    paused_as: str | None

    @property
    def orphaned(self) -> bool:
        """Whether work comes, or waits, that nobody serves."""
        return self.consumers == 0 and (self.bound or self.unfinished > 0)


@dataclass(frozen=True, slots=True)
class HeldLane:
    """A lane that waits for the retry of its head: what that is, what went wrong with it, and how many wait behind."""

    queue: str
    handler: str
    key: str
    job: str
    what: str
    attempts: int
    error: str
    due_in_s: float
    behind: int


class Queues:
    """The queues of a bus's namespace. Blocking; opens the bus by itself."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def look(self) -> list[QueueState]:
        """All of them, and all bound handlers, by name. Costs the server more than a publish; one look a second is fine."""
        self._bus.usable()
        census, bound = self._bus.store.census(), self._bound()
        counts = {(count.queue, count.handler): count for count in census.counts}
        now_ms = self._bus.clock.now_ms()
        return [
            _state(*name, counts.get(name), census, now_ms, bound=name in bound) for name in sorted({*counts, *bound})
        ]

    def held(self, limit: int = 100) -> list[HeldLane]:
        """Lanes that wait for a retry, the next due first."""
        self._bus.usable()
        return [_held(lane) for lane in self._bus.store.retrying(limit)]

    def pause(self, name: str) -> bool:
        """Have no worker take from a queue, or for a handler, until :meth:`resume`. What was taken is finished.

        Returns whether that changed something. Raises :class:`~workers.errors.UnknownName`.
        """
        changed = [self._bus.store.pause(one) for one in self._meant(name)]
        return any(changed)

    def resume(self, name: str) -> bool:
        """Undo it; waiting work goes on at once. Returns whether it was paused. Raises as :meth:`pause`."""
        changed = [self._bus.store.resume(one) for one in self._meant(name)]
        return any(changed)

    def forget(self, handler: str) -> bool:
        """Remove a handler's binding: events no longer become work for it. What is queued already stays queued.

        A worker that declares the handler binds it again when it boots. Returns whether there was one.
        """
        self._bus.usable()
        return self._bus.store.unbind([handler])[0]

    def drop(self, name: str) -> int:
        """Drop all unfinished jobs of a queue, or of a handler, for good, and return how many there were.

        Those in flight too: their handlers run to their end, and nothing comes of it. Raises
        :class:`~workers.errors.UnknownName`.
        """
        return sum(self._bus.store.flush(*one.split("|")) for one in self._meant(name))

    def paused(self) -> list[str]:
        """What is paused, as a person calls it: queues, and handlers. Also where nothing is bound and no work waits."""
        self._bus.usable()
        return sorted({_called(name) for name in self._bus.store.census().paused})

    def _bound(self) -> set[tuple[str, str]]:
        found = [json.loads(binding) for binding in self._bus.store.bindings().bindings.values()]
        return {(binding["queue"], binding["handler"]) for binding in found}

    def _known(self) -> set[tuple[str, str]]:
        self._bus.usable()
        return {(count.queue, count.handler) for count in self._bus.store.census().counts} | self._bound()

    def _meant(self, name: str) -> list[str]:
        """The store's names for what a person calls so: a queue, or a handler on whichever queues it works.

        What is paused is known, whatever else became of it: or nobody could resume it.
        """
        known, paused = sorted(self._known()), self._bus.store.census().paused
        if name in paused or name in {queue for queue, _ in known}:
            return [name]
        places = {f"{queue}|{handler}" for queue, handler in known} | {one for one in paused if "|" in one}
        meant = sorted(place for place in places if _called(place) == name)
        if not meant:
            raise UnknownName(name, sorted({part for pair in known for part in pair} | set(map(_called, paused))))
        return meant


def _called(name: str) -> str:
    """What a person calls a queue, or a handler on a queue."""
    return name.rpartition("|")[2]


def _state(queue: str, handler: str, count: Count | None, census: Census, now_ms: int, *, bound: bool) -> QueueState:
    count = count or Count(queue, handler, 0, 0, 0, 0, 0, {}, b"")
    name = f"{queue}|{handler}"
    flying = sum(count.in_flight.values())
    return QueueState(
        queue=queue,
        handler=handler,
        unfinished=count.unfinished,
        ready=count.ready,
        in_lanes=max(0, count.unfinished - count.ready - count.delayed - count.held - count.suspects - flying),
        delayed=count.delayed,
        retrying=count.held,
        suspects=count.suspects,
        in_flight=dict(count.in_flight),
        oldest_s=_age_s(count.oldest, now_ms),
        consumers=sum(name in serves for serves in census.serving.values()),
        bound=bound,
        paused=bool(census.paused & {queue, name}),
        paused_as=queue if queue in census.paused else handler if name in census.paused else None,
    )


def _age_s(body: bytes, now_ms: int) -> float | None:
    """How old a job is, by what its own bytes say."""
    if match := _TIME.search(body[:2000]):
        try:
            return max(0.0, now_ms / 1000 - datetime.fromisoformat(match[1].decode()).timestamp())
        except ValueError:
            return None
    match = _STAMP.search(body)
    return max(0, now_ms - int(match[1])) / 1000 if match else None


def _held(lane: Retrying) -> HeldLane:
    what = _TYPE.search(lane.body[:4000])
    attempts = _attempts(lane.notes)
    return HeldLane(
        queue=lane.route.queue,
        handler=lane.route.handler,
        key=lane.key,
        job=lane.job,
        what=what[1].decode(errors="replace") if what else "",
        attempts=len(attempts),
        error=str(attempts[-1].get("error", "")) if attempts else "",
        due_in_s=lane.due_in_ms / 1000,
        behind=lane.behind,
    )


def _attempts(notes: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(notes or b"{}").get("attempts", [])
    except (ValueError, AttributeError):
        return []
    return found if isinstance(found, list) else []
