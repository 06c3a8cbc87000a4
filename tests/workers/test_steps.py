"""The step ledger: a repeated attempt does not pay again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from freezegun import freeze_time

from bus import Bus, Event
from bus.envelope import Envelope
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App, Context, InvalidStep
from workers.deadletters import DeadLetters
from workers.middleware import CURRENT

QUICK: dict[str, Any] = {"min_backoff": 5, "max_backoff": 20}


class Charged(Event, type="test.charged", version=1):
    amount: int


def run(app: App, *amounts: int) -> None:
    with working(app):
        for amount in amounts:
            app.bus.publish_sync(Charged(amount=amount))
        app.broker.join("default", timeout=10_000, fail_fast=False)


def test_a_step_is_done_once_however_often_the_event_is_attempted(app: App) -> None:
    done: list[tuple[str, int]] = []
    given: list[Any] = []

    @app.on(Charged, **QUICK)
    async def asynchronous(event: Charged, ctx: Context) -> None:
        async def pay() -> dict[str, Any]:
            done.append(("async", event.amount))
            return {"receipt": event.amount, "at": ["a", None]}

        given.append(await ctx.once("pay", pay))
        if ctx.attempt < 3:
            raise RuntimeError("after the step")

    @app.on(Charged, **QUICK)
    def on_a_thread(event: Charged, ctx: Context) -> None:
        given.append(ctx.once_sync("pay", lambda: done.append(("sync", event.amount))))
        given.append(ctx.once_sync("tell", lambda: (1, 2)))
        if ctx.attempt < 3:
            raise RuntimeError("after both steps")

    run(app, 1, 2)

    assert sorted(done) == [("async", 1), ("async", 2), ("sync", 1), ("sync", 2)]
    assert [given.count(each) for each in ({"receipt": 1, "at": ["a", None]}, None, [1, 2])] == [3, 6, 6]


def test_a_step_that_raises_is_not_done(app: App) -> None:
    tried: list[int] = []

    @app.on(Charged, **QUICK)
    async def handler(event: Charged, ctx: Context) -> None:
        def pay() -> str:
            tried.append(ctx.attempt)
            if ctx.attempt == 1:
                raise ConnectionError("the bank is away")
            return "paid"

        assert await ctx.once("pay", pay) == "paid"

    run(app, 1)

    assert tried == [1, 2]


def test_a_replayed_dead_letter_does_not_repeat_what_was_done(app: App, bus: Bus) -> None:
    done: list[int] = []
    broken = True

    @app.on(Charged, max_retries=0)
    def handler(event: Charged, ctx: Context) -> None:
        ctx.once_sync("pay", lambda: done.append(event.amount))
        if broken:
            raise RuntimeError("mend me")

    run(app, 7)
    broken = False
    letters = DeadLetters(bus)
    (letter,) = letters.find()
    assert list(letters.replay([letter.job])) == [(letter.job, True)]
    run(app)

    assert (done, list(letters.find())) == ([7], [])


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("", 1, "name"),
        ("a\nb", 1, "name"),
        ("pay", object(), "JSON"),
        ("pay", float("nan"), "JSON"),
        ("pay", "x" * 300_000, "bytes"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_to_do(app: App, name: str, value: object, complaint: str) -> None:
    complaints: list[str] = []

    @app.on(Charged, max_retries=0)
    def handler(event: Charged, ctx: Context) -> None:
        with pytest.raises(InvalidStep) as caught:
            ctx.once_sync(name, lambda: value)
        complaints.append(str(caught.value))

    run(app, 1)

    assert len(complaints) == 1
    assert complaint in complaints[0]


def test_a_handler_called_by_hand_keeps_its_steps_to_itself(bus: Bus) -> None:
    app = App(bus)
    done: list[int] = []

    @app.on(Charged, name="handler")
    async def handler(event: Charged, ctx: Context) -> None:
        for _ in range(2):
            await ctx.once("pay", lambda: done.append(event.amount))

    for _ in range(2):
        ctx = Context(
            bus,
            Envelope(id="same", source="test", type="test.charged", time="2026-01-01T00:00:00Z", data={}),
            "handler",
            1,
            lambda: False,
        )
        asyncio.run(handler(Charged(amount=1), ctx))

    assert done == [1, 1]


def test_memory_forgets_the_steps_of_a_finished_job_in_an_hour(namespace: str) -> None:
    app = App(Bus(f"memory://{namespace}"))
    jobs: list[str] = []

    @app.on(Charged)
    def handler(event: Charged, ctx: Context) -> None:
        ctx.once_sync("pay", lambda: "paid")
        job = CURRENT.get()
        assert job is not None
        jobs.append(job.job)

    run(app, 1)
    store = app.bus.store

    assert store.recall(jobs[0], "pay") == b'"paid"'
    with freeze_time() as clock:
        clock.tick(3599)
        assert store.recall(jobs[0], "pay") == b'"paid"'
        clock.tick(2)
        assert store.recall(jobs[0], "pay") is None
    app.bus.close_sync()


def test_steps_do_not_wait_for_the_threads_that_an_app_keeps_busy(app: App) -> None:
    release = threading.Event()
    blocked: list[int] = []
    given: list[Any] = []

    def block() -> None:
        blocked.append(1)
        release.wait(10)

    @app.on(Charged)
    async def handler(event: Charged, ctx: Context) -> None:
        if event.amount < 0:
            await asyncio.gather(*(asyncio.to_thread(block) for _ in range(40)))
        else:
            given.append(await ctx.once("pay", lambda: 1))

    with working(app):
        app.bus.publish_sync(Charged(amount=-1))
        wait_until(lambda: blocked, "the loop's threads to be busy")
        app.bus.publish_sync(Charged(amount=1))
        wait_until(lambda: given, "the step to be done")
        release.set()
        app.broker.join("default", timeout=10_000)
