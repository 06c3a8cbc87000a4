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
from contextlib import suppress

__all__ = ["Guard"]

TEXT = "the process was stuck in C code and did not stop: killed; what was running runs again when the lease ends"


class Guard:
    """Watches over this process for signals that have Python handlers. Made and closed on the main thread.

    ``limit_s`` after the first of them this process is killed (SIGKILL), unless it ends, or runs another program, first.
    """

    def __init__(self, limit_s: float) -> None:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, "-ISs", __file__, str(os.getpid()), str(limit_s)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a signal to our group is not for it
            )
        finally:
            os.close(reading)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def close(self) -> None:
        """End it. Safe twice."""
        if self._writing >= 0:
            signal.set_wakeup_fd(self._before)
            os.close(self._writing)
            self._writing = -1
            self._process.wait()


def main(parent: int, limit_s: float) -> None:
    """The guard's own program; its stdin ends with the parent."""
    if not os.read(0, 1):
        return
    ends = time.monotonic() + limit_s
    while os.getppid() == parent and (left := ends - time.monotonic()) > 0:
        readable, _, _ = select.select([0], [], [], min(left, 0.2))
        if readable and not os.read(0, 64):
            return
    if os.getppid() == parent:
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"error: {TEXT}\n".encode())
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
