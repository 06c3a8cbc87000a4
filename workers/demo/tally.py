"""What really happened: counted where it happens, in the worker and at the listeners, and compared at the end.

Nothing here is taken from what the library says of itself, apart from the log and the dead letters it is checked against.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware

from bus import Delivery, Gap, Receipt
from workers.broker import LaneMessage

__all__ = ["Ledger", "Listening", "Tally"]


class Ledger(NamedTuple):
    """The closing account of a rehearsal."""

    published: int
    handled: int
    retried: int
    dead_letters: int
    delivered: int
    gaps: int
    duplicates: int

    def __str__(self) -> str:
        return " · ".join(f"{name.replace('_', ' ')} {number}" for name, number in self._asdict().items())


class Tally(Middleware):
    """Follows each job. Its numbers are safe to read from any thread; ``notice`` is called from worker threads."""

    def __init__(self, notice: Callable[[str, str], None]) -> None:
        self.published = 0
        self.jobs = 0
        self.handled = 0
        self.retried = 0
        self.dead = 0
        self.busy: dict[str, str] = {}
        """What an agent is doing right now."""
        self.waiting: Counter[str] = Counter()
        """How many cues an agent has not finished, the one at hand included."""
        self.out_of_order: list[str] = []
        self._latest_cue: Counter[str] = Counter()
        self._notice = notice
        self._lock = threading.Lock()

    def posted(self, receipt: Receipt) -> Receipt:
        """Count a publish."""
        with self._lock:
            self.published += not receipt.duplicate
            self.jobs += receipt.jobs
        return receipt

    def called(self, agent_id: str) -> None:
        """Count a cue into an agent's lane."""
        with self._lock:
            self.waiting[agent_id] += 1

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002, D102
        if isinstance(message, LaneMessage) and message.envelope is not None:
            self.busy[_agent(message)] = str(message.envelope.data.get("text", ""))

    def after_process_message(  # noqa: D102
        self,
        broker: Broker,  # noqa: ARG002
        message: MessageProxy,
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        if not isinstance(message, LaneMessage) or message.envelope is None:
            return
        agent = _agent(message)
        self.busy.pop(agent, None)
        again = exception is not None and not message.failed
        with self._lock:
            self.handled += exception is None
            self.retried += again
            self.dead += message.failed
            if not again and message.envelope.type == "demo.cue.called":
                self._finish(agent, int(message.envelope.data["number"]))
        if again:
            self._notice(agent, f"{exception}; attempt {message.attempt} failed, trying again")
        elif exception is not None:
            self._notice(agent, f"{exception}; gave up after {len(message.attempts)} attempts: to the dead letters")

    def _finish(self, agent: str, number: int) -> None:
        self.waiting[agent] -= 1
        if number <= self._latest_cue[agent]:
            self.out_of_order.append(f"{agent} came to cue {number} after {self._latest_cue[agent]}")
        self._latest_cue[agent] = number


def _agent(message: LaneMessage) -> str:
    """Who is at work: those who answer others are named by their handler."""
    if message.actor_name in ("prompter", "critic") or message.envelope is None:
        return message.actor_name
    return str(message.envelope.data["agent_id"])


class Listening:
    """One listener's account: what it was handed, and what that should have been."""

    def __init__(self, name: str, *patterns: str, after: str | None = None) -> None:
        self.name = name
        self.patterns = patterns
        self.after = after
        self.delivered = 0
        self.duplicates = 0
        self.gaps = 0
        self._seen: set[int] = set()

    def count(self, item: Delivery | Gap) -> None:
        """Take one item in."""
        if isinstance(item, Gap):
            self.gaps += 1
        elif not item.ephemeral:
            self.delivered += 1
            # Also one that comes late: a number is never below one that was seen.
            self.duplicates += bool(self._seen) and item.position.seq <= max(self._seen)
            self._seen.add(item.position.seq)

    def missing(self, kept: set[int]) -> int:
        """How many of these numbers never came."""
        return len(kept - self._seen)
