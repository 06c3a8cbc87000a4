"""What tests of workers stand on: a bus and an app in both modes, and Dramatiq's own backends for results and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import redis
from dramatiq.rate_limits import RateLimiterBackend
from dramatiq.rate_limits.backends import RedisBackend as RedisLimits
from dramatiq.rate_limits.backends import StubBackend as StubLimits
from dramatiq.results import ResultBackend
from dramatiq.results.backends import RedisBackend as RedisResults
from dramatiq.results.backends import StubBackend as StubResults

from bus import Bus
from tests.servers import Server
from workers import App


@pytest.fixture
def bus(url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(url, namespace=namespace)
    yield bus
    bus.close_sync()


@pytest.fixture
def app(bus: Bus) -> App:
    return App(bus)


class Backends(NamedTuple):
    results: ResultBackend
    limits: RateLimiterBackend


@pytest.fixture
def backends(mode: str, start_server: Callable[..., Server]) -> Iterator[Backends]:
    """Dramatiq's own, in the mode of the test; on a server of their own, for they name their keys as they like."""
    if mode == "memory":
        yield Backends(StubResults(), StubLimits())
        return
    with redis.Redis.from_url(start_server().url) as client:
        yield Backends(RedisResults(client=client), RedisLimits(client=client))
