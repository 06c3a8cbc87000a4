"""A process beside suspects: jobs whose workers keep dying are done a few at a time, and at last alone, by all books."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import dramatiq
import pytest

from bus import Bus, BusUnavailable, Event
from bus.store.base import ALONE
from bus.testing.lease_checks import lose_lease
from bus.testing.store_checks import Worker
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App


class Asked(Event, type="test.suspected", version=1):
    n: int


def suspects(bus: Bus, app: App, n: int, *, times: int = ALONE) -> None:
    """Jobs of the handler, each with so many leases run out under it."""
    app.bind()
    for number in range(n):
        bus.publish_sync(Asked(n=number))
    for _ in range(times):
        doomed, taken = list[Worker](), 0
        while taken < n:
            doomed.append(Worker(bus.store, f"doomed {len(doomed)}"))
            taken += len(doomed[-1].take(handlers=tuple(app.handlers), queue="default"))
        for each in doomed:
            lose_lease(each, to=Worker(bus.store, "sweeper"))


def occupied(app: App) -> tuple[list[Any], threading.Event]:
    """A handler that logs its numbers, and one of another queue that works until the event is set: the log, and the event."""
    log: list[Any] = []
    release = threading.Event()

    @app.on(Asked, topics="other", queue="other", name="other")
    def other(event: Asked) -> None:
        log.append("begun")
        release.wait(20)
        log.append("done")

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        log.append(event.n)

    return log, release


def test_what_must_be_alone_is_handed_back_where_its_worker_has_begun_something_meanwhile(bus: Bus) -> None:
    """It was idle when it asked, and while the question was on its way another queue's job came, and was dropped."""
    app = App(bus)
    log, release = occupied(app)
    asked = threading.Event()
    suspects(bus, app, 1)
    bus.usable()
    exchange = bus.store.exchange

    def slow(worker: str, settlements: Any, takes: Any) -> Any:
        if any(take.queue == "default" and take.idle for take in takes) and not asked.is_set():
            asked.set()
            bus.publish_sync(Asked(n=100), topics=["other"])
            wait_until(lambda: log == ["begun"], "the worker to be busy", 10)
            bus.store.flush("other")
        return exchange(worker, settlements, takes)

    bus.store.exchange = slow  # type: ignore[method-assign]
    with working(app, threads=4):
        wait_until(lambda: app.broker.lease.rooms.apart_for == "default|handler", "the worker to be set apart", 20)
        assert log == ["begun"]
        release.set()
        wait_until(lambda: len(log) == 3, "everything to be done", 10)

    assert log == ["begun", "done", 0]


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_worker_does_the_last_suspects_alone_and_everything_else_beside(bus: Bus, kind: str) -> None:
    app = App(bus)
    lock = threading.Lock()
    running: set[int] = set()
    company: dict[int, set[int]] = {}
    order: list[int] = []

    def begin(n: int) -> None:
        with lock:
            order.append(n)
            running.add(n)
            for each in running:
                company.setdefault(each, set()).update(running - {each})

    def end(n: int) -> None:
        with lock:
            running.discard(n)

    def on_thread(event: Asked) -> None:
        begin(event.n)
        threading.Event().wait(0.002)
        end(event.n)

    async def on_loop(event: Asked) -> None:
        begin(event.n)
        await asyncio.sleep(0.002)
        end(event.n)

    app.on(Asked, name="handler")(on_thread if kind == "thread" else on_loop)
    suspects(bus, app, 3)
    # Beside the suspects' handler one of the other kind, so that the queue's work is asked for in two takes.
    app.on(Asked, name="other", topics="other")(on_loop if kind == "thread" else on_thread)
    app.bind()
    for n in range(3, 160):
        bus.publish_sync(Asked(n=n), topics=["global"] if n < 60 else ["other"])
    with working(app, threads=4):
        app.broker.join("default", timeout=20_000)

    assert sorted(company) == list(range(160))
    assert min(order.index(n) for n in range(3)) < len(order) - 3, (
        "the suspects came last, for others were always asked first"
    )
    assert [company[n] for n in range(3)] == [set()] * 3, "others would have died with a suspect"
    assert any(company[n] for n in range(3, 160))


def test_suspects_that_need_not_be_alone_keep_nobody_waiting(bus: Bus) -> None:
    app = App(bus)
    release = asyncio.Event()
    begun: list[int] = []
    done: list[str] = []
    loops: list[asyncio.AbstractEventLoop] = []

    @app.on(Asked, name="handler", topics="global")
    async def handler(event: Asked) -> None:
        begun.append(event.n)
        loops.append(asyncio.get_running_loop())
        await release.wait()

    suspects(bus, app, 5, times=2)

    @app.on(Asked, name="other", topics="other")
    def other(event: Asked) -> None:
        done.append("other")

    with working(app, threads=2):
        wait_until(lambda: len(begun) == 5, "all suspects side by side")
        bus.publish_sync(Asked(n=5))
        bus.publish_sync(Asked(n=6), topics=["other"])
        wait_until(lambda: len(begun) == 6 and done == ["other"], "fresh work beside them")
        loops[0].call_soon_threadsafe(release.set)
        app.broker.join("default", timeout=10_000)


def test_a_busy_worker_finishes_before_it_takes_a_suspect(bus: Bus) -> None:
    app = App(bus)
    log, release = occupied(app)
    suspects(bus, app, 2)
    bus.store.pause("default")
    with working(app, threads=4):
        bus.publish_sync(Asked(n=100), topics=["other"])
        wait_until(lambda: log == ["begun"], "the worker to be busy")
        bus.store.resume("default")
        wait_until(lambda: app.broker.lease.rooms.apart_for == "default|handler", "the worker to be set apart")
        bus.publish_sync(Asked(n=101), topics=["other"])
        assert log == ["begun"]
        release.set()
        wait_until(lambda: len(log) == 6, "everything to be done")

    assert log in (["begun", "done", *first, "begun", "done", *then] for first, then in (([0], [1]), ([1], [0])))


def test_nobody_stands_apart_for_long_for_a_suspect_that_another_took(bus: Bus) -> None:
    app = App(bus)
    release = threading.Event()
    log: list[int] = []

    @app.on(Asked, topics="other", queue="other", name="other")
    def other(event: Asked) -> None:
        log.append(event.n)
        release.wait(20)

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        log.append(event.n)

    suspects(bus, app, 1)
    bus.store.pause("default")
    with working(app, threads=4):
        bus.publish_sync(Asked(n=100), topics=["other"])
        wait_until(lambda: log == [100], "the worker to be busy")
        bus.store.resume("default")
        wait_until(lambda: app.broker.lease.rooms.apart_for, "the worker to be set apart")
        another = Worker(bus.store, "another")
        (suspect,) = another.take(handlers=("handler",), queue="default")
        another.settle(suspect)
        bus.publish_sync(Asked(n=101))
        wait_until(lambda: log == [100, 101], "work beside the long job", timeout=5)
        release.set()


@pytest.mark.parametrize("how", ["its queue was dropped", "its lease ran out"])
@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_nobody_is_alone_beside_work_that_only_its_worker_knows_of(bus: Bus, kind: str, how: str) -> None:
    app = App(bus)
    release = threading.Event()
    log: list[Any] = []

    def on_thread(event: Asked) -> None:
        log.append("begun")
        if log.count("begun") == 1:
            release.wait(20)
            log.append("done")

    async def on_loop(event: Asked) -> None:
        await asyncio.to_thread(on_thread, event)

    app.on(Asked, topics="other", queue="other", name="other")(on_thread if kind == "thread" else on_loop)

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        log.append(event.n)

    suspects(bus, app, 1)
    bus.store.pause("default")
    with working(app, threads=4):
        bus.publish_sync(Asked(n=100), topics=["other"])
        wait_until(lambda: log == ["begun"], "the worker to be busy")
        if how == "its queue was dropped":
            bus.store.flush("other")
        else:  # as if it had stood still meanwhile; it is handed the job a second time, and does it
            worker, sweeper = Worker(bus.store, app.broker.lease.worker), Worker(bus.store, "sweeper")

            def lost() -> bool:  # its own next beat may come between
                recovered = sweeper.beat(received=0).recovered
                worker.beat(received=0, lease_ms=1)
                return recovered > 0

            wait_until(lost, "its lease to run out")
            wait_until(lambda: log == ["begun", "begun"], "the job to be done again")
            wait_until(lambda: bus.store.pending("other") == 0, "it to be settled")
        bus.store.resume("default")
        wait_until(lambda: app.broker.lease.rooms.apart_for == "default|handler", "the worker to be set apart")
        with app.broker.lease.changed:
            named = app.broker.lease.books.statement().held
        release.set()
        wait_until(lambda: len(log) == log.count("begun") + 2, "everything to be done")

    assert len(named) == 1, f"a beat would say that nothing is in hand: {named}"

    assert log[-2:] == ["done", 0]


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_all_fresh_work_goes_on_beside_many_that_must_be_alone(bus: Bus, kind: str) -> None:
    app = App(bus)
    log: list[str] = []

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        log.append("suspect")
        threading.Event().wait(0.005)

    def fresh(event: Asked) -> None:
        log.append("fresh")

    async def fresh_on_loop(event: Asked) -> None:
        fresh(event)

    suspects(bus, app, 30)
    for queue in ("default", "other"):
        chosen = fresh if kind == "thread" else fresh_on_loop
        app.on(Asked, name=f"fresh.{queue}", topics=queue, queue=queue)(chosen)
    app.bind()
    for queue in ("default", "other"):
        for n in range(3):
            bus.publish_sync(Asked(n=n), topics=[queue])
    with working(app, threads=4):
        wait_until(lambda: len(log) == 36, "everything to be done", 20)

    assert len(log) - log[::-1].index("fresh") < 12, f"fresh work waited: {log}"


def test_who_is_set_apart_asks_no_more_than_is_of_use(bus: Bus) -> None:
    """The reply that hands out the suspect is lost: the store says that this worker has it, and it has nothing."""
    app = App(bus)
    asked: list[float] = []
    done: list[int] = []
    store, lost = bus.store, threading.Event()

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        done.append(event.n)

    exchange = store.exchange

    def counting(worker: str, settlements: Any, takes: Any) -> Any:
        answer = exchange(worker, settlements, takes)
        asked.append(time.monotonic())
        if answer.taken and not lost.is_set():
            lost.set()
            raise BusUnavailable("the reply was lost", outcome="unknown")
        return answer

    suspects(bus, app, 1)
    bus.usable()
    store.exchange = counting  # type: ignore[method-assign]
    with working(app, threads=2):
        wait_until(lambda: done == [0], "it to come again", 10)
    assert lost.is_set()
    assert len(asked) < 60, f"it asked {len(asked)} times"


def test_nobody_is_alone_beside_what_an_earlier_worker_left_behind(bus: Bus) -> None:
    app = App(bus)
    log, release = occupied(app)
    suspects(bus, app, 1)
    bus.store.pause("default")
    worker = dramatiq.Worker(app.broker, worker_timeout=100, worker_threads=2)
    worker.start()
    bus.publish_sync(Asked(n=100), topics=["other"])
    wait_until(lambda: log == ["begun"], "the worker to be busy")
    worker.stop(timeout=100)
    first = app.broker.lease.worker
    bus.store.pause("other")
    bus.store.resume("default")
    with working(app, threads=2):
        assert app.broker.lease.worker != first
        wait_until(lambda: app.broker.lease.rooms.apart_for == "default|handler", "the worker to be set apart")
        assert log == ["begun"]
        release.set()
        wait_until(lambda: len(log) == 3, "everything to be done", 10)

    assert log == ["begun", "done", 0]


def test_a_coroutine_that_was_left_behind_with_its_loop_is_no_work(bus: Bus) -> None:
    app = App(bus)
    log: list[Any] = []

    @app.on(Asked, topics="other", queue="other", name="other")
    async def other(event: Asked) -> None:
        log.append("begun")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                log.append("resisted")

    @app.on(Asked, name="handler", topics="global")
    def handler(event: Asked) -> None:
        log.append(event.n)

    suspects(bus, app, 1)
    bus.store.pause("default")
    worker = dramatiq.Worker(app.broker, worker_timeout=100, worker_threads=2)
    worker.start()
    bus.publish_sync(Asked(n=100), topics=["other"])
    wait_until(lambda: log == ["begun"], "the worker to be busy")
    worker.stop(timeout=100)
    bus.store.pause("other")
    bus.store.resume("default")
    with working(app, threads=2):
        wait_until(lambda: log[-1] == 0, "the suspect, for nothing is at work")
