"""Every check of the contract suite, on both stores."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

import pytest
from freezegun import freeze_time

from bus.clock import Clock
from bus.store import inbox
from bus.store.base import Confirmed, Frame, Store
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing import CALM_LEASE_MS, LEASE_CHECKS, LOG_CHECKS, QUEUE_CHECKS, SHORT_LEASE_MS, Check
from bus.testing.store_checks import write


def make(mode: str, url: str, namespace: str, lease_ms: int) -> Store:
    return (
        MemoryStore(Clock(), lease_ms=lease_ms) if mode == "memory" else RedisStore(url, namespace, lease_ms=lease_ms)
    )


@contextmanager
def opened(store: Store) -> Iterator[Store]:
    store.open()
    try:
        yield store
    finally:
        store.close()


def run(check: Check, store: Store) -> None:
    with opened(store):
        outcome: Any = check(store)
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)


def sentence(check: Any) -> str:
    return str(check.__name__).removeprefix("check_")


@pytest.mark.parametrize("check", LOG_CHECKS, ids=sentence)
def test_logs(check: Check, mode: str, url: str, namespace: str) -> None:
    run(check, make(mode, url, namespace, CALM_LEASE_MS))


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=sentence)
def test_queues(check: Check, mode: str, url: str, namespace: str) -> None:
    run(check, make(mode, url, namespace, CALM_LEASE_MS))


@pytest.mark.parametrize("check", LEASE_CHECKS, ids=sentence)
def test_leases(check: Check, mode: str, url: str, namespace: str) -> None:
    run(check, make(mode, url, namespace, SHORT_LEASE_MS))


def test_the_mode_is_told(mode: str, url: str, namespace: str) -> None:
    assert make(mode, url, namespace, CALM_LEASE_MS).mode == mode


# -- what only memory can get wrong ------------------------------------------------------------------------------------


def test_a_wait_in_memory_ends_while_the_clock_stands_still() -> None:
    store = MemoryStore(Clock(), lease_ms=CALM_LEASE_MS)

    with freeze_time("2026-07-28"):
        assert store.wait(["q|h"], 0.02).rang is None


async def test_a_loop_that_falls_behind_is_told_and_misses_nothing_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MOST", 5)
    store = MemoryStore(Clock(), lease_ms=CALM_LEASE_MS)
    publisher = threading.Thread(target=lambda: [write(store, b"x") for _ in range(3_000)], name="publisher")
    heard: list[int] = []

    async with aclosing(cast("AsyncGenerator[Frame | Confirmed]", store.on_loop().subscribe("main"))) as frames:
        await anext(frames)
        publisher.start()
        while heard[-1:] != [3_000]:
            one = await anext(frames)
            if isinstance(one, Confirmed):
                heard.clear()  # there may be a hole before it
            else:
                heard.append(one.entry.seq)
    publisher.join()

    assert heard == list(range(heard[0], 3_001))


def test_a_publisher_is_not_held_up_by_a_loop_that_has_ended() -> None:
    store = MemoryStore(Clock(), lease_ms=CALM_LEASE_MS)
    left_open = []

    async def listen_and_forget() -> None:
        frames = cast("AsyncGenerator[Frame | Confirmed]", store.on_loop().subscribe("main"))
        await anext(frames)
        left_open.append(frames)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(listen_and_forget())
    loop.close()

    assert write(store, b"a")[0].position.seq == 1
    with pytest.raises(StopIteration):
        left_open[0].aclose().send(None)
