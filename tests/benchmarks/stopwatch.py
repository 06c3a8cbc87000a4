"""How soon a message is begun. The standard library alone: the peers' processes have nothing else of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["WARM_UP", "Stopwatch", "at_leisure"]

PAUSE_S = 0.02
WARM_UP = 10
"""Messages that do not count."""
TIMEOUT_S = 60.0


class Stopwatch:
    """Gathers how long after its sending each message was begun; CLOCK_MONOTONIC is the same in all processes."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._found_ns: list[int] = []
        self._full = threading.Event()

    def note(self, sent_ns: int) -> None:
        """A message that was sent then has begun now. Those of the warm-up (0) do not count."""
        now_ns = time.monotonic_ns()
        if sent_ns:
            self._found_ns.append(now_ns - sent_ns)
            if len(self._found_ns) == self._many:
                self._full.set()

    def latencies_ms(self) -> list[float]:
        """All of them, once they are there."""
        if not self._full.wait(TIMEOUT_S):
            raise RuntimeError(f"{len(self._found_ns)} of {self._many} messages came")
        return [ns / 1e6 for ns in self._found_ns]


def at_leisure(send: Callable[[int], Any], many: int) -> None:
    """Send so many messages, each when the last one is long done; ``send`` is given the time."""
    for _ in range(WARM_UP):
        send(0)
        time.sleep(PAUSE_S)
    for _ in range(many):
        send(time.monotonic_ns())
        time.sleep(PAUSE_S)
