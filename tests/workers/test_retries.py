"""Retries: Dramatiq's options and names, with a verdict that the settle writes in one step."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import Retry

from bus import Bus, Event
from tests.workers.running import working
from workers import App, Context
from workers.deadletters import DeadLetter, DeadLetters

QUICK: dict[str, Any] = {"min_backoff": 2, "max_backoff": 10}


class Tried(Event, type="test.tried", version=1):
    n: int


def run(app: App) -> list[DeadLetter]:
    """One event to its end; the dead letters."""
    with working(app):
        app.bus.publish_sync(Tried(n=1))
        app.broker.join("default", timeout=10_000, fail_fast=False)
    return list(DeadLetters(app.bus).find())


def test_by_default_there_are_five_tries(app: App) -> None:
    tries: list[int] = []

    @app.on(Tried, **QUICK)
    def handler(event: Tried, ctx: Context) -> None:
        tries.append(ctx.attempt)
        raise RuntimeError("no")

    (letter,) = run(app)

    assert tries == [1, 2, 3, 4, 5]
    assert [attempt.error for attempt in letter.attempts] == ["RuntimeError"] * 5


@pytest.mark.parametrize(("most", "tries"), [(0, 1), (2, 3)])
def test_max_retries_bounds_them(app: App, most: int, tries: int) -> None:
    tried: list[int] = []

    @app.on(Tried, max_retries=most, **QUICK)
    async def handler(event: Tried, ctx: Context) -> None:
        tried.append(ctx.attempt)
        raise RuntimeError("no")

    (letter,) = run(app)

    assert (len(tried), len(letter.attempts)) == (tries, tries)


def test_what_throws_names_is_not_tried_again(app: App) -> None:
    @app.on(Tried, throws=(KeyError, ValueError), **QUICK)
    def handler(event: Tried) -> None:
        raise ValueError("hopeless")

    (letter,) = run(app)

    assert [(attempt.error, attempt.message) for attempt in letter.attempts] == [("ValueError", "hopeless")]


def test_retry_when_decides_in_place_of_the_count(app: App) -> None:
    asked: list[tuple[int, str]] = []

    def again(retries: int, error: BaseException) -> bool:
        asked.append((retries, type(error).__name__))
        return retries < 6

    @app.on(Tried, retry_when=again, max_retries=0, **QUICK)
    def handler(event: Tried) -> None:
        raise OSError("flaky")

    (letter,) = run(app)

    assert asked == [(n, "OSError") for n in range(7)]
    assert len(letter.attempts) == 7


@pytest.mark.parametrize("kind", ["handler", "actor"])
def test_a_retry_may_name_its_own_delay(app: App, kind: str) -> None:
    at: list[float] = []

    def work(_: Any = None) -> None:
        at.append(time.monotonic())
        if len(at) < 3:
            raise Retry("not yet", delay=80)

    if kind == "handler":
        app.on(Tried, min_backoff=60_000, max_backoff=60_000, name="work")(work)
        letters = run(app)
    else:
        actor = dramatiq.actor(broker=app.broker, min_backoff=60_000, max_backoff=60_000)(work)
        with working(app):
            actor.send()
            app.broker.join("default", timeout=10_000)
        letters = []

    assert letters == []
    assert len(at) == 3
    assert all(later - sooner >= 0.08 for sooner, later in pairwise(at))


def test_an_actor_is_told_of_what_was_tried_in_vain(app: App) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    @dramatiq.actor(broker=app.broker)
    def sorry(message: dict[str, Any], facts: dict[str, Any]) -> None:
        told.append((message["actor_name"], facts))

    @app.on(Tried, max_retries=1, on_retry_exhausted="sorry", name="handler", **QUICK)
    def handler(event: Tried) -> None:
        raise RuntimeError("no")

    (letter,) = run(app)

    assert (letter.handler, told) == ("handler", [("handler", {"retries": 1, "max_retries": 1})])


def test_backoff_grows_with_jitter_between_its_bounds(app: App, bus: Bus) -> None:
    waits: list[int] = []

    @app.on(Tried, name="handler", key="n", min_backoff=40, max_backoff=160)
    def handler(event: Tried) -> None:
        raise RuntimeError("no")

    seen: set[str] = set()

    class Spy(dramatiq.Middleware):
        def before_ack(self, *about: Any) -> None:
            waits.append(about[-1].retry_in_ms)
            seen.add(about[-1].message_id)

    app.broker.add_middleware(Spy())
    with working(app):
        for n in range(8):
            bus.publish_sync(Tried(n=n))
        app.broker.join("default", timeout=20_000, fail_fast=False)

    assert (len(seen), len(waits)) == (8, 32)
    assert all(20 <= wait <= 160 for wait in waits), waits
    assert len(set(waits)) > 16, "no jitter: all that failed together would come back together"
    assert max(waits) > 80, "it does not grow"
