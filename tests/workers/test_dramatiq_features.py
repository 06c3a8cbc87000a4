"""What Dramatiq offers beside queues, on our broker: for plain actors, and for handlers of events where it applies."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, MessageProxy, Middleware, QueueJoinTimeout, QueueNotFound, group
from dramatiq.common import current_millis
from dramatiq.middleware import (
    AgeLimit,
    CurrentMessage,
    GroupCallbacks,
    Shutdown,
    ShutdownNotifications,
    TimeLimitExceeded,
)
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.results import ResultFailure, Results

from bus import Bus, Event
from tests.leaks import threads_left, threads_now
from tests.waiting import wait_until
from tests.workers.conftest import Backends
from tests.workers.running import working
from workers import App
from workers.deadletters import DeadLetters
from workers.middleware import limits

QUICK: dict[str, Any] = {"min_backoff": 5, "max_backoff": 20}


class Asked(Event, type="test.feature.asked", version=1):
    n: int


@pytest.fixture
def app(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> App:
    app = App(bus)
    monkeypatch.setattr(dramatiq.broker, "global_broker", app.broker)  # where results and pipelines look
    return app


@pytest.fixture
def boot(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Boot the process as a command line does. The thread that watches the time limits ends with the test."""
    over, before = threading.Event(), threads_now()

    def rest(seconds: float) -> None:
        if over.wait(seconds / 50):
            raise SystemExit

    monkeypatch.setattr("dramatiq.middleware.time_limit.sleep", rest)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # Python's own lets a thread exit so
    yield lambda: app.broker.emit_after("process_boot")
    over.set()
    assert not threads_left(before)


def ask(bus: Bus, n: int = 1) -> str:
    return bus.publish_sync(Asked(n=n)).id


def join(app: App) -> None:
    app.broker.join("default", timeout=10_000, fail_fast=False)


# Limits.


def test_what_runs_too_long_is_interrupted_and_told_its_limit(
    app: App, bus: Bus, boot: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    never = threading.Event()

    def wait() -> None:
        while not never.wait(0.01):  # in steps: an interrupt comes between two instructions
            pass

    @dramatiq.actor(time_limit=20, max_retries=0)
    def plain() -> None:
        wait()

    @app.on(Asked, time_limit=20, max_retries=0)
    def on_thread(event: Asked) -> None:
        try:
            wait()
        except TimeLimitExceeded:
            told.append("thread")
            raise

    @app.on(Asked, time_limit=20, max_retries=0)
    async def on_loop(event: Asked) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("loop")
            raise

    boot()
    with working(app):
        plain.send()
        ask(bus)
        join(app)

    assert sorted(told) == ["loop", "thread"]
    (attempts,) = zip(*(letter.attempts for letter in DeadLetters(bus).find()), strict=True)
    assert {(one.error, one.message) for one in attempts} == {
        ("TimeLimitExceeded", "ran longer than its time limit of 0.02 s")
    }
    assert all("ran longer" in one.traceback for one in attempts)
    logged = [record.exc_info for record in caplog.records if record.exc_info is not None]
    assert [str(info[1]) for info in logged] == ["ran longer than its time limit of 0.02 s"] * 3


def test_what_waited_too_long_is_not_begun(app: App, bus: Bus) -> None:
    begun: list[str] = []

    @dramatiq.actor(max_age=20)
    def plain() -> None:
        begun.append("plain")

    @app.on(Asked, max_age=20)
    def handler(event: Asked) -> None:
        begun.append("handler")

    app.bind()
    plain.send()
    ask(bus)
    late = current_millis() + 30
    wait_until(lambda: current_millis() > late, "both to be too old")
    with working(app):
        join(app)

    assert begun == []
    assert bus.store.dead_count() == 2


def test_a_limit_of_age_for_all_is_kept_where_nobody_has_set_another(app: App, bus: Bus) -> None:
    begun: list[str] = []
    for one in app.broker.middleware:
        if isinstance(one, AgeLimit):
            one.max_age = 20

    @dramatiq.actor
    def plain() -> None:
        begun.append("plain")

    plain.send()
    late = current_millis() + 30
    wait_until(lambda: current_millis() > late, "it to be too old")
    with working(app):
        join(app)

    assert (begun, bus.store.dead_count()) == ([], 1)


@pytest.mark.parametrize("whose", ["the actor's", "everybody's"])
def test_a_thread_that_asked_for_it_is_told_of_the_stop(app: App, bus: Bus, whose: str) -> None:
    begun, never = threading.Event(), threading.Event()
    ended: list[str] = []
    asks: dict[str, Any] = {"notify_shutdown": True} if whose == "the actor's" else {}
    if whose == "everybody's":
        app.broker.middleware[:] = [one for one in app.broker.middleware if not isinstance(one, ShutdownNotifications)]
        app.broker.add_middleware(limits.ShutdownNotifications(notify_shutdown=True))

    @app.on(Asked, **asks)
    def told(event: Asked) -> None:
        begun.set()
        try:
            while not never.wait(0.01):  # an exception strikes between two steps of Python's
                pass
        except Shutdown:
            ended.append("told")
            raise

    app.bind()
    ask(bus)
    with working(app):
        assert begun.wait(10)

    assert ended == ["told"]
    assert (bus.store.pending("default"), bus.store.dead_count()) == (1, 0)


def test_an_actor_that_stops_asking_while_it_runs_leaves_its_thread_unmarked(app: App) -> None:
    begun, over = threading.Event(), threading.Event()
    ended: list[str] = []

    @dramatiq.actor(notify_shutdown=True)
    def once() -> None:
        del once.options["notify_shutdown"]

    @dramatiq.actor
    def unasked() -> None:
        begun.set()
        over.wait(10)
        ended.append("unasked")

    with working(app, threads=1) as worker:
        once.send()
        join(app)
        unasked.send()
        assert begun.wait(10)
        app.broker.emit_before("worker_shutdown", worker)
        over.set()
        join(app)

    assert ended == ["unasked"]


def test_a_rate_limiter_lets_one_run_at_a_time_and_the_others_come_again(
    app: App, bus: Bus, backends: Backends
) -> None:
    limiter = ConcurrentRateLimiter(backends.limits, "one", limit=1)
    running: list[int] = []
    most: list[int] = []
    done: list[int] = []

    def work(n: int) -> None:
        with limiter.acquire():
            running.append(n)
            most.append(len(running))
            threading.Event().wait(0.02)
            running.remove(n)
        done.append(n)

    plain = dramatiq.actor(max_retries=None, **QUICK)(work)

    @app.on(Asked, max_retries=None, **QUICK)
    def handler(event: Asked) -> None:
        work(event.n)

    app.bind()
    for n in range(4):
        plain.send(n)
        ask(bus, 10 + n)
    with working(app):
        join(app)

    assert sorted(done) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert set(most) == {1}


# What follows from a result.


def test_callbacks_are_told_of_success_and_of_each_failure(app: App, bus: Bus) -> None:
    told: list[tuple[str, Any]] = []

    @dramatiq.actor
    def succeeded(message: dict[str, Any], result: Any) -> None:
        told.append((message["actor_name"], result))

    @dramatiq.actor
    def failed(message: dict[str, Any], error: dict[str, str]) -> None:
        told.append((message["actor_name"], error["type"]))

    def halve(n: int) -> float:
        return 1 / n

    options: dict[str, Any] = {"on_success": "succeeded", "on_failure": "failed", "max_retries": 1, **QUICK}
    plain = dramatiq.actor(actor_name="plain", **options)(halve)

    @app.on(Asked, name="handler", **options)
    async def handler(event: Asked) -> float:
        return halve(event.n)

    with working(app):
        for n in (0, 1):
            plain.send(n)
            ask(bus, n)
        join(app)

    assert sorted(told, key=repr) == sorted(
        [(name, what) for name in ("plain", "handler") for what in (1.0, "ZeroDivisionError", "ZeroDivisionError")],
        key=repr,
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_callbacks_that_a_middleware_names_are_told_too(app: App, when: str) -> None:
    told: list[int] = []

    class Names(Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:  # noqa: ARG002 - a hook
            if when == "before" and message.actor_name == "work":
                message.options["on_success"] = "tell"

        def after_process_message(
            self,
            broker: dramatiq.Broker,  # noqa: ARG002 - a hook
            message: MessageProxy,
            *,
            result: Any = None,  # noqa: ARG002 - a hook
            exception: BaseException | None = None,  # noqa: ARG002 - a hook
        ) -> None:
            if when == "after" and message.actor_name == "work":
                message.options["on_success"] = "tell"

    app.broker.add_middleware(Names())

    @dramatiq.actor
    def work() -> None: ...

    @dramatiq.actor
    def tell(message: dict[str, Any], result: None) -> None:
        told.append(1)

    with working(app):
        work.send()
        join(app)

    assert told == [1]


def test_results_are_kept_and_failures_too(app: App, bus: Bus, backends: Backends) -> None:
    app.broker.add_middleware(Results(backend=backends.results))

    @dramatiq.actor(store_results=True, max_retries=0)
    def plain(n: int) -> float:
        return 1 / n

    @app.on(Asked, name="handler", store_results=True)
    async def handler(event: Asked) -> int:
        return event.n + 1

    with working(app):
        good, bad, asked = plain.send(2), plain.send(0), ask(bus, 41)
        assert good.get_result(block=True, timeout=5000) == 0.5
        with pytest.raises(ResultFailure, match="ZeroDivisionError"):
            bad.get_result(block=True, timeout=5000)
        of_event: Message[int] = Message("default", "handler", (), {}, {}, message_id=asked)
        assert of_event.get_result(block=True, timeout=5000) == 42
        join(app)


def test_a_pipeline_hands_results_on_also_when_a_handler_of_events_starts_it(
    app: App, bus: Bus, backends: Backends
) -> None:
    app.broker.add_middleware(Results(backend=backends.results))
    done: list[int] = []

    @dramatiq.actor(store_results=True)
    def double(n: int) -> int:
        return 2 * n

    @dramatiq.actor
    def note(n: int) -> None:
        done.append(n)

    @app.on(Asked)
    def handler(event: Asked) -> None:
        (double.message(event.n) | double.message_with_options() | note.message_with_options()).run()

    with working(app):
        pipe = (double.message(1) | double.message_with_options() | double.message_with_options()).run()
        assert pipe.get_result(block=True, timeout=5000) == 8
        ask(bus, 10)
        join(app)

    assert done == [40]


def test_a_group_has_results_and_one_completion(app: App, backends: Backends) -> None:
    app.broker.add_middleware(Results(backend=backends.results))
    app.broker.add_middleware(GroupCallbacks(backends.limits))
    completed: list[str] = []

    @dramatiq.actor(store_results=True)
    def double(n: int) -> int:
        return 2 * n

    @dramatiq.actor
    def complete(what: str) -> None:
        completed.append(what)

    with working(app):
        jobs = group([double.message(n) for n in range(5)])
        jobs.add_completion_callback(complete.message("all five"))
        jobs.run()
        assert list(jobs.get_results(block=True, timeout=5000)) == [0, 2, 4, 6, 8]
        join(app)

    assert completed == ["all five"]


# What a job may know, and what is measured.


def test_what_an_event_says_is_in_no_log_whatever_its_level(app: App, caplog: pytest.LogCaptureFixture) -> None:
    class Whispered(Event, type="test.feature.whispered", version=1):
        secret: str

    @app.on(Whispered)
    def sync(event: Whispered) -> None: ...

    @app.on(Whispered)
    async def coroutine(event: Whispered) -> None: ...

    caplog.set_level(logging.DEBUG)
    app.bind()
    app.bus.publish_sync(Whispered(secret="xyzzy"))
    with working(app):
        join(app)
    app.bus.rest()

    assert "sync" in caplog.text
    assert "xyzzy" not in caplog.text


def test_the_current_message_is_known_on_threads_and_on_the_loop(app: App, bus: Bus) -> None:
    app.broker.add_middleware(CurrentMessage())
    known: dict[str, str] = {}

    def note(name: str) -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        known[name] = message.message_id

    plain = dramatiq.actor()(note)

    @app.on(Asked)
    def on_thread(event: Asked) -> None:
        note("thread")

    @app.on(Asked)
    async def on_loop(event: Asked) -> None:
        note("loop")

    with working(app):
        sent, asked = plain.send("plain").message_id, ask(bus)
        join(app)

    assert known == {"plain": sent, "thread": asked, "loop": asked}
    assert CurrentMessage.get_current_message() is None


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_prometheus_counts_what_was_done_and_what_was_tried_again(
    app: App, bus: Bus, boot: Callable[[], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("prometheus_client")
    from dramatiq.middleware.prometheus import Prometheus  # noqa: PLC0415 - it needs what may be missing

    monkeypatch.setattr(os, "environ", dict(os.environ))  # it names a folder there, for good
    prometheus = Prometheus()
    app.broker.add_middleware(prometheus)
    tried: list[int] = []

    def on_thread(event: Asked) -> None:
        tried.append(event.n)
        if len(tried) == 1:
            raise RuntimeError("again")

    async def on_loop(event: Asked) -> None:
        on_thread(event)

    app.on(Asked, name="handler", **QUICK)(on_thread if kind == "sync" else on_loop)
    boot()
    with working(app):
        ask(bus)
        join(app)

    counted = [
        [sample.value for each in metric.collect() for sample in each.samples if sample.name.endswith("_total")]
        for metric in (prometheus.total_messages, prometheus.total_errored_messages)
    ]
    assert counted == [[2], [1]]


# The queue as a whole.


def test_a_join_ends_with_the_work_or_with_its_time_and_a_flush_drops_what_waits(app: App, bus: Bus) -> None:
    done: list[str] = []

    @dramatiq.actor(queue_name="other")
    def plain() -> None:
        done.append("plain")

    @app.on(Asked)
    def handler(event: Asked) -> None:
        done.append("handler")

    app.bind()
    for _ in range(2):
        plain.send_with_options(delay=60_000)
        ask(bus)
    for queue in ("default", "other"):
        with pytest.raises(QueueJoinTimeout):
            app.broker.join(queue, timeout=10)
    app.broker.flush("other")
    app.broker.join("other", timeout=10)
    assert app.broker.queues["default"].qsize() == 2
    app.broker.flush_all()
    app.broker.join("default", timeout=10)
    for act in (app.broker.join, app.broker.flush):
        with pytest.raises(QueueNotFound):
            act("unknown")
    with working(app):
        plain.send()
        app.broker.join("other", timeout=5000)

    assert done == ["plain"]
