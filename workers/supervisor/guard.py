"""A small process that ends its parent for certain, some time after a signal that the parent could not act upon.

Python acts on a signal between two bytecodes of the main thread. While C code holds the interpreter (one long ``re``
match does), neither that nor any watchdog thread ever runs. The C half of the signal's arrival runs all the same, and
writes a byte to the wake-up descriptor: here somebody else reads it. Run as a program it imports nothing but the
interpreter's own (8 MB, of which 4 are shared).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

__all__ = ["Guard"]

TEXT = "the process was stuck in C code and did not stop: killed; what was running runs again when the lease ends"


class Guard:
    """Watches over this process for the signals that are to end it, once they have handlers. Made and closed on the main thread.

    ``limit_s`` after the first of ``signals`` this process is killed (SIGKILL), unless it ends, or runs another program,
    first. Signals to processes that are forked from it do not count.
    """

    def __init__(self, limit_s: float, signals: Iterable[signal.Signals]) -> None:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, "-ISs", __file__, str(os.getpid()), str(limit_s), *map(str, map(int, signals))],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a signal to our group is not for it
            )
        finally:
            os.close(reading)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._let_go)  # or its signals would be written into our pipe

    def close(self) -> None:
        """End it. Safe twice."""
        if self._writing >= 0:
            signal.set_wakeup_fd(self._before)
            os.close(self._writing)
            self._writing = -1
            self._process.wait()

    def _let_go(self) -> None:
        if self._writing >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writing)
            self._writing = -1


def main(parent: int, limit_s: float, numbers: set[int]) -> None:
    """The guard's own program; its stdin ends with the parent, and has the number of each signal that has a handler."""
    while not numbers.intersection(heard := os.read(0, 64)):
        if not heard:
            return
    ends = time.monotonic() + limit_s
    while os.getppid() == parent and (left := ends - time.monotonic()) > 0:
        readable, _, _ = select.select([0], [], [], min(left, 0.2))
        if readable and not os.read(0, 64):
            return
    if os.getppid() == parent:
        with suppress(OSError):  # nobody reads it any more
            if select.select([], [2], [], 0)[1]:  # or whoever does has stopped, and the pipe is full
                os.write(2, f"error: {TEXT}\n".encode())
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), set(map(int, sys.argv[3:])))
