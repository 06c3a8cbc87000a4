"""Delays and priorities, as a worker keeps them."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import dramatiq
import pytest

from bus import Bus, Event
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App


class Due(Event, type="test.due", version=1):
    n: int


def test_delayed_work_comes_on_time_and_not_with_the_next_beat(app: App, bus: Bus) -> None:
    """A beat comes each second; what is due between two of them does not wait for the next."""
    late: list[float] = []
    due: dict[int, float] = {}

    @app.on(Due)
    def handler(event: Due) -> None:
        late.append(time.time() - due[event.n])

    @dramatiq.actor(broker=app.broker)
    def actor(n: int) -> None:
        late.append(time.time() - due[n])

    with working(app):
        for n in range(12):
            due[n] = time.time() + 0.15 + n / 10
            match n % 3:
                case 0:
                    bus.publish_sync(Due(n=n), delay=due[n] - time.time())
                case 1:
                    bus.publish_sync(Due(n=n), at=datetime.fromtimestamp(due[n], UTC))
                case _:
                    actor.send_with_options(args=(n,), delay=int((due[n] - time.time()) * 1000))
        wait_until(lambda: len(late) == 12, "all of it to be due")

    assert min(late) > -0.02, "too early"
    assert sorted(late)[6] < 0.3, f"half of it came late: {sorted(late)}"


def test_delayed_work_is_kept_by_the_store_at_any_distance(app: App, bus: Bus) -> None:
    done: list[int] = []

    @app.on(Due, name="handler")
    def handler(event: Due) -> None:
        done.append(event.n)

    with working(app):
        bus.publish_sync(Due(n=1), delay=timedelta(days=3650))
        bus.publish_sync(Due(n=2))
        wait_until(lambda: done == [2], "what is due to be done")
    (count,) = bus.store.census().counts

    assert (count.delayed, count.unfinished, count.in_flight) == (1, 1, {})


@pytest.mark.parametrize("kind", ["handler", "actor"])
def test_urgent_work_overtakes_what_waits(app: App, bus: Bus, kind: str) -> None:
    order: list[str] = []
    begun, release = threading.Event(), threading.Event()

    def work(name: str) -> None:
        begun.set()
        release.wait(10)
        order.append(name)

    def low(event: Due) -> None:
        work("low")

    def high(event: Due) -> None:
        work("high")

    if kind == "handler":
        app.on(Due, topics="low", priority="low", name="low")(low)
        app.on(Due, topics="high", priority="high", name="high")(high)
    else:
        dramatiq.actor(broker=app.broker, priority=10, actor_name="low")(low)
        dramatiq.actor(broker=app.broker, priority=-10, actor_name="high")(high)

    def ask(name: str) -> None:
        if kind == "handler":
            bus.publish_sync(Due(n=1), topics=[name])
        else:
            app.broker.get_actor(name).send(1)

    app.bind()
    for _ in range(60):
        ask("low")
    with working(app, threads=1):
        assert begun.wait(5)
        for _ in range(3):
            ask("high")
        release.set()
        app.broker.join("default", timeout=10_000)

    assert len(order) == 63
    assert max(at for at, name in enumerate(order) if name == "high") < 8, order
