"""The contract checks as whoever writes a store of their own uses them, from :mod:`bus.testing` alone.

The store here is one of ours with something of its own around it, and then one that breaks a promise.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence

import pytest

from bus.clock import Clock
from bus.store.base import Exchange, Settlement, Store, Take
from bus.store.memory import MemoryStore
from bus.testing import CALM_LEASE_MS, LEASE_CHECKS, LOG_CHECKS, QUEUE_CHECKS, SHORT_LEASE_MS, Check


class CountingStore(MemoryStore):
    """Somebody's own store."""

    def __init__(self, lease_ms: int) -> None:
        super().__init__(Clock(), lease_ms=lease_ms)
        self.exchanges = 0

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        self.exchanges += 1
        return super().exchange(worker, settlements, takes)


class ForgetfulStore(CountingStore):
    """Takes whatever is settled as settled."""

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        answer = super().exchange(worker, settlements, takes)
        return answer._replace(settled=[True for _ in settlements])


def run(check: Check, store: Store) -> None:
    outcome = check(store)
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


@pytest.mark.parametrize("check", [*LOG_CHECKS, *QUEUE_CHECKS, *LEASE_CHECKS], ids=lambda check: check.__name__)
def test_a_store_of_ones_own_passes_the_contract(check: Check) -> None:
    store = CountingStore(SHORT_LEASE_MS if check in LEASE_CHECKS else CALM_LEASE_MS)
    store.open()
    try:
        run(check, store)
    finally:
        store.close()


def test_a_store_that_breaks_a_promise_does_not() -> None:
    broken = []
    for check in QUEUE_CHECKS:
        store = ForgetfulStore(CALM_LEASE_MS)
        try:
            run(check, store)
        except AssertionError:
            broken.append(check.__name__)

    assert broken
    assert len(broken) < len(QUEUE_CHECKS), "and the checks tell which promise it is"
