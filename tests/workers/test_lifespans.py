"""Lifespans: what an app has open while a worker works, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import MiddlewareError

from bus import Bus, Delivery, Event
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App, BootFailed


class Cue(Event, type="lifespans.cue", version=1):
    n: int = 0


def test_resources_are_opened_before_the_first_event_and_closed_after_the_last_in_reverse(app: App, bus: Bus) -> None:
    story: list[str] = []

    @app.lifespan
    async def first() -> AsyncIterator[None]:
        story.append("first opened")
        yield
        story.append("first closed")

    @app.lifespan
    async def second() -> AsyncIterator[None]:
        await bus.publish(Cue())
        story.append("second opened")
        yield
        await bus.publish(Cue())  # the bus is still open
        story.append("second closed")

    @app.on(Cue)
    async def handler(event: Cue) -> None:
        await asyncio.sleep(0.01)
        story.append("handled")

    app.bind()
    with working(app):
        app.broker.join("default", timeout=5000)

    assert story == ["first opened", "second opened", "handled", "second closed", "first closed"]


def test_a_listener_in_a_resource_hears_events_and_ends_with_the_worker(app: App, bus: Bus) -> None:
    story: list[Any] = []

    async def listen() -> None:
        try:
            async with bus.listen() as listener:
                story.append("listening")
                async for item in listener:
                    assert isinstance(item, Delivery)
                    story.append(item.event)
        finally:
            story.append("ended")

    @app.lifespan
    async def resources() -> AsyncIterator[None]:
        task = asyncio.create_task(listen())
        yield
        del task  # nobody cancels it: closing the bus's side does

    @app.on(Cue)
    def handler(event: Cue) -> None: ...

    with working(app):
        wait_until(lambda: story == ["listening"], "the listener")
        bus.publish_sync(Cue(n=1))
        wait_until(lambda: len(story) == 2, "the event to be heard")

    assert story == ["listening", Cue(n=1), "ended"]


def test_a_resource_that_fails_fails_the_boot_and_unwinds_what_was_open(app: App) -> None:
    story: list[str] = []

    @app.lifespan
    async def good() -> AsyncIterator[None]:
        story.append("opened")
        yield
        story.append("closed")

    @app.lifespan
    async def bad() -> AsyncIterator[None]:
        raise ConnectionError("no database at db:5432")
        yield  # type: ignore[unreachable]

    worker = dramatiq.Worker(app.broker, worker_threads=1)
    with pytest.raises(BootFailed, match="no database at db:5432") as failed:
        worker.start()

    assert story == ["opened", "closed"]
    assert isinstance(failed.value, MiddlewareError)  # what Dramatiq lets through


def test_a_resource_that_fails_on_the_way_out_does_not_keep_the_others_open(app: App) -> None:
    story: list[str] = []

    @app.lifespan
    async def good() -> AsyncIterator[None]:
        yield
        story.append("closed")

    @app.lifespan
    async def bad() -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot say goodbye")

    with working(app):
        pass

    assert story == ["closed"]
    assert app.runtime.failed


def test_a_resource_that_does_not_close_is_named(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.runtime.STOP_S", 0.1)
    story: list[str] = []

    @app.lifespan
    async def outer() -> AsyncIterator[None]:
        yield
        story.append("outer closed")

    @app.lifespan
    async def hangs() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    with working(app):
        pass

    (line,) = (record.getMessage() for record in caplog.records if "did not close" in record.getMessage())
    name = "test_a_resource_that_does_not_close_is_named.hangs"
    assert line == f"lifespan tests.workers.test_lifespans.{name} did not close in time and is left behind"
    assert app.runtime.failed


@pytest.mark.parametrize("fails_by", ["a task of its group", "its time limit"])
def test_a_lifespan_that_fails_while_it_is_open_ends_the_taking_and_no_lifespan_outside_of_it(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture, fails_by: str
) -> None:
    story: list[str] = []
    fail, release = threading.Event(), threading.Event()

    @app.lifespan
    async def outer() -> AsyncIterator[None]:
        yield
        story.append("outer closed")

    async def watch_the_pool() -> None:
        await asyncio.to_thread(fail.wait)
        raise ConnectionError("the pool is gone")

    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        try:
            if fails_by == "its time limit":
                async with asyncio.timeout(None) as limit:
                    loop = asyncio.get_running_loop()
                    when_failed = asyncio.create_task(asyncio.to_thread(fail.wait))
                    when_failed.add_done_callback(lambda _: limit.reschedule(loop.time()))
                    yield
            else:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(watch_the_pool())
                    yield
        finally:
            story.append("pool closed")

    @app.lifespan
    async def inner() -> AsyncIterator[None]:
        yield
        story.append("inner closed")

    @app.on(Cue)
    def handler(event: Cue) -> None:
        story.append("began")
        assert release.wait(10)
        story.append("ended")

    app.bind()
    with working(app):
        bus.publish_sync(Cue())
        wait_until(lambda: "began" in story, "the handler")
        fail.set()
        wait_until(lambda: "pool closed" in story, "the pool to be closed")
        release.set()
        wait_until(lambda: "ended" in story, "the handler to end")
        bus.publish_sync(Cue(n=2))

    assert story == ["began", "inner closed", "pool closed", "ended", "outer closed"]
    assert bus.store.pending("default") == 1, "it went on taking"
    assert app.runtime.failed
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("takes no more work" in line for line in said)
    assert any("pool failed while it was open" in line for line in said)


def test_a_lifespan_that_fails_while_another_one_opens_fails_the_boot_by_its_name(app: App) -> None:
    story: list[str] = []
    opening = asyncio.Event()

    async def fail() -> None:
        await opening.wait()
        raise ConnectionError("the pool is gone")

    @app.lifespan
    async def outer() -> AsyncIterator[None]:
        yield
        story.append("outer closed")

    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            yield

    @app.lifespan
    async def slow() -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    worker = dramatiq.Worker(app.broker, worker_threads=1)
    with pytest.raises(BootFailed, match=r"unhandled errors in a TaskGroup.*pool: mend it") as failed:
        worker.start()

    assert story == ["outer closed"]
    assert isinstance(failed.value.__cause__, BootFailed)
    assert isinstance(failed.value.__cause__.__cause__, ExceptionGroup)


def test_a_lifespan_that_is_told_of_a_cancelled_future_fails_the_boot_itself(app: App) -> None:
    @app.lifespan
    async def outer() -> AsyncIterator[None]:
        yield

    @app.lifespan
    async def inner() -> AsyncIterator[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.cancel()
        await answer
        yield

    worker = dramatiq.Worker(app.broker, worker_threads=1)
    with pytest.raises(BootFailed, match=r"inner: mend it"):
        worker.start()


def test_lifespans_that_fail_one_after_the_other_are_closed_one_by_one(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    story: list[str] = []
    fail = {name: threading.Event() for name in ("first", "third")}

    async def wait_and_fail(name: str) -> None:
        await asyncio.to_thread(fail[name].wait)
        raise ConnectionError(name)

    @app.lifespan
    async def first() -> AsyncIterator[None]:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wait_and_fail("first"))
                yield
        finally:
            story.append("first closed")

    @app.lifespan
    async def second() -> AsyncIterator[None]:
        yield
        story.append("second closed")

    @app.lifespan
    async def third() -> AsyncIterator[None]:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wait_and_fail("third"))
                yield
        finally:
            story.append("third closed")

    with working(app):
        fail["third"].set()
        wait_until(lambda: story == ["third closed"], "the inner one to be closed")
        fail["first"].set()
        wait_until(lambda: "first closed" in story, "the outer one to be closed")

    assert story == ["third closed", "second closed", "first closed"]
    said = [record.getMessage() for record in caplog.records if "failed while it was open" in record.getMessage()]
    assert [line.partition(" failed")[0].rpartition(".")[2] for line in said] == ["third", "first"]


def test_an_embedded_worker_whose_lifespan_fails_at_once_takes_nothing(app: App, bus: Bus) -> None:
    handled: list[int] = []

    async def fail() -> None:
        raise ConnectionError("at once")

    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            yield

    @app.on(Cue)
    def handler(event: Cue) -> None:
        handled.append(event.n)

    app.bind()
    with working(app):
        wait_until(lambda: app.runtime.failed, "it to fail")
        bus.publish_sync(Cue())
        assert app.broker.lease.quiet

    assert handled == []
    assert bus.store.pending("default") == 1
