"""Lanes under any program of takes, settlements, lost workers and flushes: against a model, and memory against Redis.

Time would make an example depend on luck, so whatever is delayed is either due long ago, each job at a millisecond of
its own, or long after the example has ended.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bus.clock import Clock
from bus.store.base import Exchange, Job, Route, Settlement, Store, Take, Taken, Verdict
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import NEVER, Worker, append, batch, post
from tests.waiting import wait_until

QUEUES = ("q", "q2")
HANDLERS = ("h1", "h2")
WORKERS = ("w1", "w2", "w3")
KEYS = ("", "", "a", "b", "c|1")
MAX_LOST = 3

queues, handlers, workers, keys = (st.sampled_from(names) for names in (QUEUES, HANDLERS, WORKERS, KEYS))
priorities = st.sampled_from([0, 1, 2])
picks = st.integers(0, 1_000)
verdicts: st.SearchStrategy[Verdict] = st.sampled_from(["ack", "ack", "ack", "retry", "pass", "dead", "back"])

Lane = tuple[str, str, str]


def make(mode: str, url: str, namespace: str) -> Store:
    return MemoryStore(Clock(), lease_ms=60_000) if mode == "memory" else RedisStore(url, namespace, lease_ms=60_000)


def lane_of(taken: Taken) -> Lane:
    return taken.route.queue, taken.route.handler, taken.key


class Crew:
    """Workers on one store, with what each of them holds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.workers = {name: Worker(store, name) for name in WORKERS}
        self.held: dict[str, list[Taken]] = {name: [] for name in WORKERS}
        self.settled: list[tuple[str, Taken]] = []
        self._bodies = count(1)
        self._moments = count(1)

    def body(self) -> bytes:
        return b"%d" % next(self._bodies)

    def enqueue(self, queue: str, handler: str, key: str, priority: int, due: str = "") -> bytes:
        body = self.body()
        assert self.store.enqueue(Job(secrets.token_hex(8), Route(queue, handler, priority), key, body, due), 60_000)
        return body

    def append(self, queue: str, priority: int, key: str) -> bytes:
        """One event for both handlers of a queue."""
        body = self.body()
        routes = [Route(queue, handler, priority) for handler in HANDLERS]
        append(self.store, batch(post(body, jobs=[(0, key), (1, key)]), routes=routes))
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
            self.settled.append((worker, one))
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
        self.settled += [(worker, one) for one in lost]
        return lost


# -- against a model ---------------------------------------------------------------------------------------------------


class Lanes(RuleBasedStateMachine):
    """The model: lanes as lists with the head first, of which some are busy; jobs without a lane as a set."""

    def __init__(self, make_store: Callable[[], Store]) -> None:
        super().__init__()
        self.crew = Crew(make_store())
        self.store = self.crew.store
        self.lanes: defaultdict[Lane, list[bytes]] = defaultdict(list)
        self.free: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
        self.busy: dict[Lane, bytes] = {}
        """Lanes whose head is in flight, or held by a retry."""
        self.later: list[tuple[Lane, bytes, Verdict]] = []
        """What the next beat makes available, in order."""
        self.never: defaultdict[str, int] = defaultdict(int)
        self.flying: dict[bytes, str] = {}
        self.lost: defaultdict[bytes, int] = defaultdict(int)
        self.dead: list[bytes] = []

    def teardown(self) -> None:
        try:
            self._everything_comes_in_order()
        finally:
            self.store.close()

    # in

    @rule(queue=queues, handler=handlers, key=keys, priority=priorities)
    def enqueue(self, queue: str, handler: str, key: str, priority: int) -> None:
        self._add((queue, handler, key), self.crew.enqueue(queue, handler, key, priority))

    @rule(queue=queues, key=keys, priority=priorities)
    def append(self, queue: str, key: str, priority: int) -> None:
        body = self.crew.append(queue, priority, key)
        for handler in HANDLERS:
            # The same bytes twice: the handler tells them apart.
            self._add((queue, handler, key), body + b" " + handler.encode())

    @rule(queue=queues, handler=handlers, key=keys)
    def enqueue_for_much_later(self, queue: str, handler: str, key: str) -> None:
        self.crew.enqueue(queue, handler, key, 1, NEVER)
        self.never[queue] += 1

    def _add(self, lane: Lane, name: bytes) -> None:
        if lane[2]:
            self.lanes[lane].append(name)
        else:
            self.free[lane[:2]].add(name)

    # take and settle

    @rule(
        worker=workers,
        queue=queues,
        names=st.sampled_from([HANDLERS, HANDLERS[:1], HANDLERS[::-1]]),
        limit=st.integers(0, 6),
    )
    def take(self, worker: str, queue: str, names: tuple[str, ...], limit: int) -> None:
        available = self._available(queue, names)

        wish = self.crew.workers[worker].wish(limit, handlers=names, queue=queue)
        taken = self.crew.exchange(worker, [], wish).taken

        assert len(taken) == min(limit, available), f"{available} jobs could be taken, at most {limit}: {taken}"
        for one in taken:
            assert one.route.queue == queue
            assert one.route.handler in names
            self._fly(worker, one)

    def _available(self, queue: str, names: tuple[str, ...]) -> int:
        free = sum(len(self.free[queue, handler]) for handler in names)
        ready = [lane for lane, jobs in self.lanes.items() if jobs and lane not in self.busy]
        return free + sum(1 for lane in ready if lane[0] == queue and lane[1] in names)

    def _fly(self, worker: str, one: Taken) -> None:
        lane, name = lane_of(one), name_of(one)
        assert name not in self.flying, f"{one} has two owners"
        assert one.lost == self.lost[name]
        if one.key:
            assert lane not in self.busy, f"two jobs of the lane {lane} are out"
            assert self.lanes[lane][0] == name, f"{one} is not the head of its lane"
            self.busy[lane] = name
        else:
            assert name in self.free[lane[:2]], f"{one} was not there to be taken"
            self.free[lane[:2]].discard(name)
        self.flying[name] = worker

    @precondition(lambda self: self.flying)
    @rule(worker=workers, pick=picks, verdict=verdicts)
    def settle(self, worker: str, pick: int, verdict: Verdict) -> None:
        held = self.crew.held[worker]
        if not held:
            return
        one = held[pick % len(held)]

        assert self.crew.exchange(worker, [(one, verdict)], None).settled == [True]

        self._settled(one, verdict)

    def _settled(self, one: Taken, verdict: Verdict) -> None:
        lane, name = lane_of(one), name_of(one)
        del self.flying[name]
        if verdict == "back":
            self._return(one)
        elif verdict == "retry" and one.key:
            self.later.append((lane, name, verdict))
        else:
            if one.key:
                del self.busy[lane]
                self.lanes[lane].pop(0)
            if verdict in ("retry", "pass"):
                self.later.append((lane, name, verdict))
            if verdict == "dead":
                self.dead.append(name)

    def _return(self, one: Taken) -> None:
        if one.key:
            del self.busy[lane_of(one)]
        else:
            self.free[lane_of(one)[:2]].add(name_of(one))

    @precondition(lambda self: self.crew.settled)
    @rule(worker=workers, pick=picks, verdict=verdicts)
    def settle_without_the_right(self, worker: str, pick: int, verdict: Verdict) -> None:
        _, one = self.crew.settled[pick % len(self.crew.settled)]
        # A right is (worker, job, ticket): the same job under the same ticket of another worker is that one's.
        if (one.job, one.ticket) not in [each[:2] for each in self.crew.held[worker]]:
            assert self.crew.exchange(worker, [(one, verdict)], None).settled == [False]

    # leases

    @rule()
    def beat(self) -> None:
        assert self.crew.sweep() == 0
        self._promote()

    def _promote(self) -> None:
        for lane, name, verdict in self.later:
            if verdict == "retry" and lane[2]:
                del self.busy[lane]
            else:
                self._add(lane, name)
        self.later.clear()

    @rule(worker=workers, kept=st.integers(0, 3))
    def beat_and_hand_back(self, worker: str, kept: int) -> None:
        held, strays = self.crew.held[worker][:kept], self.crew.held[worker][kept:]

        beat = self.crew.workers[worker].beat(held, max_lost=MAX_LOST)

        assert (beat.handed_back, beat.recovered) == (len(strays), 0)
        self.crew.held[worker] = held
        self._came_back(worker, strays)
        self._promote()

    @rule(worker=workers)
    def leave(self, worker: str) -> None:
        held, self.crew.held[worker] = self.crew.held[worker], []

        assert self.store.leave(worker) == len(held)

        self._came_back(worker, held)

    def _came_back(self, worker: str, jobs: list[Taken]) -> None:
        for one in jobs:
            del self.flying[name_of(one)]
            self._return(one)
            self.crew.settled.append((worker, one))

    @rule(worker=workers)
    def lose_the_lease(self, worker: str) -> None:
        if not self.crew.held[worker]:
            return
        for one in self.crew.lose(worker):
            name = name_of(one)
            self.lost[name] += 1
            if self.lost[name] >= MAX_LOST:
                self._settled(one, "dead")
            else:
                del self.flying[name]
                self._return(one)
        self._promote()

    @rule(queue=queues)
    def flush(self, queue: str) -> None:
        assert self.store.flush(queue) == self._pending(queue)

        for worker, held in self.crew.held.items():
            self.crew.settled += [(worker, one) for one in held if one.route.queue == queue]
            for one in held:
                if one.route.queue == queue:
                    del self.flying[name_of(one)]
            self.crew.held[worker] = [one for one in held if one.route.queue != queue]
        self.never[queue] = 0
        self.later = [each for each in self.later if each[0][0] != queue]
        for lane in [lane for lane in self.lanes if lane[0] == queue]:
            del self.lanes[lane]
            self.busy.pop(lane, None)
        for handler in HANDLERS:
            self.free[queue, handler].clear()

    # what always holds

    def _pending(self, queue: str) -> int:
        waiting = sum(len(jobs) for lane, jobs in self.lanes.items() if lane[0] == queue)
        waiting += sum(len(self.free[queue, handler]) for handler in HANDLERS)
        # A retry of a lane is still in it, and so is a job in flight that has one.
        later = sum(1 for lane, _, verdict in self.later if lane[0] == queue and not (verdict == "retry" and lane[2]))
        held = [one for each in self.crew.held.values() for one in each]
        flying = sum(1 for one in held if one.route.queue == queue and not one.key)
        return waiting + later + flying + self.never[queue]

    @invariant()
    def all_are_counted(self) -> None:
        assert [self.store.pending(queue) for queue in QUEUES] == [self._pending(queue) for queue in QUEUES]
        assert self.store.dead_count() == len(self.dead)

    def _everything_comes_in_order(self) -> None:
        for worker in WORKERS:
            self.leave(worker)
        self.beat()
        for queue in QUEUES:
            for handler in HANDLERS:
                came: defaultdict[str, list[bytes]] = defaultdict(list)
                drainer = Worker(self.store, f"drainer of {queue} and {handler}")
                while taken := drainer.take(handlers=(handler,), queue=queue):
                    for one in taken:
                        came[one.key].append(name_of(one))
                        assert drainer.settle(one)
                assert set(came.pop("", [])) == self.free[queue, handler]
                lanes = {lane[2]: jobs for lane, jobs in self.lanes.items() if lane[:2] == (queue, handler) and jobs}
                assert came == lanes, "the lanes lost a job or their order"
        assert sorted(name_of(each) for each in self.store.dead(10_000)) == sorted(self.dead)


def name_of(one: Any) -> bytes:
    """A job's name in the model: an event's bytes go to two handlers."""
    body: bytes = one.body
    return body + b" " + one.route.handler.encode() if body.startswith(b"e") else body


def test_any_program_keeps_jobs_lanes_and_owners(mode: str, url: str, namespace: str) -> None:
    examples = count()
    run_state_machine_as_test(
        lambda: Lanes(lambda: make(mode, url, f"{namespace}.{next(examples)}")),  # type: ignore[arg-type]  # a factory will do
        settings=settings(stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]),
    )


# -- memory against Redis ----------------------------------------------------------------------------------------------


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
        + ["beat", "beat", "back", "leave", "lose", "flush"]
    ),
    worker=workers,
    queue=st.sampled_from(["q", "q", "q", "q2"]),
    handler=handlers,
    key=keys,
    priority=priorities,
    limit=st.integers(1, 6),
    pick=picks,
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
        case _:
            for held in crew.held.values():
                held[:] = [one for one in held if one.route.queue != step.queue]
            return store.flush(step.queue)


def seen(answer: Exchange) -> Any:
    return answer.settled, [(one.body, one.ticket, one.route, one.key, one.notes, one.lost) for one in answer.taken]


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
