"""What the checks are made of: batches and jobs with defaults, a worker to play, and waiting with a deadline."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from bus import ids
from bus.position import Position
from bus.store.base import (
    NO_LIMITS,
    Appended,
    Batch,
    Beat,
    Ended,
    Exchange,
    Job,
    Limits,
    OwnLimits,
    Post,
    Route,
    Settlement,
    Stale,
    Store,
    Take,
    Taken,
    Verdict,
    Whisper,
)

__all__ = [
    "CALM_LEASE_MS",
    "NEVER",
    "SHORT_LEASE_MS",
    "Check",
    "Worker",
    "append",
    "batch",
    "bodies",
    "collected",
    "enqueue",
    "post",
    "until",
    "whisper",
    "write",
]

Check = Callable[[Store], "Awaitable[None] | None"]

CALM_LEASE_MS = 60_000
"""The lease of a store under all checks but :data:`bus.testing.LEASE_CHECKS`: none runs out by itself."""
SHORT_LEASE_MS = 40
NEVER = "+3600000"
"""Due long after the check has ended."""

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, timeout_s: float = 5.0) -> T:
    """``condition()`` as soon as it is true. Blocks; ``what`` completes the sentence "waited for ..."."""
    deadline = time.perf_counter() + timeout_s
    while not (last := condition()):
        assert time.perf_counter() < deadline, f"waited {timeout_s:g} s for {what}; saw {last!r} last"
        time.sleep(0.003)
    return last


def collected(names: Mapping[str, object]) -> tuple[Check, ...]:
    """All checks of a module, in the order in which they stand there."""
    return tuple(check for name, check in names.items() if name.startswith("check_") and callable(check))


# -- the log side ------------------------------------------------------------------------------------------------------


HOME = Route("q", "h", 1)
"""Where the workers of these checks look for work."""


def post(body: bytes = b"body", *, id: str = "", jobs: Iterable[tuple[Route, str]] = (), due: str = "") -> Post:
    """An event with an id and a token of its own."""
    return Post(id or secrets.token_hex(8), ids.token(), "global", body, tuple(jobs), due)


def batch(
    *posts: Post,
    log: str = "main",
    epoch: str = "e1",
    version: int = 0,
    cap: int = 10_000,
    ttl_ms: int = 3_600_000,
    window_ms: int = 60_000,
    own: OwnLimits = NO_LIMITS,
) -> Batch:
    """Events for one log, with limits that nothing reaches."""
    return Batch(log, Limits(cap, ttl_ms), window_ms, epoch, version, list(posts), own)


def append(store: Store, one: Batch) -> list[Appended]:
    """Append a batch whose bindings are current, as a publisher does: what the store left over is appended again."""
    answers: list[Appended] = []
    while True:
        answer = store.append(one._replace(posts=one.posts[len(answers) :]))
        assert not isinstance(answer, Stale), f"it was matched with the current bindings, and the answer is {answer}"
        assert not isinstance(answer, Ended), f"nobody closed the log, and the answer is {answer}"
        answers += answer
        assert len(answers) <= len(one.posts), f"{len(one.posts)} posts and {len(answers)} answers"
        if len(answers) == len(one.posts):
            return answers
        assert answer, "nothing of it was appended, and nobody said why"


def write(store: Store, *contents: bytes, log: str = "main") -> list[Appended]:
    """Append one event for each of the bodies, in one batch."""
    return append(store, batch(*map(post, contents), log=log))


def whisper(
    store: Store, body: bytes = b"", *, topics: str = "global", log: str = "main", epoch: str = "e"
) -> Position:
    """Announce one thing to live listeners."""
    announced = store.announce(log, epoch, [Whisper(topics, body)])
    assert not isinstance(announced, Ended), f"nobody closed the log, and the answer is {announced}"
    return announced.position


# -- the queue side ----------------------------------------------------------------------------------------------------


def enqueue(
    store: Store,
    *contents: bytes,
    key: str = "",
    queue: str = "q",
    handler: str = "h",
    priority: int = 1,
    due: str = "",
) -> None:
    """Queue one job for each of the bodies, in order."""
    for body in contents:
        job = Job(secrets.token_hex(8), Route(queue, handler, priority), key, body, due)
        assert store.enqueue(job, 60_000), f"a job with a new id was not queued: {job}"


class Worker:
    """A worker as a check plays it: it counts its tickets, and holds nothing but what it was handed."""

    def __init__(self, store: Store, name: str = "w1") -> None:
        self.store = store
        self.name = name
        self.tickets = 0

    def wish(self, limit: int = 100, *, handlers: tuple[str, ...] = ("h",), queue: str = "q") -> Take:
        """The next take."""
        self.tickets += 1
        return Take(self.tickets, queue, handlers, limit)

    def take(self, limit: int = 100, *, handlers: tuple[str, ...] = ("h",), queue: str = "q") -> list[Taken]:
        """Take, and settle nothing."""
        wish = self.wish(limit, handlers=handlers, queue=queue)
        taken = self.store.exchange(self.name, (), [wish]).taken
        assert len(taken) <= limit, f"{limit} jobs were asked for, and {len(taken)} came"
        assert all(one.ticket == wish.ticket for one in taken), f"not all tickets are {wish.ticket}: {taken}"
        return taken

    def take_one(self, *, handlers: tuple[str, ...] = ("h",), queue: str = "q") -> Taken:
        """Take the one job that must be there."""
        taken = self.take(1, handlers=handlers, queue=queue)
        assert len(taken) == 1, "nothing could be taken"
        return taken[0]

    def settle(self, taken: Taken, verdict: Verdict = "ack", delay_ms: int = 0, notes: bytes = b"") -> bool:
        """Settle, and take nothing."""
        settlement = Settlement(taken.job, taken.ticket, verdict, delay_ms, notes)
        (settled,) = self.store.exchange(self.name, [settlement], ()).settled
        return settled

    def settle_and_take(self, taken: Taken, limit: int = 100) -> Exchange:
        """Both in one call."""
        return self.store.exchange(self.name, [Settlement(taken.job, taken.ticket, "ack")], [self.wish(limit)])

    def beat(
        self,
        held: Iterable[Taken] = (),
        *,
        lease_ms: int = CALM_LEASE_MS,
        received: int | None = None,
        max_lost: int = 1_000,
        stopping: bool = False,
    ) -> Beat:
        """Beat; by default for all tickets so far."""
        received = self.tickets if received is None else received
        named = [(one.job, one.ticket) for one in held]
        return self.store.beat(self.name, lease_ms, received, named, max_lost, stopping=stopping)

    def drain(self, *, handlers: tuple[str, ...] = ("h",), queue: str = "q") -> list[bytes]:
        """Take and ack one by one until nothing is ready. The bodies, in the order in which they came."""
        came: list[bytes] = []
        while taken := self.take(1, handlers=handlers, queue=queue):
            came.append(taken[0].body)
            assert self.settle(taken[0]), f"the ack of {taken[0]} was refused"
        return came


def bodies(taken: Iterable[Taken]) -> list[bytes]:
    """The bodies of jobs."""
    return [one.body for one in taken]
