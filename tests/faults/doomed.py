"""A publisher that dies at a chosen step of each publish: ``tests.faults.doomed STEP TIMES``.

Each publish is a process of its own, forked from this one, which has learned the bindings: so that there is exactly one
call to the server, to die before, after, or between it and its answer. At once a successor publishes under the same id,
by the other door. What both did is written down: how the first one ended, and whether the second was a duplicate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis.asyncio.connection import Connection

from bus import Bus, Receipt
from bus.store.redis.scripts import script
from bus.store.redis.wire import Command, Wire
from tests.faults.work import WORK, Work

__all__ = ["STEPS"]

STEPS = ("before", "sent", "answered")
"""Before the call is sent; after it was sent, before its answer is read; after its answer was read."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Doom:
    """Where to die, on the connection that carries an append."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._sha = script("append").sha.encode()
        self._asked = False

    def before_sending(self, parts: Iterable[bytes]) -> None:
        self._asked = self._sha in b"".join(parts)
        if self._asked and self._step == "before":
            die()

    def after_sending(self) -> None:
        if self._asked and self._step == "sent":
            die()

    def after_the_answer(self) -> None:
        if self._asked:
            die()

    def hang_over(self) -> None:
        """Over both doors of this process."""
        self._over_threads()
        self._over_loops()

    def _over_threads(self) -> None:
        opens, asks, doom = Wire.__init__, Wire.ask, self

        def open_doomed(wire: Any, connection: Any) -> None:
            opens(wire, connection)
            wire._socket = DoomedSocket(wire._socket, doom)  # noqa: SLF001

        def ask(wire: Any, commands: Sequence[Command]) -> list[Any]:
            answers = asks(wire, commands)
            self.after_the_answer()
            return answers

        _replace(Wire, __init__=open_doomed, ask=ask)

    def _over_loops(self) -> None:
        sends, reads = Connection.send_packed_command, Connection.read_response

        async def send(connection: Any, command: Any, *arguments: Any, **options: Any) -> None:
            self.before_sending(command)
            await sends(connection, command, *arguments, **options)
            self.after_sending()

        async def read(connection: Any, *arguments: Any, **options: Any) -> Any:
            answer = await reads(connection, *arguments, **options)
            self.after_the_answer()
            return answer

        _replace(Connection, send_packed_command=send, read_response=read)


class DoomedSocket:
    """As the one below, which does the work."""

    def __init__(self, below: Any, doom: Doom) -> None:
        self._below, self._doom = below, doom

    def sendall(self, data: bytes) -> None:
        self._doom.before_sending([data])
        self._below.sendall(data)
        self._doom.after_sending()

    def recv(self, size: int) -> bytes:
        return bytes(self._below.recv(size))


def _replace(where: type, **methods: Callable[..., Any]) -> None:
    for name, method in methods.items():
        setattr(where, name, method)


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
            Doom(step).hang_over()
            publish(bus, event_id, n, by_loop=by_loop)  # noqa: B023 - called here and now

        def successor() -> None:
            receipt = publish(bus, event_id, n, by_loop=not by_loop)  # noqa: B023
            os.write(1, f"\naccepted {event_id} {'again' if receipt.duplicate else 'new'}\n".encode())  # noqa: B023

        os.write(1, f"\nended {event_id} {in_a_process(doomed)}\n".encode())
        in_a_process(successor)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
