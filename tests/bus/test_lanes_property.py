"""Memory and Redis answer any program of takes, settlements, lost workers, pauses and flushes alike, to the byte.

What the answers must be is what ``test_queue_machine.py`` asks; where the contract leaves something open (whose turn it
is among several handlers or workers), the two stores are to decide alike.

Time would make an example depend on luck, so whatever is delayed is due long ago, each job at a millisecond of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.clock import Clock
from bus.store.base import Exchange, Job, Route, Settlement, Store, Take, Taken, Verdict
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import Worker, append, batch, post
from tests.waiting import wait_until

QUEUES = ("q", "q2")
HANDLERS = ("h1", "h2")
WORKERS = ("w1", "w2", "w3")
KEYS = ("", "", "a", "b", "c|1")
MAX_LOST = 3

handlers, workers, keys = (st.sampled_from(names) for names in (HANDLERS, WORKERS, KEYS))
verdicts: st.SearchStrategy[Verdict] = st.sampled_from(["ack", "ack", "ack", "retry", "pass", "dead", "back"])


def make(mode: str, url: str, namespace: str) -> Store:
    return MemoryStore(Clock(), lease_ms=60_000) if mode == "memory" else RedisStore(url, namespace, lease_ms=60_000)


class Crew:
    """Workers on one store, with what each of them holds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.workers = {name: Worker(store, name) for name in WORKERS}
        self.held: dict[str, list[Taken]] = {name: [] for name in WORKERS}
        self._bodies = count(1)
        self._moments = count(1)

    def body(self) -> bytes:
        return b"%d" % next(self._bodies)

    def enqueue(self, queue: str, handler: str, key: str, priority: int) -> bytes:
        body = self.body()
        assert self.store.enqueue(Job(secrets.token_hex(8), Route(queue, handler, priority), key, body), 60_000)
        return body

    def append(self, queue: str, priority: int, key: str) -> bytes:
        """One event for both handlers of a queue."""
        body = self.body()
        jobs = [(Route(queue, handler, priority), key) for handler in HANDLERS]
        append(self.store, batch(post(body, jobs=jobs)))
        return b"e" + body

    def exchange(self, worker: str, settle: list[tuple[Taken, Verdict]], take: Take | None) -> Exchange:
        """Settle and take. What is to be tried again is due already, in the order of these calls."""
        settlements = [
            Settlement(
                one.job, one.ticket, verdict, -10_000_000 + 1_000 * next(self._moments), b"by " + worker.encode()
            )
            for one, verdict in settle
        ]
        answer = self.store.exchange(worker, settlements, [take] if take else [])
        for one, _ in settle:
            if one in self.held[worker]:
                self.held[worker].remove(one)
        self.held[worker] += answer.taken
        return answer

    def sweep(self) -> int:
        """A beat of one who holds nothing."""
        return self.store.beat("sweeper", 60_000, 0, (), MAX_LOST).recovered

    def lose(self, worker: str) -> list[Taken]:
        """Have a worker that holds something lose its lease."""
        lost, self.held[worker] = self.held[worker], []
        self.store.beat(worker, 1, 0, (), MAX_LOST)
        wait_until(self.sweep, f"the lease of {worker} to run out")
        return lost


class Step(NamedTuple):
    """One step of a program; which of its words count depends on what is done."""

    do: str
    worker: str
    queue: str
    handler: str
    key: str
    priority: int
    limit: int
    pick: int
    verdict: Verdict


STEPS = st.builds(
    Step,
    do=st.sampled_from(
        ["enqueue"] * 4
        + ["append"] * 2
        + ["take"] * 5
        + ["settle"] * 5
        + ["beat", "beat", "back", "leave", "lose", "lose", "flush", "pause", "resume", "resume", "replay", "census"]
    ),
    worker=workers,
    queue=st.sampled_from(["q", "q", "q", "q2"]),
    handler=handlers,
    key=keys,
    priority=st.sampled_from([0, 1, 2]),
    limit=st.integers(1, 6),
    pick=st.integers(0, 1_000),
    verdict=verdicts,
)


def transcript(store: Store, program: list[Step]) -> list[Any]:
    """Everything that the store answered, without the names that it gave to jobs."""
    crew = Crew(store)
    return [(step.do, perform(crew, step)) for step in program] + [
        ("the end", [(each.body, each.reason, each.key, each.notes, each.lost) for each in store.dead(1_000)]),
        ("the end", store.queues()),
    ]


def perform(crew: Crew, step: Step) -> Any:
    worker, store = crew.workers[step.worker], crew.store
    match step.do:
        case "enqueue":
            return crew.enqueue(step.queue, step.handler, step.key, step.priority)
        case "append":
            return crew.append(step.queue, step.priority, step.key)
        case "take":
            names = HANDLERS if step.pick % 2 else HANDLERS[::-1]
            return seen(crew.exchange(step.worker, [], worker.wish(step.limit, handlers=names, queue=step.queue)))
        case "settle":
            held = crew.held[step.worker]
            settlements = [(one, step.verdict) for one in held[: step.pick % 3 + 1]]
            return seen(
                crew.exchange(step.worker, settlements, worker.wish(step.pick % 2, queue=step.queue, handlers=HANDLERS))
            )
        case "beat":
            return crew.sweep(), [store.pending(queue) for queue in QUEUES]
        case "back":
            crew.held[step.worker] = crew.held[step.worker][: step.pick % 3]
            beat = worker.beat(crew.held[step.worker], max_lost=MAX_LOST)
            return beat.handed_back, beat.recovered
        case "leave":
            crew.held[step.worker].clear()
            return store.leave(step.worker)
        case "lose":
            return len(crew.lose(step.worker)) if crew.held[step.worker] else None
        case "pause":
            return store.pause(f"{step.queue}|{step.handler}" if step.pick % 2 else step.queue)
        case "resume":
            return [store.resume(name) for name in (step.queue, f"{step.queue}|{step.handler}")]
        case "replay":
            return store.replay([(one.job, b"anew") for one in store.dead(step.pick % 3)])
        case "census":
            return store.census()
        case _:
            for held in crew.held.values():
                held[:] = [one for one in held if one.route.queue != step.queue]
            return store.flush(step.queue)


def seen(answer: Exchange) -> Any:
    taken = [(one.body, one.ticket, one.route, one.key, one.notes, one.lost) for one in answer.taken]
    return answer.settled, taken, answer.apart


@contextmanager
def closing(store: Store) -> Iterator[Store]:
    try:
        yield store
    finally:
        store.close()


def test_memory_and_redis_answer_any_program_alike(redis_url: str, namespace: str) -> None:
    examples = count()

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(program=st.lists(STEPS, min_size=20, max_size=60))
    def alike(program: list[Step]) -> None:
        with closing(make("memory", "", "")) as memory:
            expected = transcript(memory, program)
        with closing(make("redis", redis_url, f"{namespace}.{next(examples)}")) as redis:
            assert transcript(redis, program) == expected

    alike()
