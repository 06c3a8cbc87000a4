"""A publisher that dies at a chosen step of each publish: ``tests.faults.doomed STEP TIMES``.

Each publish is a process of its own, forked from this one, which has learned the bindings: so that there is exactly one
call to the server, to die before, after, or between it and its answer. At once a successor publishes under the same id,
by the other door. What both did is written down: how the first one ended, and whether the second was a duplicate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from bus import Bus, Receipt
from bus.store.redis.scripts import script
from tests.faults.tap import Tap
from tests.faults.work import WORK, Work

__all__ = ["STEPS"]

STEPS = ("before", "sent", "answered")
"""Before the call is sent; after it was sent, before its answer is read; after its answer was read."""


class Doom(Tap):
    """Dies at a step of the next append."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._sha = script("append").sha.encode()
        self._asked: socket.socket | None = None

    def before_sending(self, sock: socket.socket, data: bytes) -> None:
        if self._sha in data:
            self._asked = sock
            self._die_if("before")

    def after_sending(self, sock: socket.socket) -> None:
        if sock is self._asked:
            self._die_if("sent")

    def received(self, sock: socket.socket, data: bytes) -> bytes:
        if sock is self._asked:
            self._die_if("answered")
        return data

    def _die_if(self, step: str) -> None:
        if self._step == step:
            os.kill(os.getpid(), signal.SIGKILL)


def publish(bus: Bus, event_id: str, n: int, *, by_loop: bool) -> Receipt:
    """One event, by the door of a loop or of a thread."""
    event = Work(n=n, key=f"k{n % 5}")
    if not by_loop:
        return bus.publish_sync(event, id=event_id, topics=[WORK])

    async def on_loop() -> Receipt:
        async with bus:
            return await bus.publish(event, id=event_id, topics=[WORK])

    return asyncio.run(on_loop())


def in_a_process(what: Callable[[], None]) -> int:
    """Do it in a process of its own; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            what()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.waitstatus_to_exitcode(status) == 0, f"a publisher ended with {status}"
    return 0


def main(step: str, times: int) -> None:
    assert step in STEPS
    bus = Bus()
    publish(bus, f"{step}-first", 0, by_loop=False)
    bus.rest()  # what is inherited is what it has learned, and no connection
    for n in range(times):
        event_id, by_loop = f"{step}-{n}", bool(n % 2)

        def doomed() -> None:
            Doom(step).install()
            publish(bus, event_id, n, by_loop=by_loop)  # noqa: B023 - called here and now

        def successor() -> None:
            receipt = publish(bus, event_id, n, by_loop=not by_loop)  # noqa: B023
            os.write(1, f"\naccepted {event_id} {'again' if receipt.duplicate else 'new'}\n".encode())  # noqa: B023

        os.write(1, f"\nended {event_id} {in_a_process(doomed)}\n".encode())
        in_a_process(successor)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
