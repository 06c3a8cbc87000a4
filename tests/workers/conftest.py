"""What tests of Dramatiq's features stand on: its own backends for results and limits, in both modes."""

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

from tests.servers import Server


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
