"""The store in memory, as threads use it: one lock around plain containers.

Every append, take and settle is a few microseconds under the lock, so the event-loop door may call these directly.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence

from bus.clock import Clock
from bus.position import Position
from bus.store.base import (
    COMPANY,
    NO_LIMITS,
    PATIENCE_MS,
    Announced,
    Appended,
    Batch,
    Beat,
    Bindings,
    Census,
    Company,
    Dead,
    Ended,
    Exchange,
    Facts,
    Job,
    LoopStore,
    OwnLimits,
    Page,
    Post,
    Retrying,
    Settlement,
    Stale,
    Take,
    Whisper,
    Woken,
)
from bus.store.inbox import Inbox
from bus.store.memory.logs import Log, Seen
from bus.store.memory.loop import MemoryLoopStore
from bus.store.memory.queues import Queues
from bus.store.memory.steps import Steps

__all__ = ["MemoryStore"]

RETENTION_MS = 7 * 24 * 3600 * 1000
END_REMEMBERED_MS = 30 * 24 * 3600 * 1000


class MemoryStore:
    """One namespace in this process. See :class:`bus.store.base.Store` for the promises; nothing here outlives it."""

    mode = "memory"

    def __init__(
        self, clock: Clock, *, lease_ms: int, company: Company = COMPANY, patience_ms: int = PATIENCE_MS
    ) -> None:
        self._clock = clock
        self._lease_ms = lease_ms
        self._lock = threading.RLock()
        self._rung = threading.Condition(self._lock)
        self._tokens: set[str] = set()
        self._logs: dict[str, Log] = {}
        self._ended: list[tuple[int, str]] = []
        """When to look at a closed log again, to let go of what is too old in it, or of all of it: a heap."""
        self._seen: Seen[Position] = Seen()
        self._sent: Seen[bool] = Seen()
        self._bindings: dict[str, bytes] = {}
        self._version = 0
        self._queues = Queues(company, patience_ms, self._ring, lambda job: self._steps.end(job, self._clock.now_ms()))
        self._steps = Steps()

    def __repr__(self) -> str:
        return f"<MemoryStore with {len(self._logs)} logs>"

    def open(self) -> None:
        """Nothing to reach."""

    def close(self) -> None:
        """Nothing to close: what was published stays, as it would on a server."""

    def facts(self) -> Facts:
        return Facts("memory")

    def on_loop(self) -> LoopStore:
        return MemoryLoopStore(self)

    # -- the log side --------------------------------------------------------------------------------------------------

    def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        with self._lock:
            now = self._clock.now_ms()
            known = [self._seen.get(post.id, now) for post in batch.posts]
            if None in known and batch.version != self._version:
                return Stale(self._version, dict(self._bindings))
            if None in known and (closed := self._closed(batch.log)) is not None:
                return Ended(closed.position)
            return [self._append(batch, post, now) for post in batch.posts]

    def _append(self, batch: Batch, post: Post, now: int) -> Appended:
        already = self._seen.get(post.id, now)  # asked for each post: one id may stand in a batch twice
        if already is not None:
            return Appended(already, duplicate=True)
        log = self._log(batch.log, batch.epoch)
        entry = log.append(post, batch.limits, batch.own, now)
        position = Position(log.epoch, entry.seq, entry.token)
        self._seen.add(post.id, position, now + batch.window_ms)
        due = _due_ms(post.due, now)
        for route, key in post.jobs:
            self._queues.add(route, key, b"e" + post.body, due, now)
        log.announce(entry)
        return Appended(position, duplicate=False)

    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        with self._lock:
            found = self._log(log, epoch)
            return Ended(found.position) if found.closed else found.whisper(whispers)

    def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        with self._lock:
            now, found = self._clock.now_ms(), self._log(log, epoch)
            position = found.close(own, now, END_REMEMBERED_MS)
            for at_ms in (now + found.ttl_ms + 1, found.forgotten_ms):
                heapq.heappush(self._ended, (at_ms, log))
            return position

    def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        with self._lock:
            return self._log(log, epoch).read(after, limit, self._clock.now_ms())

    def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        with self._lock:
            return self._log(log, epoch).seek(at_ms, self._clock.now_ms())

    def logs(self) -> list[str]:
        with self._lock:
            self._sweep()
            return sorted(name for name, log in self._logs.items() if log.written)

    def _closed(self, name: str) -> Log | None:
        self._sweep()
        log = self._logs.get(name)
        return log if log is not None and log.closed else None

    def _sweep(self) -> None:
        """Let go of what closed logs no longer keep, and of those whose end is forgotten."""
        while self._ended and self._ended[0][0] <= (now := self._clock.now_ms()):
            _, name = heapq.heappop(self._ended)
            log = self._logs.get(name)
            if log is None or not log.closed:
                continue
            log.trim(now)
            if log.forgotten_ms <= now:
                log.begin()
                if not log.listeners:
                    del self._logs[name]

    def _log(self, name: str, epoch: str = "") -> Log:
        self._sweep()
        if name not in self._logs:
            self._logs[name] = Log()
        log = self._logs[name]
        log.epoch = log.epoch or epoch
        return log

    def attach(self, log: str, listener: Inbox) -> Log:
        """Have a loop's inbox told of every announcement from now on."""
        with self._lock:
            found = self._log(log)
            found.listeners.add(listener)
            return found

    def detach(self, log: Log, listener: Inbox) -> None:
        """Stop telling it. Safe twice."""
        with self._lock:
            log.listeners.discard(listener)

    def bind(self, bindings: Bindings) -> int:
        with self._lock:
            if any(self._bindings.get(name) != binding for name, binding in bindings.items()):
                self._bindings |= bindings
                self._version += 1
            return self._version

    def unbind(self, handlers: Sequence[str]) -> list[bool]:
        with self._lock:
            removed = [self._bindings.pop(handler, None) is not None for handler in handlers]
            self._version += any(removed)
            self._queues.forget_idle(handlers)
            return removed

    def bindings(self) -> Stale:
        with self._lock:
            return Stale(self._version, dict(self._bindings))

    # -- the queue side ------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, window_ms: int) -> bool:
        with self._lock:
            now = self._clock.now_ms()
            if self._sent.get(job.id, now):
                return False
            self._sent.add(job.id, True, now + window_ms)  # noqa: FBT003 - a set with windows
            self._queues.add(job.route, job.key, job.body, _due_ms(job.due, now), now)
            return True

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        with self._lock:
            now = self._clock.now_ms()
            settled = [self._queues.settle(worker, settlement, now) for settlement in settlements]
            if settlements:
                self._queues.rejoin(worker)
            wishes = [wish for wish in takes if wish.limit > 0 and wish.handlers]
            taken = [job for wish in wishes for job in self._queues.take(worker, wish, now, self._lease_ms)]
            self._rung.notify_all()
            return Exchange(settled, taken, self._queues.suspects.apart_for(worker, now) if wishes else "")

    def beat(
        self,
        worker: str,
        lease_ms: int,
        ticket: int,
        held: Sequence[tuple[str, int]],
        max_lost: int,
        *,
        serves: Sequence[str] = (),
        unanswered: Sequence[int] = (),
        stopping: bool = False,
        standby: int = 0,  # noqa: ARG002 - nobody does here
    ) -> Beat:
        with self._lock:
            now = self._clock.now_ms()
            forgotten = not self._queues.knows(worker)
            handed_back = self._queues.beat(worker, now + lease_ms, ticket, frozenset(held), frozenset(unanswered))
            self._queues.serving[worker] = frozenset(serves)
            self._queues.stopping(worker, so=stopping)
            recovered, buried = self._queues.recover(now, max_lost)
            next_due = self._queues.promote(now)
            self._queues.expire_letters(now - RETENTION_MS)
            self._queues.ring_again()
            return Beat(next_due, recovered, handed_back, forgotten, buried)

    def leave(self, worker: str) -> int:
        with self._lock:
            return self._queues.beat(worker, None, 0, frozenset(), frozenset())

    def _ring(self, name: str) -> None:
        with self._lock:
            self._tokens.add(name)
            self._rung.notify_all()

    def wait(self, names: Sequence[str], timeout_s: float, worker: str = "", takes: Sequence[Take] = ()) -> Woken:
        # The condition's own deadline: a time.monotonic() of ours would stand still under freezegun, and so would we.
        with self._lock:
            rang = self._rung.wait_for(lambda: self._claim(names), timeout_s)
            may = self._queues.may_collect(worker)
            return Woken(rang, self.exchange(worker, (), takes).taken if may else [])

    def _claim(self, names: Sequence[str]) -> str | None:
        rung = next((name for name in names if name in self._tokens), None)
        if rung is not None:
            self._tokens.discard(rung)
        return rung

    def cues(self, worker: str) -> None:
        """A ring is as quick here."""

    def poke(self, name: str) -> None:
        self._ring(name)

    def pause(self, name: str) -> bool:
        with self._lock:
            return self._queues.pause(name)

    def resume(self, name: str) -> bool:
        with self._lock:
            return self._queues.resume(name)

    def census(self) -> Census:
        with self._lock:
            return self._queues.census()

    def retrying(self, limit: int = 100) -> list[Retrying]:
        with self._lock:
            return self._queues.retrying(limit, self._clock.now_ms())

    def pending(self, queue: str) -> int:
        with self._lock:
            return sum(n for (of, _), n in self._queues.pending.items() if of == queue)

    def queues(self) -> list[str]:
        with self._lock:
            return sorted({queue for queue, _ in self._queues.pending})

    def flush(self, queue: str, handler: str = "") -> int:
        with self._lock:
            dropped = self._queues.flush(queue, handler)
            self._rung.notify_all()
            return dropped

    def replay(self, jobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        with self._lock:
            return [self._queues.replay(job, notes) for job, notes in jobs]

    def drop(self, jobs: Sequence[str]) -> list[bool]:
        with self._lock:
            return [self._queues.drop(job) for job in jobs]

    def dead_letter(self, job: str) -> Dead | None:
        with self._lock:
            return self._queues.dead_letter(job)

    def dead(self, limit: int = 100, skip: int = 0) -> list[Dead]:
        with self._lock:
            return self._queues.dead(limit, skip)

    def dead_count(self) -> int:
        with self._lock:
            return self._queues.dead_count()

    def recall(self, job: str, step: str) -> bytes | None:
        with self._lock:
            return self._steps.recall(job, step, self._clock.now_ms())

    def record(self, job: str, step: str, value: bytes, linger_ms: int) -> bytes:
        with self._lock:
            lives = self._queues.keeps(job)
            return self._steps.record(job, step, value, self._clock.now_ms(), None if lives else linger_ms)


def _due_ms(due: str, now_ms: int) -> int:
    """When a job is due: see :class:`bus.store.base.Post`."""
    if due.startswith("+"):
        return now_ms + int(due[1:])
    return int(due[1:]) if due else 0
