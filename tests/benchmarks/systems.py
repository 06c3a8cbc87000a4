"""The two systems, as a child process sets them up, and the load that both carry."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import redis
from dramatiq.brokers.redis import RedisBroker
from redis._parsers import Encoder, _RESP2Parser
from redis.connection import PythonRespSerializer

from bus import Bus, Event, Publication
from workers import App

__all__ = [
    "BASELINE",
    "BATCH",
    "Countdown",
    "Noted",
    "app_on",
    "fill_app",
    "plain_redis_broker",
    "publications",
    "redis_broker",
    "texts",
]

BASELINE = "dramatiq redis"
"""The system that ours is compared with, and so the first case of each family."""
AGENTS = 100
TEXT = "x" * 150
"""With an agent's id and the JSON around it, about 200 bytes of data."""
BATCH = 500
CUTOFF = 6_000
"""redis-py's own: longer pieces are written by themselves."""


class Noted(Event, type="bench.noted", version=1):
    """What is published. ``sent_ns`` is when, on the machine's monotonic clock; 0 where nobody asks."""

    agent_id: str
    text: str
    sent_ns: int = 0


def app_on(url: str, namespace: str, concurrency: int = 1000) -> App:
    """Ours, as it comes."""
    return App(Bus(url, namespace=namespace), concurrency=concurrency)


def redis_broker(url: str, namespace: str) -> RedisBroker:
    """Dramatiq's, as it comes where hiredis is installed, as it is with us: redis-py then reads and writes with it."""
    return RedisBroker(url=url, namespace=namespace)


def plain_redis_broker(url: str, namespace: str) -> RedisBroker:
    """Dramatiq's, as ``pip install 'dramatiq[redis]'`` gives it: without hiredis."""
    packer = PythonRespSerializer(CUTOFF, Encoder("utf-8", "strict", decode_responses=False).encode)
    pool = redis.ConnectionPool.from_url(url, parser_class=_RESP2Parser, command_packer=packer)
    return RedisBroker(client=redis.Redis(connection_pool=pool), namespace=namespace)


def texts(many: int) -> Iterator[tuple[str, str]]:
    """The load: (agent's id, text), over a hundred agents."""
    return ((f"agent-{number % AGENTS:03}", TEXT) for number in range(many))


def publications(many: int) -> list[Publication]:
    """The load as events, each on a topic that all hear and on its agent's."""
    return [
        Publication(Noted(agent_id=agent, text=text), ["global", f"agent:{agent}"], key=None)
        for agent, text in texts(many)
    ]


def fill_app(app: App, many: int) -> None:
    """Publish the load to an app's handlers."""
    load = publications(many)
    for first in range(0, many, BATCH):
        app.bus.publish_many_sync(load[first : first + BATCH])


class Countdown:
    """Counts jobs that were done, from any thread, and says when it was the last one."""

    def __init__(self, many: int) -> None:
        self._left = many
        self._lock = threading.Lock()
        self._over = threading.Event()

    def one(self) -> None:
        """One more was done."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._over.set()

    def wait(self, timeout_s: float) -> None:
        """Until the last; an error after the timeout, so that lost work is not taken for slow work."""
        if not self._over.wait(timeout_s):
            raise RuntimeError(f"{self._left} jobs were not done within {timeout_s:g} s")
