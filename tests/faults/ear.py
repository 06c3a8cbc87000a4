"""A listener as a process: it writes down what it hears, and how it fares, a line of JSON each.

It may be told to break its own subscription where nobody can break the wire: from SIGUSR1 on reading from its socket fails
as on a link that the kernel has given up (ETIMEDOUT), from SIGUSR2 on whatever arrives there is lost.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import signal
import socket
import time
from typing import Literal

from bus import Bus, Delivery, Gap
from tests.faults.line import sound
from tests.faults.tap import Tap

LOOK_S = 0.02
SAMPLE_EVERY = 10


def say(what: str, **how: object) -> None:
    os.write(1, json.dumps({"what": what, "at_s": time.monotonic(), **how}).encode() + b"\n")


class Subscription(Tap):
    """The socket on which this process has subscribed last, to be broken. A new one is whole again."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._how: Literal["", "fails", "silent"] = ""

    def before_sending(self, sock: socket.socket, data: bytes) -> None:
        if b"\r\nSUBSCRIBE\r\n" in data:
            self._sock, self._how = sock, ""
            say("subscribes")

    def received(self, sock: socket.socket, data: bytes) -> bytes:
        if sock is not self._sock or not self._how:
            return data
        if self._how == "silent":
            raise BlockingIOError  # there was nothing
        say("broken")
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    def fail(self) -> None:
        self._how = "fails"

    def fall_silent(self) -> None:
        self._how = "silent"
        say("broken")


async def watch(bus: Bus) -> None:
    """Say when the link is lost and found, how late this loop runs at worst, and how much processor time was used."""
    connected, worst_s, due = True, 0.0, time.monotonic()
    for turn in itertools.count():
        now = time.monotonic()
        worst_s = max(worst_s, now - due)
        if turn % SAMPLE_EVERY == 0:
            say("sample", late_s=worst_s, cpu_s=time.process_time(), connected=bus.status().connected)
            worst_s = 0.0
        if bus.status().connected != connected:
            connected = not connected
            say("connected" if connected else "lost")
        due = time.monotonic() + LOOK_S
        await asyncio.sleep(LOOK_S)


async def main() -> None:
    logging.getLogger("callboard").setLevel(logging.ERROR)  # that its links are cut is no news
    subscription = Subscription()
    subscription.install()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, subscription.fail)
    loop.add_signal_handler(signal.SIGUSR2, subscription.fall_silent)
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
