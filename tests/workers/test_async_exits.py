"""What a coroutine does at its end, or instead of one, is its own affair: the loop, the others and the job survive it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn

import dramatiq
import pytest
from dramatiq.middleware import TimeLimitExceeded

from bus import Bus, Event
from bus.store.base import Take
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App, BootFailed


class Cue(Event, type="exits.cue", version=1):
    n: int = 0


async def leave(how: type[BaseException]) -> NoReturn:
    raise how


async def a_subtask_that_exits() -> None:
    await asyncio.gather(leave(SystemExit))


async def a_subtask_that_is_interrupted() -> None:
    await asyncio.gather(leave(KeyboardInterrupt))


async def the_loop_stopped() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize("act", [a_subtask_that_exits, a_subtask_that_is_interrupted, the_loop_stopped])
def test_the_loop_goes_on(
    app: App, bus: Bus, act: Callable[[], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []
    closed: list[bool] = []

    @app.lifespan
    async def resource() -> AsyncIterator[None]:
        yield
        closed.append(True)

    @app.on(Cue, max_retries=0)
    async def handler(event: Cue) -> None:
        if event.n == 0:
            await act()
        handled.append(event.n)

    with working(app):
        bus.publish_sync(Cue())
        app.broker.join("default", timeout=5000, fail_fast=False)
        bus.publish_sync(Cue(n=1))
        app.broker.join("default", timeout=5000, fail_fast=False)

    assert handled[-1] == 1
    assert closed
    assert "goes on" in caplog.text


def test_a_resource_that_exits_fails_the_boot_with_its_message(app: App) -> None:
    @app.lifespan
    async def resource() -> AsyncIterator[None]:
        if app.bus.mode:
            sys.exit("no API key")
        yield

    worker = dramatiq.Worker(app.broker, worker_threads=1)

    with pytest.raises(BootFailed, match="could not start: a resource asked for an exit: no API key"):
        worker.start()


def test_a_resource_that_exits_when_it_is_closed_keeps_no_other_open(app: App) -> None:
    closed: list[bool] = []

    @app.lifespan
    async def outer() -> AsyncIterator[None]:
        yield
        closed.append(True)

    @app.lifespan
    async def inner() -> AsyncIterator[None]:
        yield
        sys.exit(3)

    with working(app):
        pass

    assert closed


async def converting() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise RuntimeError("interrupted") from None


async def failing_to_clean_up() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise ConnectionError("closed already")


async def exiting() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        sys.exit(3)


async def a_group_that_fails() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(failing_to_clean_up())


def is_handed_back_by_a_stop(app: App, bus: Bus, so_far: threading.Event) -> None:
    """An event's handler has come so far when its worker stops: the event runs again, and no attempt was counted."""
    app.bind()
    bus.publish_sync(Cue())
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    wait_until(so_far.is_set, "the handler to come so far")
    worker.stop(timeout=50)

    (taken,) = bus.store.exchange("heir", (), [Take(1, "default", ("handler",), 1)]).taken
    bus.store.leave("heir")

    assert bus.store.dead_count() == 0
    assert taken.notes == b"", "an attempt was counted"


@pytest.mark.parametrize("act", [converting, failing_to_clean_up, exiting, a_group_that_fails])
def test_what_a_handler_raises_when_its_worker_ends_is_no_failure(
    app: App, bus: Bus, act: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    begun = threading.Event()
    told: list[Any] = []

    @dramatiq.actor(broker=app.broker, queue_name="told")
    def failed(*what: Any) -> None:
        told.append(what)

    @app.on(Cue, name="handler", max_retries=0, on_failure="failed")
    async def handler(event: Cue) -> None:
        begun.set()
        await act()

    is_handed_back_by_a_stop(app, bus, begun)
    assert (bus.store.pending("told"), told) == (0, []), "somebody was told of a failure"


def test_a_handler_that_resists_its_time_limit_and_then_ends_with_its_worker_has_not_failed(app: App, bus: Bus) -> None:
    resisted = threading.Event()

    @app.on(Cue, name="handler", max_retries=0, time_limit=20)
    async def handler(event: Cue) -> None:
        try:
            await asyncio.Event().wait()
        except TimeLimitExceeded:
            raise AssertionError("a coroutine is cancelled") from None
        except asyncio.CancelledError:
            resisted.set()
            await asyncio.Event().wait()

    is_handed_back_by_a_stop(app, bus, resisted)
