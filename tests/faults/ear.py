"""A listener as a process: it writes down what it hears, and how it fares, a line of JSON each.

It may be told to break its own subscription where nobody can break the wire: at SIGUSR1 the connection's reader gets the
error of a link that the kernel has given up (ETIMEDOUT), at SIGUSR2 nothing that arrives on it is read any more.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import signal
import time
from typing import Any

from redis.asyncio.connection import AbstractConnection

from bus import Bus, Delivery, Gap
from tests.faults.line import sound

LOOK_S = 0.02
SAMPLE_EVERY = 10


def say(what: str, **how: object) -> None:
    os.write(1, json.dumps({"what": what, "at_s": time.monotonic(), **how}).encode() + b"\n")


class Subscriptions:
    """The connections of this process on which something was subscribed, to be broken."""

    def __init__(self) -> None:
        self._found: list[Any] = []
        sends = AbstractConnection.send_command

        async def send_command(connection: AbstractConnection, *arguments: Any, **options: Any) -> None:
            if arguments[0] == "SUBSCRIBE":
                self._found.append(connection)
                say("subscribes")
            await sends(connection, *arguments, **options)

        setattr(AbstractConnection, "send_command", send_command)  # noqa: B010 - a method, to mypy

    def fail(self) -> None:
        assert self._found[-1].is_connected
        self._found[-1]._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))  # noqa: SLF001
        say("broken")

    def fall_silent(self) -> None:
        assert self._found[-1].is_connected
        self._found[-1]._writer.transport.pause_reading()  # noqa: SLF001
        say("broken")


async def watch(bus: Bus) -> None:
    """Say when the link is lost and found, how late this loop runs at worst, and how much processor time was used."""
    connected, worst_s, due = True, 0.0, time.monotonic()
    for turn in itertools.count():
        now = time.monotonic()
        worst_s = max(worst_s, now - due)
        if turn % SAMPLE_EVERY == 0:
            say("sample", late_s=worst_s, cpu_s=time.process_time())
            worst_s = 0.0
        if bus.status().connected != connected:
            connected = not connected
            say("connected" if connected else "lost")
        due = time.monotonic() + LOOK_S
        await asyncio.sleep(LOOK_S)


async def main() -> None:
    logging.getLogger("callboard").setLevel(logging.ERROR)  # that its links are cut is no news
    subscriptions = Subscriptions()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, subscriptions.fail)
    loop.add_signal_handler(signal.SIGUSR2, subscriptions.fall_silent)
    async with Bus() as bus, bus.listen("**", after="0") as listener:
        watching = asyncio.create_task(watch(bus))
        say("attached")
        async for item in listener:
            if isinstance(item, Delivery):
                say("heard", seq=item.position.seq, id=item.envelope.id, sound=sound(item))
            elif isinstance(item, Gap):
                say("gap", first=item.first, last=item.last, reason=item.reason)
        watching.cancel()


if __name__ == "__main__":
    asyncio.run(main())
