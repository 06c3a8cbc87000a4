"""Dead letters: work that nobody could do, with all that is known about why; to be looked at, tried again, or dropped.

Nothing here names Dramatiq, and nothing needs the handlers' code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bus import Bus, BusError, Envelope, codec
from bus.store.base import Dead

__all__ = ["Attempt", "DeadLetter", "DeadLetters", "Wanted"]

PAGE = 200


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed attempt. The traceback has no values of local variables."""

    at: datetime
    error: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One piece of work that ended here. ``lost`` counts the workers that died with it.

    ``event`` is there for a handler's work, ``task`` (id, actor, args, kwargs) for a plain actor's, and neither where the
    bytes could not be read. ``reason`` is ``failed`` or ``poison`` (its workers died under it).
    """

    job: str
    at: datetime
    reason: str
    handler: str
    queue: str
    key: str
    lost: int
    event: Envelope | None
    task: dict[str, Any] | None
    attempts: tuple[Attempt, ...]

    @property
    def type(self) -> str | None:
        """The event's type."""
        return self.event.type if self.event is not None else None

    @property
    def error(self) -> str | None:
        """The kind of the last error."""
        return self.attempts[-1].error if self.attempts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which dead letters: those that fit everything that is given. Times are aware datetimes.

    ``error`` is the kind of the last error, or ``poison`` for work that its workers died of.
    """

    handler: str | None = None
    type: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def fits(self, letter: DeadLetter) -> bool:
        """Whether a letter is one of them."""
        return (
            (self.handler is None or letter.handler == self.handler)
            and (self.type is None or letter.type == self.type)
            and (self.error is None or self.error in (letter.error, letter.reason))
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


class DeadLetters:
    """The dead letters of a bus's namespace. Blocking; opens the bus by itself. Kept for 7 days."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def find(self, wanted: Wanted | None = None, *, limit: int | None = None) -> Iterator[DeadLetter]:
        """Newest first, each once, read in pages: collect them before you drop or replay any."""
        self._bus.usable()
        wanted = wanted or Wanted()
        left, skip = self._bus.store.dead_count(), 0
        found, seen = 0, set[str]()
        while left > 0:
            page = self._bus.store.dead(min(PAGE, left), skip)
            if not page:
                return
            skip, left = skip + len(page), left - len(page)
            for letter in map(_letter, page):
                if limit is not None and found >= limit:
                    return
                if letter.job not in seen and wanted.fits(letter):
                    found += 1
                    seen.add(letter.job)
                    yield letter

    def handlers(self) -> list[str]:
        """The names of all handlers that the store knows: that have dead letters or unfinished work, or are bound."""
        of_letters = {letter.handler for letter in self.find()}
        of_work = {count.handler for count in self._bus.store.census().counts}
        return sorted({*of_letters, *of_work, *self._bus.store.bindings().bindings})

    def count(self) -> int:
        """How many there are."""
        self._bus.usable()
        return self._bus.store.dead_count()

    def get(self, job: str) -> DeadLetter | None:
        """One of them, by its number."""
        self._bus.usable()
        dead = self._bus.store.dead_letter(job)
        return _letter(dead) if dead is not None else None

    def replay(self, jobs: Iterable[str], *, per_second: float | None = None) -> Iterator[tuple[str, bool]]:
        """Have them done again, with all their retries, oldest first, so that each lane keeps its order.

        Yields (job, whether it was still there) as it goes; ``per_second`` paces it. Their attempts so far stay with them.
        """
        self._bus.usable()
        ordered = sorted(set(jobs), key=_number)
        for one in ordered:
            dead = self._bus.store.dead_letter(one)
            done = dead is not None and self._bus.store.replay([(one, _anew(dead))])[0]
            yield one, done
            if per_second and one != ordered[-1]:
                time.sleep(1 / per_second)

    def drop(self, jobs: Sequence[str]) -> int:
        """Drop them for good. Returns how many were there."""
        self._bus.usable()
        return sum(self._bus.store.drop(list(jobs)))


def _number(job: str) -> tuple[int, str]:
    return (int(job), job) if job.isdigit() else (0, job)


def _letter(dead: Dead) -> DeadLetter:
    notes = _notes(dead)
    return DeadLetter(
        job=dead.job,
        at=_time(dead.at_ms),
        reason="failed" if dead.reason == "dead" else dead.reason,
        handler=dead.route.handler,
        queue=dead.route.queue,
        key=dead.key,
        lost=dead.lost,
        event=_event(dead.body),
        task=_task(dead.body),
        attempts=tuple(
            Attempt(_time(one.get("at_ms", 0)), one.get("error", ""), one.get("message", ""), one.get("traceback", ""))
            for one in [*notes.get("before", []), *notes.get("attempts", [])]
        ),
    )


def _anew(dead: Dead) -> bytes:
    """The notes to begin again with: no retries used, and what was tried before still told."""
    notes = _notes(dead)
    return json.dumps({"before": [*notes.get("before", []), *notes.get("attempts", [])][-500:]}).encode()


def _notes(dead: Dead) -> dict[str, Any]:
    try:
        notes = json.loads(dead.notes or b"{}")
    except ValueError:
        return {}
    return notes if isinstance(notes, dict) else {}


def _event(body: bytes) -> Envelope | None:
    if body[:1] != b"e":
        return None
    try:
        return codec.decode(body[1:])
    except BusError:
        return None


def _task(body: bytes) -> dict[str, Any] | None:
    if body[:1] != b"m":
        return None
    try:
        message = json.loads(body[1:])
        return {
            "id": message["message_id"],
            "actor": message["actor_name"],
            "args": message["args"],
            "kwargs": message["kwargs"],
        }
    except (ValueError, KeyError, TypeError):
        return None


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
