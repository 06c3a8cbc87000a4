"""What apps, middleware and messages do to a worker that it must survive, with nothing acknowledged that failed."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import CancelledError
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware
from dramatiq.middleware.time_limit import TimeLimitExceeded

from bus import Bus, Event
from bus.store.base import Job, Route
from tests.waiting import wait_until
from tests.workers.running import run_program, working
from workers import App, InvalidHandler
from workers.deadletters import DeadLetter, DeadLetters

QUICK: dict[str, Any] = {"min_backoff": 2, "max_backoff": 10}


class Poked(Event, type="test.poked", version=1):
    n: int
    agent_id: str = ""


def run(app: App) -> DeadLetter:
    """One event to its end, in the dead letters."""
    with working(app):
        app.bus.publish_sync(Poked(n=1))
        app.broker.join("default", timeout=15_000, fail_fast=False)
    (letter,) = DeadLetters(app.bus).find()
    return letter


class CutsShort(Middleware):
    """As a time limit that hits while a failure is being judged: what judges comes after it, and never does."""

    def __init__(self, times: int) -> None:
        self.times = times

    def after_process_message(self, *_: Any, **__: Any) -> None:
        if self.times > 0:
            self.times -= 1
            raise TimeLimitExceeded


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_whose_judging_is_cut_short_is_no_success(app: App) -> None:
    runs: list[int] = []

    @app.on(Poked, max_retries=2, **QUICK)
    def handler(event: Poked) -> None:
        runs.append(event.n)
        raise ValueError("no")

    app.broker.add_middleware(CutsShort(1))  # the last to be added is the first to hear of an end
    letter = run(app)

    assert len(runs) == 3
    assert [attempt.error for attempt in letter.attempts] == ["ValueError"] * 3


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_cancelled_error_of_the_apps_own_is_a_failure_like_any_other(app: App, kind: str) -> None:
    if kind == "async":

        @app.on(Poked, max_retries=2, **QUICK)
        async def awaits(event: Poked) -> None:
            task = asyncio.create_task(asyncio.sleep(10))
            task.cancel()
            await task
    else:

        @app.on(Poked, max_retries=2, **QUICK)
        def waits(event: Poked) -> None:
            raise CancelledError

    letter = run(app)

    assert [attempt.error for attempt in letter.attempts] == ["CancelledError"] * 3


OPAQUE = """
import logging
import dramatiq
from bus import Bus
from workers import App
from workers.deadletters import DeadLetters

class Opaque(Exception):  # as the usual wrapper of an API's error body
    def __getattr__(self, name):
        raise KeyError(name)

logging.disable()  # logging cannot show it either
app = App(Bus("memory://"))

@app.on("test.opaque", max_retries=1, min_backoff=2, max_backoff=10)
def handler(event):
    raise Opaque

worker = dramatiq.Worker(app.broker, worker_timeout=50)
worker.start()
app.bus.publish_sync({"type": "test.opaque"})
app.broker.join("default", timeout=10_000, fail_fast=False)
worker.stop()
for letter in DeadLetters(app.bus).find():
    print([attempt.error for attempt in letter.attempts], "in handler" in letter.attempts[0].traceback)
"""


def test_an_error_that_answers_no_questions_is_recorded_all_the_same() -> None:
    """In a process of its own: it breaks what looks at it, pytest included."""
    assert run_program(OPAQUE) == "['Opaque', 'Opaque'] True\n"


def test_throws_may_be_a_list_and_nothing_but_exceptions(app: App) -> None:
    @app.on(Poked, throws=[KeyError, ValueError])
    def handler(event: Poked) -> None:
        raise ValueError("hopeless")

    letter = run(app)

    assert len(letter.attempts) == 1
    for nonsense in ("ValueError", [ValueError, "KeyError"], int):
        with pytest.raises(InvalidHandler, match="throws="):
            app.on(Poked, name=f"never {nonsense}".replace(" ", "-"), throws=nonsense)(lambda _: None)


def test_options_that_are_no_json_cost_a_job_nothing(app: App) -> None:
    class Tags(Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            assert broker is app.broker
            message.options["tags"] = {("a", 1): 2}

    runs: list[int] = []

    @app.on(Poked, max_retries=2, **QUICK)
    def handler(event: Poked) -> None:
        runs.append(event.n)
        raise ValueError("no")

    app.broker.add_middleware(Tags())
    letter = run(app)

    assert (len(runs), len(letter.attempts)) == (3, 3)


@pytest.mark.parametrize(
    "change",
    [{"actor_name": ["x"]}, {"options": None}, {"options": []}, {"args": 1}, {"queue_name": "other"}, {"kwargs": "x"}],
    ids=repr,
)
def test_a_malformed_message_reaches_an_idle_worker_and_ends_in_the_dead_letters(
    app: App, bus: Bus, change: dict[str, Any]
) -> None:
    done: list[int] = []

    @dramatiq.actor(broker=app.broker, actor_name="actor")
    def actor(n: int) -> None:
        done.append(n)

    with working(app, threads=2):
        wait_until(lambda: bus.store.census().serving, "the worker to be known")
        actor.send(1)
        wait_until(lambda: done == [1], "the worker to have been idle, and woken")
        good = json.loads(actor.message(2).encode())
        bus.store.enqueue(Job("bad", Route("default", "actor", 1), "", b"m" + json.dumps(good | change).encode()), 1000)
        actor.send(2)
        app.broker.join("default", timeout=5000, fail_fast=False)
        actor.send(3)
        wait_until(lambda: done == [1, 2, 3], "the worker to go on")

    assert [attempt.error for letter in DeadLetters(bus).find() for attempt in letter.attempts] == ["Undecodable"]


def test_all_attempts_are_told_however_many(app: App) -> None:
    attempts: list[int] = []

    @app.on(Poked, max_retries=29, **QUICK)
    def handler(event: Poked, ctx: Any) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("x" * 500)

    letter = run(app)

    assert attempts == list(range(1, 31))
    assert [bool(attempt.traceback) for attempt in letter.attempts] == [False] * 10 + [True] * 20


def test_what_was_fetched_ahead_does_not_wait_behind_long_work(bus: Bus) -> None:
    busy, free = App(bus), App(bus)
    release = threading.Event()
    started: list[int] = []
    done: list[tuple[str, int]] = []

    def serve(app: App, name: str) -> None:
        @app.on(Poked, key="agent_id", name="handler")
        def handler(event: Poked) -> None:
            if event.agent_id == "long":
                started.append(event.n)
                release.wait(20)
            done.append((name, event.n))

    serve(busy, "busy")
    serve(free, "free")
    busy.bind()
    with working(busy, threads=1):
        for n in range(300):
            bus.publish_sync(Poked(n=n, agent_id=f"a{n}"))
        bus.publish_sync(Poked(n=300, agent_id="long"))
        for n in range(301, 321):
            bus.publish_sync(Poked(n=n, agent_id=f"b{n}"))
        wait_until(lambda: started, "the long one to begin", timeout=20)
        with working(free, threads=1):
            wait_until(lambda: len(done) == 320, "what was behind it to be done elsewhere", timeout=10)
            release.set()
            busy.broker.join("default", timeout=5000)

    assert sorted(n for _, n in done) == list(range(321))


def test_a_queue_without_an_actor_costs_nothing_and_wakes_for_its_first(app: App, bus: Bus) -> None:
    done: list[int] = []
    app.broker.declare_queue("later")
    with working(app) as worker:
        wait_until(lambda: getattr(worker.consumers["later"].consumer, "_hopes", None) == set(), "its consumer to rest")

        @dramatiq.actor(broker=app.broker, queue_name="later")
        def actor(n: int) -> None:
            done.append(n)

        actor.send(1)
        wait_until(lambda: done == [1], "the first job of a late actor")
