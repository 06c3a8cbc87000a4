"""What the kit breaks on purpose, and what the system does about it; a fault that never struck proves nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import dramatiq
import pytest

from bus import Bus, BusError, Event, Gap
from bus.testing.moving import moved
from tests.waiting import wait_until
from workers import App, Context
from workers.kit import Kit
from workers.testing import world

pytestmark = pytest.mark.callboard("memory", "redis")


class Paid(Event, type="fault.paid", version=1):
    agent_id: str
    n: int


@pytest.fixture
def done() -> list[int]:
    return []


@pytest.fixture
def charged() -> list[int]:
    return []


@pytest.fixture
def callboard_app(done: list[int], charged: list[int]) -> App:
    app = App(Bus("memory://"))

    @app.on(Paid, key="agent_id", name="charge")
    async def charge(event: Paid, ctx: Context) -> None:
        await ctx.once("charge", lambda: charged.append(event.n))
        done.append(event.n)

    return app


async def publish(app: App, count: int) -> None:
    for n in range(count):
        await app.bus.publish(Paid(agent_id="ada", n=n))


async def test_a_delivery_comes_twice_and_its_steps_are_done_once(
    callboard: Kit, callboard_app: App, done: list[int], charged: list[int]
) -> None:
    fault = callboard.duplicate_next_delivery()
    await publish(callboard_app, 3)
    await callboard.drain()

    assert fault.struck
    assert done == [0, 0, 1, 2], "again at once, before its agent's next"
    assert charged == [0, 1, 2]


async def test_a_take_whose_answer_is_lost_loses_no_event(callboard: Kit, callboard_app: App, done: list[int]) -> None:
    faults = [callboard.fail_next_take(), callboard.fail_next_take()]
    await publish(callboard_app, 5)
    await callboard.drain()

    assert [fault.struck for fault in faults] == [True, True]
    assert done == [0, 1, 2, 3, 4]


async def test_a_worker_comes_through_both(
    callboard: Kit, callboard_app: App, callboard_worker: dramatiq.Worker, done: list[int]
) -> None:
    faults = [callboard.fail_next_take(), callboard.duplicate_next_delivery()]
    await publish(callboard_app, 50)
    await asyncio.to_thread(callboard_app.broker.join, "default", timeout=10_000)

    assert [fault.struck for fault in faults] == [True, True]
    assert sorted(set(done)) == list(range(50))
    assert len(done) == 51


async def test_a_listener_comes_through_a_dropped_connection(callboard: Kit, callboard_app: App) -> None:
    async with callboard_app.bus as bus, callboard.recorder("global") as heard:
        await publish(callboard_app, 3)
        await heard.until(lambda events: len(events) == 3, "what came before")

        assert await asyncio.to_thread(callboard.drop_connection) >= 1
        await publish(callboard_app, 3)
        await heard.until(lambda events: len(events) >= 6, "what came after")
        assert bus.status().connected

    assert [getattr(event, "n", None) for event in heard.events] == [0, 1, 2, 0, 1, 2]
    assert not any(isinstance(item, Gap) for item in heard.items)


@pytest.mark.callboard("redis")
def test_a_publisher_comes_through_a_dropped_connection(callboard: Kit, callboard_app: App) -> None:
    callboard_app.bus.publish_sync(Paid(agent_id="ada", n=1))

    assert callboard.drop_connection() >= 1
    callboard_app.bus.publish_sync(Paid(agent_id="ada", n=2))

    assert [event.n for event in callboard.published(Paid)] == [1, 2]
    callboard_app.bus.close_sync()


@pytest.mark.callboard("redis")
def test_a_worker_comes_through_dropped_connections(
    callboard: Kit, callboard_app: App, callboard_worker: dramatiq.Worker, done: list[int]
) -> None:
    for n in range(30):
        callboard_app.bus.publish_sync(Paid(agent_id="ada", n=n))
        if n % 10 == 5:
            assert callboard.drop_connection() >= 1
    wait_until(lambda: set(done) == set(range(30)), "all to be done", timeout=15)


@pytest.mark.callboard("memory")
def test_where_nothing_is_connected_there_is_nothing_to_drop(callboard: Kit) -> None:
    with pytest.raises(BusError, match="there is no connection to drop"):
        callboard.drop_connection()


def test_a_fault_that_never_struck_fails_the_test(callboard_app: App) -> None:
    with (
        pytest.raises(AssertionError, match="the next take that brings work loses its answer never came"),
        world(callboard_app.testing, "memory://", "elsewhere") as kit,
    ):
        kit.fail_next_take()


def test_after_the_test_the_store_is_what_it_was(callboard_app: App) -> None:
    store: Any = callboard_app.bus.store
    kept = callboard_app.bus.publish_sync(Paid(agent_id="ada", n=1))

    with world(callboard_app.testing, "memory://", "elsewhere") as kit:
        assert callboard_app.bus.store is not store
        kit.duplicate_next_delivery()
        callboard_app.bus.publish_sync(Paid(agent_id="ada", n=2))
        kit.drain_sync()
        assert kit.published(Paid) == [Paid(agent_id="ada", n=2)]

    assert callboard_app.bus.store is store
    assert not {"exchange", "wait"} & set(vars(store))
    assert [event.n for event in callboard_app.testing.published(Paid)] == [1]
    assert callboard_app.bus.publish_sync(Paid(agent_id="ada", n=3)).position.seq == kept.position.seq + 1


async def test_an_open_bus_is_not_moved_under_its_owners(callboard_app: App) -> None:
    async with callboard_app.bus as bus:
        with pytest.raises(BusError, match="this bus is open"), moved(bus, "memory://", "elsewhere"):
            pass


def test_bindings_of_one_world_are_not_taken_for_anothers(callboard_app: App) -> None:
    """Both stores are at version 1 of their bindings, and these are not the same."""
    callboard_app.bind()
    assert callboard_app.bus.publish_sync(Paid(agent_id="ada", n=1)).jobs == 1

    @callboard_app.on(Paid, name="second")
    def second(event: Paid) -> None: ...

    with world(callboard_app.testing, "memory://", "elsewhere"):
        assert callboard_app.bus.publish_sync(Paid(agent_id="ada", n=2)).jobs == 2
    assert callboard_app.bus.publish_sync(Paid(agent_id="ada", n=3)).jobs == 1
