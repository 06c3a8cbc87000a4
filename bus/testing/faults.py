"""Faults on purpose: a take whose answer is lost, a delivery that comes twice, connections that are dropped now.

They happen to the real store, of either kind, where the network and dying workers make them happen; what follows is the
system's own repair, and that is what a test wants to see.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

from bus.errors import BusError, BusUnavailable
from bus.store.base import Exchange, Settlement, Store, Take, Woken
from bus.store.inbox import Inbox
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.store.redis.link import ATTEMPT_S, blocking_pool

__all__ = ["Fault", "Mischief", "drop_connections"]


class Fault:
    """Something that goes wrong once. A test looks at ``struck`` before it believes what it saw."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.struck = False

    def __repr__(self) -> str:
        return f"<Fault: {self.what}, {'struck' if self.struck else 'not yet'}>"

    def strike(self) -> bool:
        """Whether it is to happen now: the first time only."""
        first, self.struck = not self.struck, True
        return first


class Mischief:
    """Stands before one store's ``exchange`` and ``wait``, until it is removed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._exchange: Callable[..., Exchange] = store.exchange
        self._wait: Callable[..., Woken] = store.wait
        self._lost_takes: list[Fault] = []
        self._repeats: list[Fault] = []
        for name, ours in (("exchange", self.exchange), ("wait", self.wait)):
            setattr(store, name, ours)

    def remove(self) -> list[Fault]:
        """Let the store be. Returns the faults that have not struck. Safe twice."""
        for name in ("exchange", "wait"):
            vars(self.store).pop(name, None)
        return [fault for fault in (*self._lost_takes, *self._repeats) if not fault.struck]

    def fail_next_take(self) -> Fault:
        """The next take that brings work brings it to the store's books only: its answer is lost on the way."""
        return _armed(self._lost_takes, "the next take that brings work loses its answer")

    def duplicate_next_delivery(self) -> Fault:
        """The next job that is done is delivered again, as if its worker had died before it could say so."""
        return _armed(self._repeats, "the next job that is done is delivered again")

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        """As the store's."""
        answer = self._exchange(worker, [self._unsettled(one) for one in settlements], takes)
        self._lose(answer)
        return answer

    def wait(self, names: Sequence[str], timeout_s: float, worker: str = "", takes: Sequence[Take] = ()) -> Woken:
        """As the store's."""
        answer = self._wait(names, timeout_s, worker, takes)
        self._lose(answer)
        return answer

    def _unsettled(self, one: Settlement) -> Settlement:
        due = one.verdict == "ack" and next((fault for fault in self._repeats if not fault.struck), None)
        return one._replace(verdict="back") if due and due.strike() else one

    def _lose(self, answer: Exchange | Woken) -> None:
        due = next((fault for fault in self._lost_takes if not fault.struck), None)
        if answer.taken and due is not None and due.strike():
            raise BusUnavailable("a test has lost the answer to this take", outcome="unknown")


def _armed(faults: list[Fault], what: str) -> Fault:
    faults.append(Fault(what))
    return faults[-1]


def drop_connections(store: Store) -> int:
    """Break what is connected right now. Returns how many connections that were.

    On Redis the server kills all TCP connections that this process has to it, whoever uses them; in memory every live
    subscription fails as if its link were dead. Whatever is connected next is left alone. Raises
    :class:`~bus.errors.BusError` where there was nothing to break: a fault that was not injected proves nothing.
    """
    if isinstance(store, MemoryStore):
        dropped = _drop_live(store)
    elif isinstance(store, RedisStore):
        dropped = _kill_own(store)
    else:
        raise BusError(f"how a {type(store).__name__} is connected is not known here")
    if not dropped:
        raise BusError("there is no connection to drop: listen, or publish, before")
    return dropped


def _drop_live(store: MemoryStore) -> int:
    with store._lock:
        inboxes = [inbox for log in store._logs.values() for inbox in log.listeners if isinstance(inbox, Inbox)]
    for inbox in inboxes:
        inbox.fail(BusUnavailable("a test has dropped the connection"))
    return len(inboxes)


def _kill_own(store: RedisStore) -> int:
    ours = set(_own_addresses())
    pool = blocking_pool(store.link, size=1, timeout_s=ATTEMPT_S)
    client: Any = redis.Redis(connection_pool=pool)
    try:
        here = str(client.client_id())
        found = [each["id"] for each in client.client_list() if each["addr"] in ours and each["id"] != here]
        return sum(client.client_kill_filter(_id=each) for each in found)
    finally:
        client.close()
        pool.disconnect()


def _own_addresses() -> Iterator[str]:
    """This process's ends of its TCP connections, as the server calls them."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - there on Linux and macOS, and no folder of files
        try:
            copy = os.dup(int(name))
        except OSError:  # the descriptor that listed the folder is closed by now
            continue
        try:
            with socket.socket(fileno=copy) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    host, port = connection.getsockname()[:2]
                    yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        except OSError:  # no socket
            os.close(copy)
