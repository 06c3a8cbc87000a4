"""huey: blocks on a Redis list (BRPOP), with one worker thread; it neither logs nor announces nor deduplicates, and keeps no results."""

from __future__ import annotations

import logging

from huey import RedisHuey

from tests.benchmarks import child
from tests.benchmarks.stopwatch import Stopwatch, at_leisure

__all__ = ["send", "work"]


def work(url: str, namespace: str, many: int) -> list[float]:
    """An idle worker; its answer are the latencies of so many messages."""
    watch = Stopwatch(many)
    huey = _huey(url, namespace)

    @huey.task(name="noted")
    def noted(agent_id: str, text: str, sent_ns: int) -> None:
        watch.note(sent_ns)

    logging.disable()
    consumer = huey.create_consumer(workers=1, periodic=False, check_worker_health=False)
    consumer.start()
    child.say("ready")
    child.say(watch.latencies_ms())
    child.ended()
    consumer.stop(graceful=True)
    return []


def send(url: str, namespace: str, many: int, text: str) -> None:
    """A producer, in a process of its own."""

    @_huey(url, namespace).task(name="noted")
    def noted(agent_id: str, text: str, sent_ns: int) -> None:
        """Only sent from here."""

    at_leisure(lambda sent_ns: noted("agent-001", text, sent_ns), many)


def _huey(url: str, namespace: str) -> RedisHuey:
    return RedisHuey(namespace, url=url, blocking=True, results=False, utc=True)
