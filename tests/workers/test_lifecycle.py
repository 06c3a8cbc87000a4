from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from bus import Bus, BusClosed, BusUnavailable, Event
from bus.store.base import ALONE, Take
from tests import leaks
from tests.servers import Server
from tests.waiting import wait_until
from tests.workers.running import start_program, working
from workers import App, BootFailed, Context, WorkersError


class Cue(Event, type="test.cue", version=1):
    agent_id: str = "a1"
    n: int = 0


def test_tasks_that_handlers_left_behind_are_cancelled_and_their_finally_runs(app: App, bus: Bus) -> None:
    story: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def linger() -> None:
        try:
            story.append("lingering")
            await asyncio.Event().wait()
        finally:
            story.append("cancelled")

    @app.on(Cue)
    async def handler(event: Cue) -> None:
        tasks.append(asyncio.create_task(linger()))

    with working(app):
        bus.publish_sync(Cue())
        wait_until(lambda: story == ["lingering"], "the task")

    assert story == ["lingering", "cancelled"]


def test_a_worker_of_what_is_paused_says_so_as_it_starts(app: App, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    @app.on(Cue, name="paused_before", queue="plain")
    def handler(event: Cue) -> None: ...

    @app.on(Cue, name="in_a_paused_queue", queue="halted")
    def another(event: Cue) -> None: ...

    @app.on(Cue, name="goes_on", queue="plain")
    def a_third(event: Cue) -> None: ...

    bus.usable()
    paused = ("plain|paused_before", "halted", "somebody_elses", "old_place|goes_on", "goes_on")
    for name in paused:
        bus.store.pause(name)
    with working(app):
        pass
    told = [record for record in caplog.records if "is taken until" in record.getMessage()]
    for name in paused:
        bus.store.resume(name)
    with working(app):
        pass

    assert [record.levelname for record in told] == ["WARNING"]
    assert told[0].getMessage().endswith("'callboard queues resume': halted, paused_before")
    assert len([record for record in caplog.records if "is taken until" in record.getMessage()]) == 1


def test_what_a_stopping_worker_had_not_begun_is_the_next_ones_in_order(app: App, bus: Bus) -> None:
    begun, release = threading.Event(), threading.Event()
    handled: list[int] = []

    @app.on(Cue, key="agent_id")
    def handler(event: Cue, ctx: Context) -> None:
        begun.set()
        release.wait(10)
        handled.append(event.n)

    app.bind()
    for agent in ("a1", "a2", "a3"):
        for n in range(3):
            bus.publish_sync(Cue(agent_id=agent, n=n))
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    assert begun.wait(5)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_until(lambda: app.broker.lease.quiet, "the worker to be quiet")
    release.set()
    stopping.join(10)
    after_first = list(handled)
    with working(app, threads=1):
        app.broker.join("default", timeout=5000)

    assert after_first == [0]
    assert len(handled) == 9
    assert bus.store.dead_count() == 0


def test_a_handler_sees_that_the_worker_is_stopping(app: App, bus: Bus) -> None:
    seen: list[bool] = []
    begun = threading.Event()

    @app.on(Cue)
    def handler(event: Cue, ctx: Context) -> None:
        seen.append(ctx.cancelled)
        begun.set()
        wait_until(lambda: ctx.cancelled, "the worker to stop")
        seen.append(ctx.cancelled)

    with working(app):
        bus.publish_sync(Cue())
        assert begun.wait(5)

    assert seen == [False, True]


def test_who_resists_its_cancelling_holds_up_no_others_hand_back(app: App, bus: Bus) -> None:
    running, ended, release = set[str](), set[str](), threading.Event()

    @app.on(Cue, key="agent_id", name="handler")
    async def handler(event: Cue) -> None:
        running.add(event.agent_id)
        try:
            await asyncio.Event().wait()
        finally:
            if event.agent_id == "stubborn":
                await asyncio.to_thread(release.wait, 5)
            ended.add(event.agent_id)

    app.bind()
    for who in ("stubborn", "willing"):
        bus.publish_sync(Cue(agent_id=who))
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    wait_until(lambda: len(running) == 2, "both to run")
    stopping = threading.Thread(target=worker.stop, kwargs={"timeout": 100})
    stopping.start()
    wait_until(lambda: "willing" in ended, "the willing one to be cancelled")

    def take() -> list[Any]:
        return list(bus.store.exchange("heir", (), [Take(1, "default", ("handler",), 10)]).taken)

    (taken,) = wait_until(take, "its event to be had by others", timeout=1)
    assert ended == {"willing"}
    assert b"willing" in taken.body
    release.set()
    stopping.join(10)
    bus.store.leave("heir")


def test_async_work_is_cancelled_when_the_grace_ends_and_not_when_the_consumers_wake(app: App, bus: Bus) -> None:
    begun, ended = threading.Event(), threading.Event()
    ended_at = 0.0

    @app.on(Cue)
    async def handler(event: Cue) -> None:
        nonlocal ended_at
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended_at = time.monotonic()
            ended.set()

    app.bind()
    worker = dramatiq.Worker(app.broker, worker_timeout=2_900, worker_threads=1)
    worker.start()
    bus.publish_sync(Cue())
    assert begun.wait(5)
    began = time.monotonic()
    worker.stop(timeout=1_500)

    assert ended.is_set()
    assert 1.5 <= ended_at - began < 2.2


def test_a_handler_has_the_whole_grace_however_many_threads_are_idle(app: App, bus: Bus) -> None:
    threads = 8
    everybody, begun, release, ended = (
        threading.Barrier(threads),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    @app.on(Cue)
    def handler(event: Cue) -> None:
        everybody.wait(10)
        if threading.current_thread() is last:
            begun.set()
            release.wait(10)
            ended.set()

    worker = dramatiq.Worker(app.broker, worker_timeout=500, worker_threads=threads)
    worker.start()
    last = [each for each in worker.workers if isinstance(each, threading.Thread)][-1]  # behind them stands the loop
    for _ in range(threads):
        bus.publish_sync(Cue())
    assert begun.wait(5)
    stopping = threading.Thread(target=worker.stop, kwargs={"timeout": 4_000})
    stopping.start()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2.5, "half of the grace to pass")
    still_waits = app.broker.lease.running() == 1
    release.set()
    stopping.join(10)

    assert still_waits
    assert ended.is_set()
    assert bus.store.pending("default") == 0


def test_a_second_worker_of_an_app_is_refused_and_the_first_works_on(app: App, bus: Bus) -> None:
    handled: list[int] = []

    @app.on(Cue)
    async def handler(event: Cue) -> None:
        handled.append(event.n)

    with working(app):
        second = dramatiq.Worker(app.broker, worker_threads=1)
        with pytest.raises(BootFailed, match="one at a time"):
            second.start()
        second.stop()
        bus.publish_sync(Cue(n=1))
        app.broker.join("default", timeout=5000)
    with working(app):
        bus.publish_sync(Cue(n=2))
        app.broker.join("default", timeout=5000)

    assert handled == [1, 2]


def test_a_worker_closes_only_what_it_opened(app: App, bus: Bus) -> None:
    @app.on(Cue)
    def handler(event: Cue) -> None: ...

    bus.open_sync()
    with working(app):
        pass
    assert bus.publish_sync(Cue()).jobs == 1
    bus.close_sync()

    with pytest.raises(BusClosed):
        bus.publish_sync(Cue())


def test_twenty_starts_and_stops_under_load_leave_nothing(app: App, bus: Bus) -> None:
    handled: list[int] = []

    @app.on(Cue, key="agent_id")
    async def handler(event: Cue) -> None:
        handled.append(event.n)

    threads, sockets = leaks.threads_now(), leaks.sockets_now()
    for n in range(20):
        with working(app):
            for _ in range(5):
                bus.publish_sync(Cue(agent_id=f"a{n % 3}", n=n))
    with working(app):
        app.broker.join("default", timeout=5000)
    bus.rest()

    assert len(handled) == 100
    wait_until(lambda: leaks.threads_now() <= threads, "all threads to end")
    wait_until(lambda: len(leaks.sockets_now()) <= len(sockets), "all sockets to be closed")


WORKER = """
import os, sys, time
import dramatiq
from bus import Bus
from workers import App
app = App(Bus(sys.argv[1], namespace=sys.argv[2]))
@app.on("test.cue", key="agent_id", name="handler")
def handler(event):
    with open(sys.argv[3], "a") as ledger:
        ledger.write(f"{os.getpid()} {event['n']}\\n")
    if event["n"] == 1 and sys.argv[4] == "hang":
        time.sleep(600)
worker = dramatiq.Worker(app.broker, worker_threads=2)
worker.start()
print("ready", flush=True)
sys.stdin.read()
worker.stop()
"""


@pytest.mark.slow
def test_the_events_of_a_killed_worker_run_again_within_ten_seconds(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    bus = Bus(redis_url, namespace=namespace)
    doomed = start_program(WORKER, redis_url, namespace, str(ledger), "hang")
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "ready\n"
    for n in range(4):
        bus.publish_sync({"type": "test.cue", "agent_id": "a1", "n": n})
    wait_until(
        lambda: ledger.exists() and ledger.read_text().endswith(" 1\n"), "the handler to hang in the second event"
    )

    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    heir = start_program(WORKER, redis_url, namespace, str(ledger), "work")
    try:
        wait_until(lambda: ledger.read_text().count("\n") == 5, "the events to run again", timeout=10)
    finally:
        heir.communicate("", timeout=20)
    bus.close_sync()

    assert [line.split()[1] for line in ledger.read_text().splitlines()] == ["0", "1", "1", "2", "3"]
    assert heir.returncode == 0


def test_a_worker_binds_its_handlers_again_on_a_server_that_comes_back_empty(
    start_server: Callable[..., Server], namespace: str
) -> None:
    server = start_server()
    bus = Bus(server.url, namespace=namespace)
    app = App(bus)
    handled: list[int] = []

    @app.on(Cue, key="agent_id")
    def handler(event: Cue) -> None:
        handled.append(event.n)

    with working(app):
        assert bus.publish_sync(Cue(n=1)).jobs == 1
        app.broker.join("default", timeout=5000)
        with server.client() as client:
            client.flushall()
        wait_until(lambda: bus.store.bindings().bindings, "the bindings to be written again")
        assert bus.publish_sync(Cue(n=2)).jobs == 1
        server.restart()  # without an append-only file, so empty
        wait_until(lambda: found_bindings(bus), "the bindings to be written again", timeout=15)
        assert bus.publish_sync(Cue(n=3)).jobs == 1
        wait_until(lambda: 3 in handled, "the work to go on", timeout=10)
    bus.close_sync()

    assert handled[0] == 1


def found_bindings(bus: Bus) -> bool:
    try:
        return bool(bus.store.bindings().bindings)
    except BusUnavailable:
        return False


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_no_two_of_a_lane_run_at_once_when_one_outlasts_the_grace(app: App, bus: Bus, kind: str) -> None:
    story: list[str] = []
    release = threading.Event()

    @app.lifespan
    async def slow_to_close() -> AsyncIterator[None]:
        yield
        story.append("closing")

    @app.on(Cue, key="agent_id", name="stubborn")
    def on_thread(event: Cue, ctx: Context) -> None:
        story.append(f"begun {event.n}")
        release.wait(10)
        story.append(f"ended {event.n}")

    @app.on(Cue, key="agent_id", name="patient")
    async def on_loop(event: Cue, ctx: Context) -> None:
        story.append(f"begun {event.n}")
        try:
            await asyncio.Event().wait()
        finally:
            story.append(f"ended {event.n}")

    del app.handlers["stubborn" if kind == "async" else "patient"]  # not bound, so it gets no work
    app.bind()
    bus.publish_sync(Cue(n=1))
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    wait_until(lambda: story == ["begun 1"], "the handler to begin")
    worker.stop(timeout=100)
    pending = bus.store.pending("default")
    taken = bus.store.exchange("w2", (), [Take(1, "default", ("stubborn", "patient"), 10)]).taken
    release.set()
    wait_until(lambda: "ended 1" in story, "the handler to end")
    bus.store.leave("w2")
    bus.rest()

    assert pending == 1
    if kind == "async":  # cancelled, and only then available to others
        assert story == ["begun 1", "ended 1", "closing"]
        assert len(taken) == 1
    else:  # it cannot be interrupted, so nobody else gets it before its lease ends
        assert taken == []


def test_a_job_that_is_alone_for_what_became_of_its_workers_is_named(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []

    @app.on(Cue, name="handler")
    def handler(event: Cue) -> None:
        handled.append(event.n)

    app.bind()
    bus.publish_sync(Cue())
    store = bus.store
    for life in range(ALONE):
        doomed = f"doomed-{life}"
        (taken,) = store.exchange(doomed, (), [Take(1, "default", ("handler",), 1)]).taken
        store.beat(doomed, 1, 1, ((taken.job, taken.ticket),), 99)
        wait_until(lambda: store.beat("sweeper", 60_000, 0, (), 99).recovered, "its lease to run out")
    with working(app):
        wait_until(lambda: handled, "it to be handled")
    store.leave("sweeper")

    (line,) = (record.getMessage() for record in caplog.records if "have died with" in record.getMessage())
    assert line.startswith(f"{ALONE} workers have died with job {taken.job} of handler (")


# What a stop says of itself.


@pytest.mark.parametrize("place", ["thread", "coroutine", "to_thread", "hook"])
def test_a_handler_that_stops_its_own_worker_is_told_at_once_how_to(app: App, bus: Bus, place: str) -> None:
    raised: list[BaseException] = []
    handled: list[int] = []

    def stop() -> None:
        try:
            worker.stop()
        except BaseException as error:
            raised.append(error)
            raise

    class Stopping(dramatiq.Middleware):
        def after_process_message(self, *_: Any, **__: Any) -> None:
            stop()

    if place == "thread":

        @app.on(Cue, max_retries=0)
        def handler(event: Cue) -> None:
            if event.n == 0:
                stop()
            handled.append(event.n)
    else:

        @app.on(Cue, max_retries=0)
        async def handler_on_the_loop(event: Cue) -> None:
            if event.n == 0 and place == "coroutine":
                stop()
            elif event.n == 0 and place == "to_thread":
                await asyncio.to_thread(stop)
            handled.append(event.n)

    if place == "hook":
        app.broker.add_middleware(Stopping())
    with working(app) as worker:
        bus.publish_sync(Cue(n=0))
        wait_until(lambda: raised, "the stop to be refused", 2)
        bus.publish_sync(Cue(n=1))
        wait_until(lambda: 1 in handled, "the worker to go on")

    assert isinstance(raised[0], WorkersError)
    assert "threading.Thread(target=worker.stop).start()" in str(raised[0])


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_handler_may_have_another_thread_stop_its_worker(app: App, bus: Bus, *, is_async: bool) -> None:
    stopping = threading.Thread(target=lambda: worker.stop(10_000))
    handled: list[int] = []

    def act(event: Cue) -> None:
        stopping.start()
        handled.append(event.n)

    if is_async:

        @app.on(Cue)
        async def handler(event: Cue) -> None:
            act(event)
    else:

        @app.on(Cue)
        def handler_on_a_thread(event: Cue) -> None:
            act(event)

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    bus.publish_sync(Cue(n=0))
    wait_until(lambda: handled, "the handler")
    stopping.join(3)

    assert not stopping.is_alive()
    bus.open_sync()
    assert bus.store.pending("default") == 0


def test_handlers_that_are_cancelled_at_the_end_are_told_in_one_line(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "callboard")
    begun: list[str] = []

    async def wait(name: str) -> None:
        begun.append(name)
        await asyncio.Event().wait()

    @app.on(Cue, name="moderate")
    async def moderate(event: Cue) -> None:
        await wait("moderate")

    @app.on(Cue, name="summarise", topics="few")
    async def summarise(event: Cue) -> None:
        await wait("summarise")

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    for n in range(20):
        bus.publish_sync(Cue(n=n), topics=["global", "few"] if n < 5 else ["global"])
    wait_until(lambda: len(begun) == 25, "all to begin")
    worker.stop(timeout=50)

    (line,) = (record.getMessage() for record in caplog.records if "cancelled" in record.getMessage())
    assert line == "25 handlers were cancelled, to run again: moderate 20, summarise 5"


def test_handlers_that_do_not_end_are_named(app: App, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    begun: list[int] = []

    @app.on(Cue, name="hangs")
    def hangs(event: Cue) -> None:
        begun.append(event.n)
        release.wait(20)

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    threads = [*worker.workers]
    bus.publish_sync(Cue())
    bus.publish_sync(Cue())
    wait_until(lambda: len(begun) == 2, "both to begin")
    worker.stop(timeout=50)
    release.set()
    for thread in threads:
        thread.join(5)

    (line,) = (record.getMessage() for record in caplog.records if "do not end" in record.getMessage())
    assert line.startswith("the grace is over, and these handlers do not end: hangs 2 (jobs ")
    assert not app.runtime.failed  # they run again elsewhere


def test_what_blocks_in_a_thread_is_named_and_left_behind(app: App, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    begun, release = threading.Event(), threading.Event()

    def fetch(_page: int) -> None:
        begun.set()
        release.wait(30)

    @app.on(Cue, name="reader")
    async def reader(event: Cue) -> None:
        await asyncio.to_thread(fetch, event.n)

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    bus.publish_sync(Cue())
    assert begun.wait(5)
    began_at = time.monotonic()
    worker.stop(timeout=50)
    took_s = time.monotonic() - began_at
    release.set()

    assert took_s < 4
    assert not app.runtime.failed
    (line,) = (record.getMessage() for record in caplog.records if "left behind" in record.getMessage())
    assert line.endswith("test_what_blocks_in_a_thread_is_named_and_left_behind.fetch 1")


def test_nobody_waits_once_more_for_a_handler_that_does_not_let_itself_be_cancelled(
    app: App, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runtime.CANCEL_S", 0.1)
    monkeypatch.setattr("workers.runtime.STOP_S", 60)
    begun = threading.Event()

    @app.on(Cue, name="resists")
    async def resists(event: Cue) -> None:
        begun.set()
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    bus.publish_sync(Cue())
    assert begun.wait(5)
    began_at = time.monotonic()
    worker.stop(timeout=50)

    assert time.monotonic() - began_at < 30
    assert not app.runtime.failed  # its event runs again elsewhere


def test_where_the_loop_is_blocked_is_told_beside_those_that_cannot_end_for_it(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []
    release = threading.Event()

    @app.on(Cue, name="handler")
    async def handler(event: Cue) -> None:
        begun.append(event.n)
        if event.n == 1:
            release.wait(30)
        await asyncio.Event().wait()

    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    for n in range(2):
        bus.publish_sync(Cue(agent_id=f"a{n}", n=n))
        wait_until(lambda n=n: n in begun, "it to begin")  # type: ignore[misc]
    worker.stop(timeout=50)
    release.set()

    (line,) = (record.getMessage() for record in caplog.records if "do not end" in record.getMessage())
    why, _, which = line.partition(": handler 2 (jobs ")
    assert why.startswith("the grace is over, and these handlers do not end, for the event loop is blocked at ")
    assert "test_lifecycle.py:" in why
    assert which
    assert app.runtime.failed


def test_a_task_that_does_not_let_itself_be_cancelled_is_named(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.runtime.STOP_S", 0.1)
    release = asyncio.Event()

    async def stays() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    @app.lifespan
    async def resource() -> AsyncIterator[None]:
        staying.append(asyncio.create_task(stays()))
        yield

    staying: list[asyncio.Task[None]] = []
    with working(app):
        pass

    (line,) = (record.getMessage() for record in caplog.records if "left behind" in record.getMessage())
    assert line.startswith("left behind on the event loop, for it does not let itself be cancelled: ")
    assert "test_lifecycle.py" in line
    assert line.endswith(" in stays 1")
    assert app.runtime.failed
