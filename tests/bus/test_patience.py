"""A worker that makes room for a suspect, and never gets rid of what it holds, does not stand still for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.clock import Clock
from bus.store.base import Exchange, Store
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import CALM_LEASE_MS, Worker, bodies, enqueue
from bus.testing.suspect_checks import suspect
from tests.waiting import wait_until

PATIENCE_MS = 20


@pytest.fixture
def store(mode: str, url: str, namespace: str) -> Iterator[Store]:
    store: Store = (
        MemoryStore(Clock(), lease_ms=CALM_LEASE_MS, patience_ms=PATIENCE_MS)
        if mode == "memory"
        else RedisStore(url, namespace, lease_ms=CALM_LEASE_MS, patience_ms=PATIENCE_MS)
    )
    yield store
    store.close()


def ask(worker: Worker) -> Exchange:
    return worker.store.exchange(worker.name, (), [worker.wish(1)])


def test_room_is_made_in_turn_and_nobody_makes_it_for_ever(store: Store) -> None:
    hung, other = Worker(store, "hung"), Worker(store, "other")
    for worker in (hung, other):
        enqueue(store, b"held", handler="h2")
        worker.take_one(handlers=("h2",))
    suspect(store)
    enqueue(store, *(b"%d" % n for n in range(200)))

    assert ask(hung).apart == "q|h"
    wait_until(lambda: bodies(ask(hung).taken), "it to go on with other work")
    wait_until(lambda: ask(other).apart == "q|h", "the other one's turn to make room")
    wait_until(lambda: bodies(ask(other).taken), "the other one to go on as well")
    wait_until(lambda: ask(hung).apart == "q|h", "the first one to try again")
    wait_until(lambda: bodies(ask(hung).taken), "it to go on again")
    idle = Worker(store, "idle")
    assert bodies(idle.take()) == [b"suspect"]


def test_who_makes_room_in_vain_tries_for_longer_each_time(store: Store) -> None:
    clock = Clock()
    hung = Worker(store, "hung")
    enqueue(store, b"held", handler="h2")
    held = hung.take_one(handlers=("h2",))
    suspect(store)

    def stands_ms() -> int:
        while True:
            before_ms = clock.now_ms()
            if ask(hung).apart:
                break
        wait_until(lambda: not ask(hung).apart, "it to give up")
        return clock.now_ms() - before_ms

    took = [stands_ms() for _ in range(6)]

    least = [PATIENCE_MS * times for times in (1, 2, 4, 8, 10, 10)]
    assert all(ms >= at_least for ms, at_least in zip(took, least, strict=True)), f"it stood apart for {took} ms"
    assert hung.settle(held)
