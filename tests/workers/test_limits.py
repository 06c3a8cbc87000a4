"""Time limits on a loop: many coroutines, one timer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextvars import Context, ContextVar

import pytest

from tests.virtual_time import VirtualLoop
from workers.loop.limits import FEW, NO_LIMIT, Limits


class One:
    """Notes when its time was over."""

    def __init__(self, loop: VirtualLoop, limit_s: float) -> None:
        self._loop = loop
        self.limit_s = limit_s
        self.over_at: list[float] = []

    def time_over(self) -> None:
        self.over_at.append(self._loop.time())


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


@pytest.fixture
def limits(loop: VirtualLoop) -> Iterator[Limits]:
    limits = Limits(loop.time)
    yield limits
    limits.close()
    loop.pass_time(1000)


def begun(loop: VirtualLoop, limits: Limits, limit_s: float) -> One:
    one = One(loop, limit_s)
    limits.begin(one, loop)
    return one


def test_each_is_told_when_its_own_time_is_over(loop: VirtualLoop, limits: Limits) -> None:
    ones = []
    for _ in range(3):
        ones.append(begun(loop, limits, 10))
        loop.pass_time(3)
    short = begun(loop, limits, 0.5)
    loop.pass_time(100)

    assert [one.over_at for one in ones] == [[pytest.approx(10)], [pytest.approx(13)], [pytest.approx(16)]]
    assert short.over_at == [pytest.approx(9.5)]


def test_who_has_ended_is_not_told_and_keeps_nobody_from_being_told(loop: VirtualLoop, limits: Limits) -> None:
    first, second, third = (begun(loop, limits, 10) for _ in range(3))
    loop.pass_time(5)
    late = begun(loop, limits, 10)

    limits.end(first)
    limits.end(first)
    limits.end(third)
    loop.pass_time(100)

    assert (first.over_at, third.over_at) == ([], [])
    assert [second.over_at, late.over_at] == [[pytest.approx(10)], [pytest.approx(15)]]


def test_thousands_with_the_same_limit_share_a_timer(loop: VirtualLoop, limits: Limits) -> None:
    for _ in range(5_000):
        begun(loop, limits, 600)
    unlimited = begun(loop, limits, NO_LIMIT)

    assert limits.timers == 1

    loop.pass_time(1_000)

    assert limits.timers == 0
    assert unlimited.over_at == []


def test_limits_that_nobody_has_any_more_are_forgotten(loop: VirtualLoop, limits: Limits) -> None:
    for number in range(1, 50):
        limits.end(begun(loop, limits, number))
    few = limits.timers
    loop.pass_time(50)

    assert (few, limits.timers) == (FEW, 0)


def test_what_is_no_number_is_no_limit(loop: VirtualLoop, limits: Limits) -> None:
    one = begun(loop, limits, float("nan"))
    loop.pass_time(50)
    limits.end(one)

    assert (one.over_at, limits.timers) == ([], 0)


def test_one_that_begins_another_in_its_last_moment_harms_nobody(loop: VirtualLoop, limits: Limits) -> None:
    class Again(One):
        def time_over(self) -> None:
            super().time_over()
            if len(self.over_at) < 3:
                limits.begin(self, self._loop)

    again = Again(loop, 2)
    limits.begin(again, loop)
    loop.pass_time(10)

    assert again.over_at == [pytest.approx(2), pytest.approx(4), pytest.approx(6)]


def test_nobody_is_told_after_the_end(loop: VirtualLoop, limits: Limits) -> None:
    one = begun(loop, limits, 1)

    limits.close()
    limits.close()
    loop.pass_time(10)

    assert one.over_at == []


def test_a_timer_keeps_nothing_of_the_job_for_which_it_was_set(loop: VirtualLoop, limits: Limits) -> None:
    class Message:
        pass

    current: ContextVar[Message] = ContextVar("current")

    def job() -> weakref.ref[Message]:
        message = Message()
        current.set(message)
        limits.end(begun(loop, limits, 10))
        begun(loop, limits, 10)
        return weakref.ref(message)

    gone = Context().run(job)
    loop.pass_time(5)
    gc.collect()

    assert limits.timers == 1
    assert gone() is None
