"""Starting and stopping under load, again and again: no task, thread, socket or lease stays, and no work is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import dramatiq
import pytest

from bus import Bus, BusUnavailable, Event
from tests import leaks
from tests.waiting import wait_until
from workers import App, BootFailed


class Cue(Event, type="test.start_stop.cue", version=1):
    agent_id: str = "a1"
    n: int = 0


class Load:
    """Handlers on the loop and on threads, an actor of each kind, and a task that listens beside them."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.done: list[tuple[str, int]] = []
        self.tasks: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()
        self.cancelled = 0

        @app.lifespan
        async def listening() -> AsyncIterator[None]:
            self.tasks.add(asyncio.create_task(self.listen()))
            yield

        @app.on(Cue, key="agent_id", name="quick")
        async def quick(event: Cue) -> None:
            await self.note("quick", event.n)

        @app.on(Cue, name="on_thread")
        def on_thread(event: Cue) -> None:
            self.done.append(("on_thread", event.n))

        @app.on(Cue, key="agent_id", name="stopped_once")
        async def stopped_once(event: Cue) -> None:
            await self.wait_for_the_stop_now_and_then(event.n)
            await self.note("stopped_once", event.n)

        @dramatiq.actor(broker=app.broker, queue_name="plain")
        async def plain(n: int) -> None:
            await self.note("plain", n)

        self.plain = plain
        self.stopped: set[int] = set()

    async def listen(self) -> None:
        async with self.app.bus.listen() as listener:
            async for _ in listener:
                pass

    async def note(self, name: str, n: int) -> None:
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        self.done.append((name, n))

    async def wait_for_the_stop_now_and_then(self, n: int) -> None:
        if n % 7 == 0 and n not in self.stopped:
            self.stopped.add(n)
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1

    def publish(self, n: int) -> None:
        self.app.bus.publish_sync(Cue(agent_id=f"a{n % 5}", n=n))
        self.plain.send(n)


@pytest.mark.parametrize("cycles", [8, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_starts_and_stops_under_load_leave_nothing_and_lose_nothing(bus: Bus, cycles: int) -> None:
    sockets = leaks.sockets_now()
    app = App(bus)
    load = Load(app)
    app.bind()
    bus.open_sync()  # what the test itself has open is not the worker's
    threads = leaks.threads_now()
    middleware = len(app.broker.middleware)
    numbers = iter(range(10_000))
    published: list[int] = []
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.005):
            published.append(next(numbers))
            load.publish(published[-1])

    for _ in range(cycles):
        publisher = threading.Thread(target=publish)
        worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=3)
        worker.start()
        publisher.start()
        begun = len(load.done)
        wait_until(lambda begun=begun: len(load.done) > begun + 3, "some work to be done")  # type: ignore[misc]
        worker.stop(timeout=20)
        over.set()
        publisher.join()
        over.clear()
        del app.broker.middleware[middleware:]  # Dramatiq leaves one behind for each worker
        wait_until(lambda: leaks.threads_now() <= threads, "all threads of the worker to end")
        assert not [task for task in load.tasks if not task.done()], "a task was left"
        assert not bus.store.census().serving, "a lease was left"
        assert not [count for count in bus.store.census().counts if count.in_flight], "a job is held by nobody"

    load.stopped.update(published)  # nobody stops the last one before all is done
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=3)
    worker.start()
    for queue in ("default", "plain"):
        app.broker.join(queue, timeout=20_000, fail_fast=False)
    worker.stop()

    assert load.cancelled, "no handler was in the middle of its work when its worker stopped"
    for name in ("quick", "on_thread", "stopped_once", "plain"):
        assert {n for which, n in load.done if which == name} == set(published), f"{name} lost work"
    for agent in range(5):
        order = [n for which, n in load.done if which == "quick" and n % 5 == agent]
        assert list(dict.fromkeys(order)) == sorted(set(order)), "an agent's events changed places"
    assert bus.store.dead_count() == 0
    bus.close_sync()
    wait_until(lambda: gc.collect() >= 0 and leaks.sockets_now() <= sockets, "all sockets to be closed")


@pytest.mark.parametrize("fault", ["resource", "bindings", "lease"])
def test_a_boot_that_fails_anywhere_leaves_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    app = App(bus)
    load = Load(app)

    def fail(*_: object, **__: object) -> None:
        raise BusUnavailable("on purpose")

    if fault == "resource":

        @app.lifespan
        async def failing() -> AsyncIterator[None]:
            raise ConnectionError("on purpose")
            yield  # type: ignore[unreachable]

    elif fault == "bindings":
        monkeypatch.setattr(bus, "bind", fail)
    else:
        monkeypatch.setattr(app.broker.lease, "start", fail)
    before, sockets = leaks.threads_now(), leaks.sockets_now()
    bus.open_sync()

    for _ in range(3):
        with pytest.raises(BootFailed, match="on purpose"):
            dramatiq.Worker(app.broker, worker_threads=2).start()

    assert not [task for task in load.tasks if not task.done()]
    assert not bus.store.census().serving
    bus.close_sync()
    wait_until(lambda: leaks.threads_now() <= before, "all threads of the worker to end")
    wait_until(lambda: gc.collect() >= 0 and leaks.sockets_now() <= sockets, "all sockets to be closed")
