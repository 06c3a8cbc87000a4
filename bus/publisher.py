"""Publishing: from an event to one atomic append, with one body behind the blocking and the async door.

The body is a generator that never waits itself: it yields what is to be done (a batch to append, or a :class:`Pause`) and is
sent the answer. An id makes every append safe to repeat, so a lost reply is answered by sending the same again until the
deadline; only then is the caller told, with what is known: *refused* or *unknown*.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bus import codec, ids
from bus.bindings import Routing
from bus.causation import CAUSE
from bus.clock import Clock
from bus.errors import BusUnavailable, InvalidEvent, LogClosed, PayloadTooLarge
from bus.events import Event
from bus.position import Position
from bus.publication import Delay, Draft, Hooks, Publication, drafted
from bus.settings import DEFAULT_LOG, Limits, check_log
from bus.store import base
from bus.store.base import Appended, Batch, Ended, Post, Stale, Whisper

__all__ = ["Answer", "Delay", "Pause", "Publication", "Publisher", "Receipt"]

BATCH = 500
"""Posts in one round trip at most."""
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

    def batches(self, drafts: Iterable[Draft]) -> list[Batch]:
        """Ask the hooks, then check, encode and match: nothing about it can fail any more but the way to the store.

        Runs of one log become batches of bounded number and size, in order. Raises ``InvalidEvent``, ``InvalidTopic``,
        ``PayloadTooLarge``, ``InvalidLog``, and what the hooks raise.
        """
        routing, size = self._routing, 0
        batches: list[Batch] = []
        for draft in drafts:
            event, topics, key, given_id, delay, at, log, own = self._asked(draft)
            event_id, kind, line, data, body = self._written(event, topics, key, given_id)
            due = "" if delay is None and at is None else _due(delay, at)
            post = Post(event_id, ids.token(), line, body, routing.jobs(kind, line, key, data), due)
            log, size = DEFAULT_LOG if log is None else check_log(log), size + len(body)
            if batches:
                last = batches[-1]
                if last.log == log and last.own == own and len(last.posts) < BATCH and size <= BATCH_BYTES:
                    last.posts.append(post)
                    continue
            # A token is as random as an epoch, and none has been offered with this one before.
            batches.append(Batch(log, self._log_limits, self._window_ms, post.token, routing.version, [post], own))
            size = len(body)
        return batches

    def whisper(self, draft: Draft) -> tuple[str, str, Whisper]:
        """An ephemeral event, checked as all others: the log's name, its id, and what is to be told."""
        *_, delay, at, _, _ = draft
        if delay is not None or at is not None:
            raise InvalidEvent("an ephemeral event has no jobs to delay: leave delay= and at= out")
        event, topics, key, given_id, _, _, log, _ = self._asked(draft)  # a hook's delay is for those that have jobs
        event_id, _, line, _, body = self._written(event, topics, key, given_id)
        return check_log(log), event_id, Whisper(line, body)

    def _asked(self, draft: Draft) -> Draft:
        return drafted(self.hooks.ask(Publication(*draft))) if self.hooks.all else draft

    def _written(
        self, event: Event | Mapping[str, Any], topics: Iterable[str], key: str | None, id: str | None
    ) -> codec.Written:
        written = codec.write(
            event,
            topics,
            key if key is None else _checked_key(key),
            id=id if id is None else _checked_id(id),
            source=self._source,
            now_ms=self._clock.now_ms(),
            cause=CAUSE.get(),
        )
        if len(written[-1]) > self._limits.max_bytes:
            raise PayloadTooLarge(len(written[-1]), self._limits.max_bytes)
        return written

    def plan(self, batches: Sequence[Batch]) -> Plan:
        """Append all, again and again where it is safe and of use, until answered or past the deadline.

        One batch at a time, so that no event is ever passed by a later one. Where a store took only the first of one, the
        rest is sent again, and so is told what was in its way. Where something of a batch may have gone in, it is sent again
        with another epoch, for the log may have lived and ended meanwhile.
        """
        receipts: list[Receipt] = []
        deadline, pause_s, unknown = time.monotonic() + self._limits.deadline_s, FIRST_PAUSE_S, False
        for first in batches:
            batch = first if first.version == self._routing.version else _matched(first, self._routing)
            while True:
                sent_at = time.monotonic()
                answer = yield batch
                if isinstance(answer, list):
                    receipts += map(_receipt, batch.posts, answer)
                    if len(answer) == len(batch.posts):
                        break
                    batch = batch._replace(epoch=ids.epoch(), posts=batch.posts[len(answer) :])
                elif isinstance(answer, BusUnavailable):
                    # Once unknown, always unknown: a later refusal says nothing of what was sent before.
                    unknown = unknown or answer.outcome == "unknown"
                    took_s = time.monotonic() - sent_at  # a server that hangs lets the next attempt take as long
                    if sent_at + took_s + pause_s + took_s > deadline:
                        raise _given_up(answer, batch.posts[0].id, unknown=unknown)
                    yield Pause(pause_s)
                    pause_s = min(2 * pause_s, LAST_PAUSE_S)
                    batch = batch._replace(epoch=ids.epoch())
                elif isinstance(answer, Ended):
                    raise LogClosed(batch.log, answer.position, batch.posts[0].id)
                elif isinstance(answer, Stale):
                    # Not before it is told: what went in already, its answer lost, has the jobs of the version it was sent with.
                    if answer.version != self._routing.version:
                        self._routing = Routing(answer)
                    batch = _matched(batch, self._routing)
            unknown = False
        return receipts


def _matched(batch: Batch, routing: Routing) -> Batch:
    """The same events for the handlers of now. Rare, so they are read back from what was written."""
    posts = []
    for post in batch.posts:
        envelope = codec.decode(post.body, max_bytes=len(post.body))
        jobs = routing.jobs(envelope.type, post.topics, envelope.key, envelope.data)
        posts.append(post._replace(jobs=jobs))
    return batch._replace(version=routing.version, posts=posts)


def _receipt(post: Post, appended: Appended) -> Receipt:
    position, duplicate = appended
    if not duplicate:
        return Receipt(post.id, position, False, len(post.jobs))  # noqa: FBT003 - by position is faster
    # A lost reply answered by a repeat looks the same from here as somebody else's event under this id, but for its token.
    ours = position.token == post.token
    if not ours:
        log.info("event %s was published before; the first one counts", post.id)
    return Receipt(post.id, position, not ours, len(post.jobs) if ours else 0)


def _given_up(error: BusUnavailable, event_id: str, *, unknown: bool) -> BusUnavailable:
    """The end of a publish: of this event, and of those after it; the ones before it were published."""
    if not unknown:
        return BusUnavailable(f"{error}; the event was not published", outcome="refused", id=event_id)
    why = f"{error}; whether the event was published is unknown: publish it again with id={event_id!r}, and it counts once"
    return BusUnavailable(why, outcome="unknown", id=event_id)


def _checked_id(id: str) -> str:
    if not isinstance(id, str) or not 0 < len(id) <= 255 or not id.isprintable():
        raise InvalidEvent("an id is text of 1 to 255 printable characters")
    return id


def _checked_key(key: str) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= 255 or not key.isprintable():
        raise InvalidEvent("a key is text of 1 to 255 printable characters, such as an agent's id")
    return key


def _due(delay: Delay | None, at: datetime | None) -> str:
    """When the jobs are due, in the words of :class:`bus.store.base.Post`."""
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
