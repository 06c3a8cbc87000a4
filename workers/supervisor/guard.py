"""A small process that ends its parent for certain, some time after a signal that the parent could not act upon.

::

    a signal ──C handler──> wake-up pipe ──> guard: at the first one that counts ──limit_s──> SIGKILL
    the master is gone ──> its line ends ──> guard: SIGTERM ─────────────────────────^

Python acts on a signal between two bytecodes of the main thread. While C code holds the interpreter (one long ``re``
match does), neither that nor any watchdog thread ever runs. The C half of the signal's arrival runs all the same, and
writes its number to the wake-up descriptor: here somebody else reads it. Run as a program it imports nothing but the
interpreter's own (8 MB, of which 4 are shared).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["Guard"]

TEXT = "the process was stuck in C code and did not stop: killed; what was running runs again when the lease ends"
WRITE_S = 1
"""How long it waits for somebody who reads that."""


class Guard:
    """Watches over this process. ``limit_s`` after one of ``signals`` has come it is killed (SIGKILL), unless it ends first.

    ``line`` is the descriptor of a socket to a master: its end means that the master is gone, and is a SIGTERM to this
    process. Made and closed on the main thread, when the signals have their Python handlers. What this process forks is
    not watched, and the signals have their usual meaning there.
    """

    def __init__(self, limit_s: float, signals: Sequence[signal.Signals], line: int | None = None) -> None:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        what = [os.getpid(), limit_s, -1 if line is None else line, *map(int, signals)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, "-ISs", __file__, *map(str, what)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                pass_fds=() if line is None else (line,),
                process_group=0,  # a signal to our group is not for it
            )
        finally:
            os.close(reading)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._handlers = {number: signal.getsignal(number) for number in signals}
        self._mask = threading.local()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._leave_alone
        )

    def close(self) -> None:
        """End it: needed only before this process runs another program, for it ends with the process. Safe twice."""
        if self._writing >= 0:
            signal.set_wakeup_fd(self._before)
            os.close(self._writing)
            self._writing = -1
            self._process.kill()
            self._process.wait()

    # A signal to a fork would be a byte in our pipe, and run our handlers. None comes before that is mended.

    def _before_fork(self) -> None:
        self._mask.was = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.was)

    def _leave_alone(self) -> None:
        if self._writing >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writing)
            self._writing = -1
        for number, ours in self._handlers.items():
            if signal.getsignal(number) == ours:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._after_fork()


def main(parent: int, limit_s: float, line: int, *signals: int) -> None:
    """The guard's own program; its stdin ends with the parent, or when that runs another program."""
    watched = [0] if line < 0 else [0, line]
    ends: float | None = None
    while ends is None or time.monotonic() < ends:
        left_s = None if ends is None else max(0.0, ends - time.monotonic())
        readable, _, _ = select.select(watched, [], [], left_s)
        asked = False
        if 0 in readable:
            told = os.read(0, 4096)
            if not told:
                return
            asked = any(number in signals for number in told)
        if line in readable:  # a master says nothing; it only ends
            watched.remove(line)
            asked = True
            _send(parent, signal.SIGTERM)
        if asked and ends is None:
            ends = time.monotonic() + limit_s
    if _send(parent, signal.SIGKILL):
        signal.alarm(WRITE_S)  # by its default it ends us
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"error: {TEXT}\n".encode())


def _send(parent: int, number: signal.Signals) -> bool:
    if os.getppid() != parent:  # it has ended, and something that it forked in C still holds the pipe
        return False
    os.kill(parent, number)
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
