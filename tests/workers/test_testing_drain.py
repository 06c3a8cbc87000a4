"""``app.testing.drain``: everything that is due, in the test's own hands, as a worker would do it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import Retry

from bus import Bus, Event
from bus.store.base import Settlement, Take
from tests.workers.running import working
from workers import App, Context
from workers.errors import CannotDrain
from workers.kit import Kit
from workers.middleware import CURRENT

pytestmark = pytest.mark.callboard("memory", "redis")


class Asked(Event, type="drain.asked", version=1):
    n: int
    agent_id: str = "ada"


class Answered(Event, type="drain.answered", version=1):
    n: int


@pytest.fixture
def callboard_app() -> App:
    return App(Bus("memory://"))


@pytest.fixture
def app(callboard_app: App, callboard: Kit) -> App:
    return callboard_app


@pytest.fixture
def bus(app: App) -> Bus:
    return app.bus


def declare(app: App, function: Callable[..., Any], *types: type[Event] | str, **options: Any) -> None:
    """A handler that is bound at once."""
    app.on(*(types or (Asked,)), name=function.__name__, **options)(function)
    app.bind()


async def test_it_runs_what_is_due_and_what_comes_of_that(app: App, bus: Bus) -> None:
    async def answer(event: Asked, ctx: Context) -> None:
        await ctx.publish(Answered(n=event.n))

    def thank(event: Answered) -> None: ...

    declare(app, answer)
    declare(app, thank, Answered)
    receipts = [await bus.publish(Asked(n=n)) for n in (1, 2)]

    ran = await app.testing.drain()

    assert sorted((each.handler, getattr(each.event, "n", 0)) for each in ran) == [
        ("answer", 1),
        ("answer", 2),
        ("thank", 1),
        ("thank", 2),
    ]
    assert {each.outcome for each in ran} == {"done"}
    assert await app.testing.drain() == []
    first = next(each for each in ran if each.handler == "thank" and each.event == Answered(n=1))
    assert first.envelope is not None
    assert first.envelope.causationid == receipts[0].id


async def test_async_handlers_run_on_the_tests_loop_and_sync_ones_beside_it(app: App, bus: Bus) -> None:
    seen: dict[str, object] = {}

    async def on_loop(event: Asked) -> None:
        seen["loop"] = asyncio.get_running_loop()

    def on_thread(event: Asked) -> None:
        seen["thread"] = threading.current_thread()
        seen["job"] = CURRENT.get()

    declare(app, on_loop)
    declare(app, on_thread)
    await bus.publish(Asked(n=1))
    await app.testing.drain()

    assert seen["loop"] is asyncio.get_running_loop()
    assert seen["thread"] is not threading.current_thread()
    assert seen["job"] is not None


def test_without_a_loop_sync_handlers_run_on_the_tests_own_thread(app: App, bus: Bus) -> None:
    seen: list[object] = []

    def here(event: Asked) -> None:
        seen.append(threading.current_thread())

    async def there(event: Asked, ctx: Context) -> None:
        seen.append(await ctx.once("step", lambda: "done"))

    declare(app, here)
    declare(app, there)
    bus.publish_sync(Asked(n=1))
    app.testing.drain_sync()

    assert threading.current_thread() in seen
    assert "done" in seen


async def test_agents_keep_their_order_and_handlers_run_one_at_a_time(app: App, bus: Bus) -> None:
    order: list[tuple[str, int]] = []
    at_once: list[int] = []

    async def answer(event: Asked) -> None:
        at_once.append(1)
        await asyncio.sleep(0)
        assert at_once.pop() == 1
        assert at_once == []
        order.append((event.agent_id, event.n))

    declare(app, answer, key="agent_id")
    for n in range(20):
        await bus.publish(Asked(n=n, agent_id="ab"[n % 2]))
    await app.testing.drain()

    assert [n for agent, n in order if agent == "a"] == list(range(0, 20, 2))
    assert [n for agent, n in order if agent == "b"] == list(range(1, 20, 2))


async def test_two_drains_of_the_same_events_run_in_the_same_order(app: App, bus: Bus) -> None:
    def one(event: Asked) -> None: ...

    async def two(event: Asked) -> None: ...

    declare(app, one, priority="low", key="agent_id")
    declare(app, two, queue="other")

    async def order() -> list[tuple[str, object]]:
        for n in range(6):
            await bus.publish(Asked(n=n, agent_id="ab"[n % 2]))
        return [(each.handler, each.event) for each in await app.testing.drain()]

    assert await order() == await order()


async def test_what_is_not_due_stays(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None:
        if event.n == 2:
            raise Retry(delay=60_000)

    declare(app, answer)
    await bus.publish(Asked(n=1), delay=60)
    await bus.publish(Asked(n=2))

    (ran,) = await app.testing.drain()

    assert (ran.event, ran.outcome, ran.retry_in_ms) == (Asked(n=2), "retry", 60_000)
    (count,) = bus.store.census().counts
    assert (count.unfinished, count.delayed, count.in_flight) == (2, 2, {})


async def test_what_a_handler_raises_is_raised_once_all_has_run(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None:
        if event.n < 3:
            raise KeyError(f"no answer to {event.n}")

    declare(app, answer)
    for n in (1, 2, 3):
        await bus.publish(Asked(n=n))

    with pytest.raises(KeyError, match="no answer to 1") as raised:
        await app.testing.drain()

    assert raised.value.__notes__ == [
        "and 1 more attempt(s) failed; drain(raise_errors=False) returns all",
    ]
    assert [each.outcome for each in app.testing.ran] == ["retry", "retry", "done"]


async def test_errors_are_told_and_not_raised_for_a_test_about_failures(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None:
        raise KeyError(event.n)

    declare(app, answer, max_retries=2, min_backoff=1, max_backoff=1)
    await bus.publish(Asked(n=1))

    ran: list[Any] = []
    while not ran or ran[-1].outcome == "retry":
        ran += await app.testing.drain(raise_errors=False)

    assert [(each.attempt, each.outcome) for each in ran] == [(1, "retry"), (2, "retry"), (3, "dead")]
    assert all(isinstance(each.error, KeyError) for each in ran)
    assert bus.store.dead_count() == 1
    assert len(app.broker.dead_letters) == 1


async def test_an_error_that_a_handler_declares_is_not_the_tests(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None:
        raise LookupError

    declare(app, answer, throws=LookupError)
    await bus.publish(Asked(n=1))

    (ran,) = await app.testing.drain()

    assert ran.outcome == "dead"


async def test_an_assertion_in_a_handler_fails_the_test(app: App, bus: Bus) -> None:
    async def answer(event: Asked) -> None:
        pytest.fail("not that")

    declare(app, answer)
    await bus.publish(Asked(n=1))

    with pytest.raises(pytest.fail.Exception, match="not that"):
        await app.testing.drain()


async def test_plain_actors_run_too_sync_and_async(app: App) -> None:
    seen: list[int] = []

    @dramatiq.actor(broker=app.broker)
    def plain(n: int) -> None:
        seen.append(n)

    @dramatiq.actor(broker=app.broker, queue_name="other")
    async def waiting(n: int) -> None:
        seen.append(n)
        plain.send(n + 1)

    waiting.send(1)

    ran = await app.testing.drain()

    assert seen == [1, 2]
    assert [(each.handler, each.event) for each in ran] == [("waiting", None), ("plain", None)]


async def test_lifespans_are_open_while_handlers_run(app: App, bus: Bus) -> None:
    told: list[str] = []

    @app.lifespan
    async def database() -> AsyncIterator[None]:
        told.append("open")
        yield
        told.append("close")

    def answer(event: Asked) -> None:
        told.append("answer")

    declare(app, answer)
    await bus.publish(Asked(n=1))
    await app.testing.drain()
    assert told == ["open", "answer", "close"]

    told.clear()
    async with app.testing.lifespan():
        for n in (2, 3):
            await bus.publish(Asked(n=n))
            await app.testing.drain()
    assert told == ["open", "answer", "answer", "close"]


async def test_a_lifespan_that_fails_meanwhile_fails_the_test(app: App) -> None:
    closed = asyncio.Event()

    async def fail() -> None:
        raise ConnectionError("the pool is gone")

    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                yield
        finally:
            closed.set()

    with pytest.raises(ExceptionGroup) as raised:
        async with app.testing.lifespan():
            await closed.wait()

    assert raised.group_contains(ConnectionError, match="the pool is gone")


def test_lifespans_are_open_without_a_loop_of_the_tests_too(app: App, bus: Bus) -> None:
    told: list[str] = []

    @app.lifespan
    async def database() -> AsyncIterator[None]:
        told.append("open")
        yield
        told.append("close")

    def answer(event: Asked) -> None:
        told.append("answer")

    declare(app, answer)
    bus.publish_sync(Asked(n=1))
    app.testing.drain_sync()

    assert told == ["open", "answer", "close"]


async def test_a_handler_that_keeps_itself_busy_ends_the_drain(app: App, bus: Bus) -> None:
    async def answer(event: Asked, ctx: Context) -> None:
        await ctx.publish(Asked(n=event.n + 1))

    declare(app, answer)
    await bus.publish(Asked(n=1))

    with pytest.raises(CannotDrain, match="after 20 attempts there is still work due, now for answer"):
        await app.testing.drain(most=20)
    (count,) = bus.store.census().counts
    assert (count.unfinished, count.in_flight) == (1, {})


async def test_a_cancelled_drain_cancels_its_handler_and_hands_the_event_back(app: App, bus: Bus) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def answer(event: Asked) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    declare(app, answer)
    await bus.publish(Asked(n=1))
    draining = asyncio.create_task(app.testing.drain())
    await begun.wait()
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining

    assert ended.is_set()
    (count,) = bus.store.census().counts
    assert (count.unfinished, count.ready, count.in_flight) == (1, 1, {})


async def test_what_cannot_be_read_goes_to_the_dead_letters_and_what_is_behind_it_runs(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None: ...

    declare(app, answer)
    for n in range(4):
        await bus.publish(Asked(n=n))
    for ticket in range(3):
        (taken,) = bus.store.exchange("w", [], [Take(ticket + 1, "default", ("answer",), 1)]).taken
        bus.store.exchange("w", [Settlement(taken.job, taken.ticket, "dead", notes=b"{}")], [])
    spoiled = [dead.job for dead in bus.store.dead()]
    bus.store.replay([(job, b"no json") for job in spoiled])

    ran = await app.testing.drain()

    assert [each.event for each in ran] == [Asked(n=3)]
    assert bus.store.dead_count() == 3
    bus.store.leave("w")


async def test_beside_a_worker_it_says_what_to_do(app: App, bus: Bus) -> None:
    def answer(event: Asked) -> None: ...

    declare(app, answer)
    with working(app), pytest.raises(CannotDrain, match=r"app\.broker\.join"):
        await app.testing.drain()

    await bus.publish(Asked(n=1))
    (ran,) = await app.testing.drain()
    assert ran.outcome == "done"


async def test_a_loop_that_runs_is_not_blocked_by_mistake(app: App) -> None:
    with pytest.raises(CannotDrain, match=r"await app\.testing\.drain"):
        app.testing.drain_sync()


async def test_a_worker_may_follow_a_drain(app: App, bus: Bus) -> None:
    seen: list[int] = []

    def answer(event: Asked) -> None:
        seen.append(event.n)

    declare(app, answer)
    await bus.publish(Asked(n=1))
    await app.testing.drain()
    with working(app):
        await bus.publish(Asked(n=2))
        await asyncio.to_thread(app.broker.join, "default", timeout=5_000)

    assert seen == [1, 2]
    assert [each.event for each in app.testing.ran] == [Asked(n=1), Asked(n=2)]


async def test_a_handler_that_was_declared_late_is_bound_by_the_next_drain(app: App, bus: Bus) -> None:
    @app.on(Asked, name="late")
    def late(event: Asked) -> None: ...

    assert (await bus.publish(Asked(n=1))).jobs == 0
    await app.testing.drain()

    assert (await bus.publish(Asked(n=2))).jobs == 1
