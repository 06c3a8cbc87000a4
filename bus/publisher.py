"""Publishing: from an event to one atomic append, with one body behind the blocking and the async door.

The body is a generator that never waits itself: it yields what is to be done (a batch to append, or a :class:`Pause`) and is
sent the answer. An id makes every append safe to repeat, so a lost reply is answered by sending the same again until the
deadline; only then is the caller told, with what is known: *refused* or *unknown*.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import NamedTuple

from bus import codec, ids
from bus.bindings import Routing
from bus.causation import CAUSE
from bus.clock import Clock
from bus.errors import BusUnavailable, InvalidEvent, LogClosed, PayloadTooLarge
from bus.position import Position
from bus.publication import Delay, Hooks, Publication
from bus.settings import Limits, check_log
from bus.store import base
from bus.store.base import Appended, Batch, Ended, OwnLimits, Post, Stale
from bus.topics import topic_set

__all__ = ["Answer", "Delay", "Letter", "Pause", "Publication", "Publisher", "Receipt"]

BATCH = 500
"""Posts in one script call at most, so that no call holds the server up for long."""
BATCH_BYTES = 4 << 20

FIRST_PAUSE_S = 0.02
LAST_PAUSE_S = 0.5

log = logging.getLogger("callboard.bus")


class Receipt(NamedTuple):
    """What became of a publish. A duplicate has the position of the first one, and queued no jobs."""

    id: str
    position: Position
    duplicate: bool
    jobs: int


class Letter(NamedTuple):
    """A publication, checked and encoded: nothing about it can fail any more but the way to the store."""

    id: str
    type: str
    topics: str
    data: bytes
    body: bytes
    key: str | None
    token: str
    due: str
    log: str
    own: OwnLimits


class Pause(NamedTuple):
    """Please wait so long."""

    seconds: float


Answer = list[Appended] | Stale | Ended | BusUnavailable | None
"""To a batch: the store's answer, or its failure; to a Pause: None."""

Plan = Generator[Batch | Pause, Answer, list[Receipt]]


class Publisher:
    """Turns events into batches. Safe from any thread; holds the hooks, the cached bindings, and nothing else that changes."""

    def __init__(self, source: str, limits: Limits, clock: Clock) -> None:
        self._source = source
        self._limits = limits
        self._clock = clock
        self._log_limits = base.Limits(limits.cap, int(limits.ttl_s * 1000))
        self._window_ms = int(limits.window_s * 1000)
        self.hooks = Hooks()
        self.forget()

    def forget(self) -> None:
        """Know no bindings, version 0: right for a namespace that has none, and stale (then told so) for any other."""
        self._routing = Routing(Stale(0, {}))

    def letter(self, publication: Publication) -> Letter:
        """Ask the hooks, then check and encode one publication.

        Raises ``InvalidEvent``, ``InvalidTopic``, ``PayloadTooLarge``, ``InvalidLog``, and what the hooks raise.
        """
        publication = self.hooks.ask(publication)
        cause = CAUSE.get()
        key = _checked_key(publication.key)
        written = codec.write(
            publication.event,
            id=_checked_id(publication.id),
            source=self._source,
            now_ms=self._clock.now_ms(),
            topics=topic_set(publication.topics),
            key=key,
            correlationid=cause.correlation if cause else None,
            causationid=cause.id if cause else None,
            traceparent=cause.traceparent if cause else None,
        )
        if len(written.body) > self._limits.max_bytes:
            raise PayloadTooLarge(len(written.body), self._limits.max_bytes)
        return Letter(*written, key, ids.token(), _due(publication), check_log(publication.log), publication.own)

    def plan(self, letters: Sequence[Letter]) -> Plan:
        """Append all, again and again where it is safe and of use, until answered or past the deadline.

        One batch at a time, so that no event is ever passed by a later one.
        """
        receipts: list[Receipt] = []
        deadline, pause_s, unknown = time.monotonic() + self._limits.deadline_s, FIRST_PAUSE_S, False
        for chunk in _chunks(letters):
            while True:
                routing = self._routing
                batch = self._batch(routing, chunk)
                sent_at = time.monotonic()
                answer = yield batch
                if isinstance(answer, BusUnavailable):
                    # Once unknown, always unknown: a later refusal says nothing of what was sent before.
                    unknown = unknown or answer.outcome == "unknown"
                    took_s = time.monotonic() - sent_at  # a server that hangs lets the next attempt take as long
                    if sent_at + took_s + pause_s + took_s > deadline:
                        raise _given_up(answer, chunk[0], unknown=unknown)
                    yield Pause(pause_s)
                    pause_s = min(2 * pause_s, LAST_PAUSE_S)
                    continue
                if isinstance(answer, Ended):
                    raise LogClosed(batch.log, answer.position, chunk[0].id)
                if not isinstance(answer, Stale):
                    break
                self._learn(answer)
            receipts += [
                _receipt(letter, appended, len(post.jobs))
                for letter, post, appended in zip(chunk, batch.posts, answer or [], strict=True)
            ]
            unknown = False
        return receipts

    def _learn(self, stale: Stale) -> None:
        if stale.version != self._routing.version:
            self._routing = Routing(stale)

    def _batch(self, routing: Routing, letters: Sequence[Letter]) -> Batch:
        posts = []
        used: dict[int, int] = {}
        for letter in letters:
            wanted = routing.jobs(letter.type, letter.topics, letter.key, partial(codec.fields, letter.data))
            jobs = tuple([(used.setdefault(route, len(used)), key) for route, key in wanted])
            posts.append(Post(letter.id, letter.token, letter.topics, letter.body, jobs, letter.due))
        routes = tuple([routing.routes[route] for route in used])
        log, own = letters[0].log, letters[0].own
        return Batch(log, self._log_limits, self._window_ms, ids.epoch(), routing.version, routes, tuple(posts), own)


def _chunks(letters: Sequence[Letter]) -> Iterable[list[Letter]]:
    """Runs of one log, of bounded number and size, in order."""
    if len(letters) == 1:
        yield [letters[0]]
        return
    for _, run in groupby(letters, key=lambda letter: (letter.log, letter.own)):
        chunk: list[Letter] = []
        size = 0
        for letter in run:
            if chunk and (len(chunk) >= BATCH or size + len(letter.body) > BATCH_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(letter)
            size += len(letter.body)
        yield chunk


def _receipt(letter: Letter, appended: Appended, jobs: int) -> Receipt:
    position = Position(appended.epoch, appended.seq, appended.token)
    if not appended.duplicate:
        return Receipt(letter.id, position, duplicate=False, jobs=jobs)
    # A lost reply answered by a repeat looks the same from here as somebody else's event under this id, but for its token.
    ours = appended.token == letter.token
    if not ours:
        log.info("event %s was published before; the first one counts", letter.id)
    return Receipt(letter.id, position, not ours, jobs if ours else 0)


def _given_up(error: BusUnavailable, letter: Letter, *, unknown: bool) -> BusUnavailable:
    """The end of a publish: of this event, and of those after it; the ones before it were published."""
    event_id = letter.id
    if not unknown:
        return BusUnavailable(f"{error}; the event was not published", outcome="refused", id=event_id)
    why = f"{error}; whether the event was published is unknown: publish it again with id={event_id!r}, and it counts once"
    return BusUnavailable(why, outcome="unknown", id=event_id)


def _checked_id(id: str | None) -> str | None:
    if id is not None and (not isinstance(id, str) or not 0 < len(id) <= 255 or not id.isprintable()):
        raise InvalidEvent("an id is text of 1 to 255 printable characters")
    return id


def _checked_key(key: str | None) -> str | None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 255 or not key.isprintable()):
        raise InvalidEvent("a key is text of 1 to 255 printable characters, such as an agent's id")
    return key


def _due(publication: Publication) -> str:
    """When the jobs are due, in the words of :class:`bus.store.base.Post`."""
    delay, at = publication.delay, publication.at
    if delay is not None and at is not None:
        raise InvalidEvent("give delay= or at=, not both")
    if at is not None:
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise InvalidEvent("at= is a datetime with a time zone, as in datetime.now(UTC) + timedelta(hours=1)")
        return f"={int(at.timestamp() * 1000)}"
    if delay is None:
        return ""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
        raise InvalidEvent("delay= is a timedelta or a number of seconds, 0 or more")
    return f"+{int(seconds * 1000)}" if seconds else ""
