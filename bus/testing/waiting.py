"""Waiting for a condition that has a description: the one place in a test where time is allowed to pass.

A test never sleeps and hopes. It names what must become true, and goes on as soon as it is; where it never is, the
failure says what was waited for and what was seen last.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar, cast, overload

__all__ = ["NeverHappened", "eventually", "wait_until"]

T = TypeVar("T")

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


class NeverHappened(AssertionError):
    """A condition was still false at its deadline."""

    def __init__(self, what: str, timeout: float, last: object) -> None:
        super().__init__(f"waited {timeout:g} s for {what}; it never happened, and the last value was {last!r}")
        self.what = what
        self.timeout = timeout
        self.last = last


def wait_until(condition: Callable[[], T], what: str, timeout: float = 5.0) -> T:
    """Return ``condition()`` as soon as it is true; :class:`NeverHappened` after ``timeout`` seconds.

    Blocks its thread. ``what`` completes the sentence "waited for ...". What the condition raises is not caught.
    """
    for pause_s in _pauses(timeout):
        if last := condition():
            return last
        time.sleep(pause_s)
    if last := condition():
        return last
    raise NeverHappened(what, timeout, last)


@overload
async def eventually(condition: Callable[[], Awaitable[T]], what: str, timeout: float = 5.0) -> T: ...
@overload
async def eventually(condition: Callable[[], T], what: str, timeout: float = 5.0) -> T: ...
async def eventually(condition: Callable[[], T | Awaitable[T]], what: str, timeout: float = 5.0) -> T:
    """:func:`wait_until` for coroutines; the condition may be a coroutine function."""
    for pause_s in _pauses(timeout):
        if last := await _value(condition):
            return last
        await asyncio.sleep(pause_s)
    if last := await _value(condition):
        return last
    raise NeverHappened(what, timeout, last)


def _pauses(timeout: float) -> Iterator[float]:
    """Pauses that grow, until ``timeout`` seconds have really passed."""
    deadline, pause_s = _now() + timeout, _FIRST_PAUSE_S
    while (left_s := deadline - _now()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _now() -> float:
    # freezegun stops time.monotonic too, and a deadline would never come; it does not know this one.
    return time.clock_gettime(time.CLOCK_MONOTONIC)


async def _value(condition: Callable[[], T | Awaitable[T]]) -> T:
    value = condition()
    if inspect.isawaitable(value):
        return cast("T", await value)
    return value
