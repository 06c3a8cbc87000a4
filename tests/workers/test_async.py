"""Async handlers and actors: thousands at once, none with a thread of its own, and everything Dramatiq does around them."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, MessageProxy, group
from dramatiq.errors import Retry
from dramatiq.middleware import CurrentMessage, GroupCallbacks, Middleware, SkipMessage
from dramatiq.results import Results

from bus import Bus, BusUnavailable, Event, Publication
from bus.store.base import Dead
from tests.waiting import wait_until
from tests.workers.conftest import Backends
from tests.workers.running import working
from workers import App, Context, InvalidHandler

QUICK: dict[str, Any] = {"min_backoff": 5, "max_backoff": 20}


class Asked(Event, type="test.async.asked", version=1):
    n: int
    agent: str = "a1"


@pytest.fixture
def app(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> App:
    app = App(bus)
    monkeypatch.setattr(dramatiq.broker, "global_broker", app.broker)  # where results and pipelines look
    return app


class Gate:
    """Something that coroutines wait for, until a test opens it; it knows who waits."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self, name: str = "") -> None:
        self.inside[name] += 1
        self.most[name] = max(self.most[name], self.inside[name])
        try:
            while not self._open.is_set():  # noqa: ASYNC110 - a test opens it from another thread
                await asyncio.sleep(0.01)
        finally:
            self.inside[name] -= 1
        self.passed[name] += 1


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def join(app: App, queue: str = "default", timeout: int = 20_000) -> None:
    app.broker.join(queue, timeout=timeout, fail_fast=False)


def errors(letters: list[Dead]) -> list[bytes]:
    return sorted(letter.notes.split(b'"error": "')[1].split(b'"')[0] for letter in letters)


# How many.


def test_five_hundred_wait_at_once_in_a_worker_of_one_thread(app: App, bus: Bus, gate: Gate) -> None:
    @app.on(Asked, queue="events")
    async def handler(event: Asked) -> None:
        await gate.wait()

    @dramatiq.actor(broker=app.broker)
    async def actor() -> None:
        await gate.wait()

    app.bind()
    before = threading.active_count()
    for n in range(250):
        bus.publish_sync(Asked(n=n))
        actor.send()
    with working(app, threads=1) as worker:
        wait_until(lambda: gate.inside[""] == 500, "five hundred to wait", timeout=20)
        assert threading.active_count() - before < 20
        gate.open()
        join(app)
        join(app, "events")
        worker.join()

    assert gate.passed[""] == 500


def test_no_more_run_at_once_than_the_app_allows_whatever_the_queues(bus: Bus) -> None:
    app = App(bus, concurrency=7)
    running: list[int] = []
    most: list[int] = []
    done: list[int] = []

    async def work(event: Asked) -> None:
        running.append(event.n)
        most.append(len(running))
        await asyncio.sleep(0.001 * (event.n % 5))
        running.remove(event.n)
        done.append(event.n)

    for queue in ("one", "two", "three"):

        @app.on(Asked, queue=queue, name=f"on {queue}".replace(" ", "-"), topics=queue)
        async def handler(event: Asked) -> None:
            await work(event)

    with working(app):
        for n in range(300):
            bus.publish_sync(Asked(n=n), topics=[("one", "two", "three")[n % 3]])
        for queue in ("one", "two", "three"):
            join(app, queue)

    assert sorted(done) == list(range(300))
    assert 1 < max(most) <= 7


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_handler_at_its_limit_leaves_the_rest_to_others_and_holds_nobody_up(bus: Bus, gate: Gate, kind: str) -> None:
    one, two = App(bus), App(bus)
    release = threading.Event()
    began: list[str] = []
    quick: list[int] = []

    def declare(app: App, name: str) -> None:
        if kind == "async":

            @app.on(Asked, name="limited", topics="limited", max_concurrent=3)
            async def on_loop(event: Asked) -> None:
                began.append(name)
                await gate.wait(name)
        else:

            @app.on(Asked, name="limited", topics="limited", max_concurrent=3)
            def on_thread(event: Asked) -> None:
                began.append(name)
                release.wait(20)

        @app.on(Asked, name="quick", topics="quick")
        async def fast(event: Asked) -> None:
            quick.append(event.n)

    declare(one, "one")
    declare(two, "two")
    one.bind()
    for n in range(12):
        bus.publish_sync(Asked(n=n), topics=["limited"])
    with working(one, threads=8):
        wait_until(lambda: began == ["one"] * 3, "the first process to be at its limit")
        for n in range(30):
            bus.publish_sync(Asked(n=n), topics=["quick"])
        wait_until(lambda: len(quick) == 30, "the others to run beside it")
        wait_until(lambda: bus.store.pending("default") == 12, "only limited ones to be left")
        assert began == ["one"] * 3
        with working(two, threads=8):
            wait_until(lambda: sorted(began) == ["one"] * 3 + ["two"] * 3, "the second one to take as many")
            gate.open()
            release.set()
            join(one)

    assert len(began) == 12
    if kind == "async":
        assert max(gate.most.values()) == 3


@pytest.mark.parametrize("limit", [0, -1, True, "3", 1.5])
def test_a_limit_that_is_none_is_refused(app: App, limit: Any) -> None:
    with pytest.raises(InvalidHandler, match="max_concurrent"):

        @app.on(Asked, max_concurrent=limit)
        async def handler(event: Asked) -> None: ...

    with pytest.raises(InvalidHandler, match="concurrency"):
        App(app.bus, concurrency=limit)
    with pytest.raises(InvalidHandler, match="blocked_s"):
        App(app.bus, blocked_s=0)


def test_threads_full_of_work_keep_no_coroutine_waiting_nor_the_other_way_round(bus: Bus, gate: Gate) -> None:
    app = App(bus, concurrency=4)
    release = threading.Event()
    began: list[str] = []

    @app.on(Asked, topics="thread")
    def on_thread(event: Asked) -> None:
        began.append("thread")
        if event.n < 2:
            release.wait(20)

    @app.on(Asked, topics="loop")
    async def on_loop(event: Asked) -> None:
        began.append("loop")
        if event.n < 4:
            await gate.wait()

    app.bind()
    for n in range(10):
        bus.publish_sync(Asked(n=n), topics=["thread"])
    with working(app, threads=2):
        wait_until(lambda: began == ["thread"] * 2, "all threads to be busy")
        for n in range(10):
            bus.publish_sync(Asked(n=n), topics=["loop"])
        wait_until(lambda: began.count("loop") == 4, "the loop to be full beside them")
        release.set()
        wait_until(lambda: began.count("thread") == 10, "the threads to go on while the loop is full")
        assert began.count("loop") == 4
        gate.open()
        join(app)


def test_urgent_work_is_begun_first(bus: Bus) -> None:
    app = App(bus, concurrency=1)
    order: list[str] = []
    for priority in ("low", "normal", "high"):

        @app.on(Asked, name=priority, priority=priority)
        async def handler(event: Asked, ctx: Context) -> None:
            order.append(ctx.handler)

    app.bind()
    for n in range(3):
        bus.publish_sync(Asked(n=n))
    with working(app):
        join(app)

    assert order == ["high"] * 3 + ["normal"] * 3 + ["low"] * 3


def test_an_agents_events_stay_in_order_among_many(app: App, bus: Bus) -> None:
    seen: dict[str, list[int]] = {}
    failed: set[tuple[str, int]] = set()

    @app.on(Asked, key="agent", **QUICK)
    async def handler(event: Asked) -> None:
        await asyncio.sleep(0.001)
        if event.n % 5 == 0 and (event.agent, event.n) not in failed:
            failed.add((event.agent, event.n))
            raise RuntimeError("again")
        seen.setdefault(event.agent, []).append(event.n)

    with working(app):
        for n in range(12):
            for agent in range(20):
                bus.publish_sync(Asked(n=n, agent=f"a{agent}"))
        join(app)

    assert seen == {f"a{agent}": list(range(12)) for agent in range(20)}


# What Dramatiq does around a message.


@pytest.fixture
def crowd(app: App, gate: Gate) -> Callable[[], None]:
    """Five hundred coroutines that wait while something else is tried."""

    @dramatiq.actor(broker=app.broker, queue_name="crowd")
    async def waiting() -> None:
        await gate.wait("crowd")

    def come() -> None:
        for _ in range(500):
            waiting.send()
        wait_until(lambda: gate.inside["crowd"] == 500, "the crowd", timeout=20)

    return come


def test_results_callbacks_pipelines_and_groups_work_while_five_hundred_wait(
    app: App, bus: Bus, backends: Backends, crowd: Callable[[], None], gate: Gate
) -> None:
    app.broker.add_middleware(Results(backend=backends.results))
    app.broker.add_middleware(GroupCallbacks(backends.limits))
    told: list[Any] = []

    @dramatiq.actor(store_results=True)
    async def double(n: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * n

    @dramatiq.actor
    async def succeeded(message: dict[str, Any], result: Any) -> None:
        told.append(result)

    @dramatiq.actor
    async def failed(message: dict[str, Any], error: dict[str, str]) -> None:
        told.append(error["type"])

    @dramatiq.actor
    async def complete(what: str) -> None:
        told.append(what)

    @dramatiq.actor(on_failure="failed", max_retries=0)
    async def fail() -> None:
        raise ValueError("no")

    with working(app, threads=2):
        crowd()
        assert double.send(4).get_result(block=True, timeout=5000) == 8
        double.send_with_options(args=(5,), on_success=succeeded)
        fail.send()
        pipe = (double.message(1) | double.message_with_options() | double.message_with_options()).run()
        assert pipe.get_result(block=True, timeout=5000) == 8
        jobs = group([double.message(n) for n in range(5)])
        jobs.add_completion_callback(complete.message("all five"))
        jobs.run()
        assert list(jobs.get_results(block=True, timeout=5000)) == [0, 2, 4, 6, 8]
        wait_until(lambda: len(told) == 3, "the callbacks")
        assert gate.inside["crowd"] == 500
        gate.open()
        join(app, "crowd")

    assert sorted(told, key=str) == [10, "ValueError", "all five"]


KNOWN: ContextVar[str] = ContextVar("KNOWN", default="nothing")


class Tells(Middleware):
    """Hooks that block, and tell on which thread they are and what they know."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.threads: set[str] = set()

    def _tell(self, hook: str) -> None:
        threading.Event().wait(0.002)
        self.threads.add(threading.current_thread().name.rstrip("0123456789 "))
        self.told.append(f"{hook}: {KNOWN.get()}")

    def before_process_message(self, _: Broker, message: MessageProxy) -> None:
        self._tell("before")
        KNOWN.set(f"what was known before {message.args[0]}")

    def after_process_message(self, *_: Any, **__: Any) -> None:
        self._tell("after")

    def before_ack(self, *_: Any) -> None:
        self._tell("ack")


def test_hooks_run_off_the_loop_and_share_the_coroutines_context(app: App) -> None:
    hooks = Tells()
    app.broker.add_middleware(hooks)
    app.broker.add_middleware(CurrentMessage())
    seen: list[tuple[int, str, str]] = []

    @dramatiq.actor
    async def actor(n: int) -> None:
        before = KNOWN.get()
        KNOWN.set(f"what the coroutine of {n} set")
        await asyncio.sleep(0)
        message = CurrentMessage.get_current_message()
        assert message is not None
        seen.append((n, before, str(message.args[0])))

    with working(app):
        for n in range(20):
            actor.send(n)
        join(app)

    assert sorted(seen) == [(n, f"what was known before {n}", str(n)) for n in range(20)]
    assert Counter(hooks.told) == Counter(
        ["before: nothing"] * 20
        + [f"{hook}: what the coroutine of {n} set" for hook in ("after", "ack") for n in range(20)]
    )
    assert hooks.threads == {"callboard hooks"}
    assert (CurrentMessage.get_current_message(), KNOWN.get()) == (None, "nothing")


def test_failures_are_judged_as_those_of_threads_are(app: App, bus: Bus) -> None:
    tries: Counter[str] = Counter()
    told: list[dict[str, int]] = []

    class Expected(Exception):
        pass

    @dramatiq.actor
    async def exhausted(message: dict[str, Any], facts: dict[str, int]) -> None:
        told.append(facts)

    @dramatiq.actor(max_retries=2, on_retry_exhausted="exhausted", **QUICK)
    async def failing() -> None:
        tries["failing"] += 1
        raise RuntimeError("again")

    @dramatiq.actor(throws=Expected)
    async def throwing() -> None:
        tries["throwing"] += 1
        raise Expected

    @dramatiq.actor
    async def asking_again() -> None:
        tries["asking again"] += 1
        if tries["asking again"] < 3:
            raise Retry(delay=5)

    @dramatiq.actor
    async def skipping() -> None:
        tries["skipping"] += 1
        raise SkipMessage

    @dramatiq.actor(max_retries=0)
    async def exiting() -> None:
        tries["exiting"] += 1
        raise SystemExit(3)

    @dramatiq.actor
    async def well() -> None:
        tries["well"] += 1

    with working(app):
        for actor in (failing, throwing, asking_again, skipping, exiting):
            actor.send()
        join(app)
        well.send()
        join(app)

    assert tries == {"failing": 3, "throwing": 1, "asking again": 3, "skipping": 1, "exiting": 1, "well": 1}
    assert told == [{"retries": 2, "max_retries": 2}]
    assert errors(bus.store.dead()) == [b"Expected", b"RuntimeError", b"SystemExit"]
    with pytest.raises((Expected, RuntimeError, SystemExit)):
        app.broker.join("default", timeout=1000)


def test_a_server_that_is_away_is_told_in_a_line_for_each_that_failed_by_it(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    @app.on(Asked, max_retries=0)
    async def handler(event: Asked) -> None:
        raise BusUnavailable("the server cannot be reached")

    app.bind()
    with working(app):
        bus.publish_sync(Asked(n=1))
        wait_until(lambda: bus.store.dead_count() == 1, "it to fail")

    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.getMessage().endswith("failed: the server cannot be reached")
    assert record.exc_info is None


class Refuses(Middleware):
    """Skips odd messages, and fails every third one for good."""

    def before_process_message(self, _: Broker, message: MessageProxy) -> None:
        if message.args[0] % 3 == 0:
            message.fail()
        if message.args[0] % 2:
            raise SkipMessage("odd")


def test_what_a_hook_skips_or_fails_is_not_run(app: App, bus: Bus, backends: Backends) -> None:
    app.broker.add_middleware(Results(backend=backends.results))
    app.broker.add_middleware(Refuses())
    ran: list[int] = []

    @dramatiq.actor(store_results=True, max_age=3_600_000)
    async def actor(n: int) -> None:
        ran.append(n)

    with working(app):
        sent = [actor.send(n) for n in range(6)]
        join(app)

    assert sorted(ran) == [2, 4]
    assert bus.store.dead_count() == 2
    assert sent[1].get_result() is None


def test_an_actor_that_a_decorator_of_the_apps_own_makes_sync_stays_sync(app: App) -> None:
    ran: list[str] = []

    def by_hand(function: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            ran.append(threading.current_thread().name)
            asyncio.run(function())  # type: ignore[arg-type]

        return run

    @dramatiq.actor
    @by_hand
    async def actor() -> None:
        ran.append(threading.current_thread().name)

    class Called(dramatiq.Actor[..., Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("in its own way")
            return super().__call__(*args, **kwargs)

    @dramatiq.actor(actor_class=Called)
    async def special() -> None:
        ran.append(threading.current_thread().name)

    with working(app):
        actor.send()
        join(app)
        special.send()
        join(app)

    assert ran[0] == ran[1] != "callboard loop"
    assert ran[2:] == ["in its own way", "callboard loop"]


# Limits of time.


def test_a_time_limit_ends_one_coroutine_of_a_hundred_and_harms_no_other(app: App, bus: Bus, gate: Gate) -> None:
    story: list[str] = []

    @app.on(Asked, time_limit=50, max_retries=1, topics="slow", **QUICK)
    async def slow(event: Asked, ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append(f"cleaned up after attempt {ctx.attempt}")

    @app.on(Asked, topics="other")
    async def other(event: Asked) -> None:
        await gate.wait()

    with working(app):
        for n in range(100):
            bus.publish_sync(Asked(n=n), topics=["other"])
        wait_until(lambda: gate.inside[""] == 100, "a hundred to wait")
        bus.publish_sync(Asked(n=0), topics=["slow"])
        wait_until(lambda: bus.store.dead_count() == 1, "the slow one to fail for good")
        gate.open()
        join(app)

    assert story == ["cleaned up after attempt 1", "cleaned up after attempt 2"]
    assert gate.passed[""] == 100
    (dead,) = bus.store.dead()
    assert errors([dead]) == [b"TimeLimitExceeded"]
    assert b"in slow" in dead.notes  # where it was


def test_a_time_limit_counts_from_the_coroutines_own_first_step(app: App, bus: Bus) -> None:
    begun: list[int] = []
    done: list[int] = []

    @app.on(Asked, time_limit=200, max_retries=0)
    async def handler(event: Asked) -> None:
        begun.append(event.n)
        threading.Event().wait(0.02)  # each in its first step, and all of them in one turn of the loop
        await asyncio.sleep(0.01)
        done.append(event.n)

    app.bind()
    bus.publish_many_sync([Publication(Asked(n=n)) for n in range(20)])
    with working(app):
        wait_until(lambda: len(begun) == 20 and bus.store.pending("default") == 0, "all to end")

    assert begun[-1] in done


def test_a_coroutine_that_lives_through_its_time_limit_decides_its_outcome(app: App, bus: Bus) -> None:
    story: list[str] = []

    @dramatiq.actor(time_limit=20, max_retries=0)
    async def catches() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            story.append("caught")

    @dramatiq.actor(time_limit=20, max_retries=0)
    async def translates() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("its own") from None

    with working(app):
        catches.send()
        translates.send()
        join(app)

    assert story == ["caught"]
    assert errors(bus.store.dead()) == [b"ValueError"]


# The end.


def test_what_outlasts_the_grace_is_cancelled_and_handed_back_to_the_heads_of_its_lanes(app: App, bus: Bus) -> None:
    story: list[str] = []
    attempts: list[int] = []
    patient = threading.Event()

    @app.on(Asked, key="agent")
    async def handler(event: Asked, ctx: Context) -> None:
        story.append(f"{event.agent} {event.n} begun")
        attempts.append(ctx.attempt)
        if not patient.is_set():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                story.append(f"{event.agent} {event.n} ended")

    @dramatiq.actor
    async def plain() -> None:
        story.append("plain begun")
        if not patient.is_set():
            await asyncio.Event().wait()

    app.bind()
    plain.send()
    for n in range(3):
        for agent in ("a", "b"):
            bus.publish_sync(Asked(n=n, agent=agent))
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    wait_until(lambda: len(story) == 3, "one of each lane, and the plain one")
    worker.stop(timeout=50)
    first = sorted(story)
    story.clear()
    patient.set()
    with working(app):
        join(app)

    assert first == ["a 0 begun", "a 0 ended", "b 0 begun", "b 0 ended", "plain begun"]
    assert [line for line in story if line.startswith("a ")] == ["a 0 begun", "a 1 begun", "a 2 begun"]
    assert "plain begun" in story
    assert set(attempts) == {1}, "being cancelled counted as an attempt"
    assert bus.store.dead_count() == 0


def test_work_that_ends_within_the_grace_is_waited_for(app: App, gate: Gate) -> None:
    @dramatiq.actor
    async def actor() -> None:
        await gate.wait()

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    for _ in range(20):
        actor.send()
    wait_until(lambda: gate.inside[""] == 20, "all to wait")
    thread = worker.workers[0]
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_until(lambda: not thread.is_alive(), "the worker's thread to end")
    late = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > late, "what does not wait to have gone on")
    gate.open()
    stopping.join(10)

    assert gate.passed[""] == 20
    assert app.broker.store.pending("default") == 0
    app.bus.rest()


def test_who_asked_for_it_is_told_of_the_stop_at_once(app: App, bus: Bus, gate: Gate) -> None:
    story: list[str] = []

    @app.on(Asked, notify_shutdown=True)
    async def told(event: Asked) -> None:
        story.append("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            story.append("told")
            raise

    @app.on(Asked)
    async def untold(event: Asked) -> None:
        await gate.wait()

    app.bind()
    bus.publish_sync(Asked(n=1))
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    wait_until(lambda: story == ["begun"] and gate.inside[""] == 1, "both to begin")
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_until(lambda: story == ["begun", "told"], "the one that asked to be told")
    assert gate.inside[""] == 1
    gate.open()
    stopping.join(10)
    pending = bus.store.pending("default")
    bus.rest()

    assert (gate.passed[""], pending, bus.store.dead_count()) == (1, 1, 0)


def test_a_paused_worker_begins_nothing_until_it_goes_on(app: App) -> None:
    done: list[int] = []

    @dramatiq.actor
    async def actor(n: int) -> None:
        done.append(n)

    with working(app) as worker:
        worker.pause()
        actor.send(1)
        assert app.broker.store.pending("default") == 1
        assert done == []
        worker.resume()
        join(app)

    assert done == [1]


@pytest.mark.slow
def test_what_a_paused_worker_had_fetched_ahead_goes_to_others(app: App) -> None:
    """Its lanes would stand still for everybody until it goes on."""
    store, done = app.broker.store, list[int]()
    midst, goes_on = threading.Event(), threading.Event()

    @dramatiq.actor
    def actor(n: int) -> None:
        if n == 200:  # so many were quick that some are fetched ahead
            midst.set()
            assert goes_on.wait(20)
        done.append(n)

    def in_flight() -> int:
        return sum(sum(count.in_flight.values()) for count in store.census().counts)

    for n in range(400):
        actor.send(n)
    with working(app, threads=1) as worker, ThreadPoolExecutor(1) as pool:
        assert midst.wait(20)
        pausing = pool.submit(worker.pause)
        wait_until(lambda: worker.workers[0].paused, "the pause")
        ahead = in_flight()
        goes_on.set()
        pausing.result(10)

        wait_until(lambda: in_flight() == 0, "them to be handed back", timeout=15)
        assert ahead > 1
        assert store.pending("default") == 400 - len(done) > 0
        worker.resume()
        join(app)

    assert sorted(done) == list(range(400))


# Faults.


class Hangs(Middleware):
    """A hook that hangs, so that no hooks thread is free to begin anything."""

    def __init__(self, hung: threading.Event) -> None:
        self._hung = hung

    def before_process_message(self, *_: Any) -> None:
        self._hung.wait(20)


def test_what_hooks_keep_from_beginning_goes_to_others(bus: Bus) -> None:
    stuck, free = App(bus), App(bus)
    hung = threading.Event()
    done: list[str] = []
    stuck.broker.add_middleware(Hangs(hung))

    @stuck.on(Asked, name="handler")
    async def handler(event: Asked) -> None:
        done.append("stuck")

    @free.on(Asked, name="handler")
    async def handler_too(event: Asked) -> None:
        done.append("free")

    stuck.bind()
    for n in range(40):
        bus.publish_sync(Asked(n=n))
    with working(stuck):
        wait_until(lambda: stuck.broker.lease.running() > 0, "hooks to hang")
        with working(free):
            wait_until(lambda: len(done) >= 36, "the others to be done elsewhere", timeout=15)
            assert set(done) == {"free"}
            hung.set()
            join(free)
        bus.publish_sync(Asked(n=40))
        wait_until(lambda: done.count("stuck") == 5, "the first process to go on, now that its hooks do")

    assert len(done) == 41


def test_a_handler_that_blocks_the_loop_is_named_once_while_it_does_and_once_after(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(bus, blocked_s=0.1)
    release = threading.Event()
    lags: list[float] = []
    loop = app._runtime.loop  # noqa: SLF001 - where health checks will look

    @app.on(Asked, name="the-blocker")
    async def handler(event: Asked) -> None:
        release.wait(20)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "the event loop" in record.getMessage()]

    with caplog.at_level(logging.WARNING), working(app):
        bus.publish_sync(Asked(n=1))
        wait_until(told, "a warning while it lasts")
        wait_until(lambda: loop.lag_s > 0.3, "the lag to grow")
        lags.append(loop.lag_s)
        during = told()
        release.set()
        wait_until(lambda: len(told()) == 2, "a word afterwards")
        join(app)
        wait_until(lambda: loop.lag_s < 0.1, "the lag to be gone")

    assert len(during) == 1
    assert during[0].startswith("the-blocker blocks the event loop, for 0.")
    assert re.search(r"test_async\.py:\d+ in handler$", during[0])
    assert told()[1].startswith("the event loop goes on, after ")
    assert told()[1].endswith("(the-blocker blocked it)")


def busy(seconds: float) -> None:
    """Keep the processor, as thread and loop do that compute."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_nobody_is_blamed_where_many_are_resumed_at_once(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "asyncio":
        monkeypatch.setattr("workers.loop.thread.find_spec", lambda _: None)
    app = App(bus)
    waiting: list[asyncio.Future[None]] = []

    @app.on(Asked, name="quick")
    async def handler(event: Asked) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]
        busy(0.003)

    def resume() -> None:
        """In one callback: spread over several rounds of the loop they would leave room for signs of life between them."""
        for one in waiting:
            one.set_result(None)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "the event loop" in record.getMessage()]

    with caplog.at_level(logging.WARNING), working(app):
        for n in range(200):
            bus.publish_sync(Asked(n=n))
        wait_until(lambda: len(waiting) == 200, "all to wait")
        caplog.clear()
        waiting[0].get_loop().call_soon_threadsafe(resume)
        join(app)
        wait_until(told, "a word about it")

    assert all(line.startswith("the event loop was busy for ") for line in told()), told()
    assert re.search(r"short steps \(\d+ handlers were running\): none of them blocked it", told()[0])


def test_one_who_blocks_among_many_is_named(bus: Bus, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    app = App(bus, blocked_s=0.1)

    @app.on(Asked, name="quick")
    async def handler(event: Asked) -> None:
        await gate.wait()
        busy(0.5 if event.n == 20 else 0.001)

    with caplog.at_level(logging.WARNING), working(app):
        for n in range(40):
            bus.publish_sync(Asked(n=n))
        wait_until(lambda: gate.inside[""] == 40, "all to wait")
        gate.open()
        join(app)
        wait_until(lambda: "the event loop goes on" in caplog.text, "a word about it")

    assert "quick blocks the event loop, for " in caplog.text
    assert "in busy" in caplog.text


def test_a_loop_on_which_everybody_waits_is_not_blocked(app: App, caplog: pytest.LogCaptureFixture, gate: Gate) -> None:
    @dramatiq.actor(actor_name="waiting")
    async def actor() -> None:
        await gate.wait()

    with caplog.at_level(logging.WARNING), working(app):
        for _ in range(100):
            actor.send()
        wait_until(lambda: gate.inside[""] == 100, "all to wait")
        late = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > late, "the watch to have looked")
        gate.open()
        join(app)

    assert [record.getMessage() for record in caplog.records if "waiting blocks" in record.getMessage()] == []


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_the_loop_is_uvloops_where_that_is_installed(app: App, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    kinds: list[str] = []
    if kind == "asyncio":
        monkeypatch.setattr("workers.loop.thread.find_spec", lambda _: None)

    @dramatiq.actor
    async def actor() -> None:
        kinds.append(type(asyncio.get_running_loop()).__module__)

    with working(app):
        actor.send()
        join(app)

    assert kinds[0].partition(".")[0] == kind
