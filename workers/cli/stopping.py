"""The signals of a worker process, and the promise that it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from workers.leaving import AFTER_GRACE_S, Watchdog, leave
from workers.supervisor import Hangup

__all__ = ["GUARD_S", "Stop", "StoppedEarly"]

GUARD_S = 1.0
"""So long after that a process that could not even leave is killed from outside: by its guard, or its master."""
LOOK_S = 0.5
SAME_SIGNAL_S = 0.5
"""Runners signal a process group and its members; what comes so soon is the same wish, not a second one."""


ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MISSED = "CALLBOARD_MISSED_SIGNALS"
"""In the environment of a process that begins anew: from where it reads which signals came as it did."""


class StoppedEarly(BaseException):
    """A signal came before there was anything to drain; it unwinds the boot from wherever that is."""

    exit_code = 0


class Stop:
    """Made on the main thread; signals wait until ``heed``.

    After ``wait`` the process drains; ``again`` says whether it is then to begin anew (SIGHUP).

    A ``child`` of a master stops at the first signal and takes no more notice: whoever signals all processes at once
    (a service manager does) has the master forward what the child had heard already. Its reloads are the master's.
    """

    def __init__(self, grace_s: float, *, child: bool = False) -> None:
        self.again = False
        self._child = child
        self._grace_s = grace_s
        self._first_at: float | None = None
        self._booted = False
        self._asked = threading.Event()
        self._watchdog: Watchdog | None = None
        self._hangup = Hangup()
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
        _wait_again(os.environ.pop(MISSED, None))
        self.signals = [signal.SIGTERM, signal.SIGINT]
        """What makes it stop."""
        for number in self.signals:
            signal.signal(number, self._on_signal)
        if self._hangup.heeded:
            signal.signal(signal.SIGHUP, self._on_hangup)
            if not child:
                self.signals.append(signal.SIGHUP)

    def heed(self) -> None:
        """From now on a signal unwinds the boot: also one that came before, while this process began anew (see :meth:`over`)."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)

    def booted(self) -> None:
        """From now on a signal is waited for instead of raised."""
        self._booted = True

    def wait(self) -> None:
        """Block until a signal has come."""
        # One that another thread gets, or that comes just before the main thread rests, wakes nobody.
        while not self._asked.wait(LOOK_S):
            pass

    def over(self, exit_code: int) -> bool:
        """All is closed. Whether to begin anew: then signals wait until there is somebody to heed them.

        Otherwise the process is about to exit, and neither a late one must change its exit code, nor somebody's thread that
        does not end.
        """
        if self.again:
            # Threads that are left are given what this one does not take, and exec ends them.
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            os.set_inheritable(reading, True)
            os.environ[MISSED] = str(reading)
            signal.set_wakeup_fd(writing)
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL)  # exec keeps it, and what is pending
        if not self.again:  # a SIGTERM may have come just now
            for number in ALL:
                signal.signal(number, signal.SIG_IGN)
            if self._watchdog is not None:
                self._watchdog.all_done(exit_code)
        return self.again

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self.again = False
            self._ask()
        elif not self._child and now - self._first_at >= SAME_SIGNAL_S:
            leave("a second signal: leaving at once; what was running runs again when the lease ends")

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        if self._child or self._asked.is_set():
            return
        if self._hangup.closed_terminal():
            self._on_signal(number, frame)
            return
        self.again = True
        self._ask()

    def from_within(self) -> None:
        """Stop as by a signal, but one is still the first that comes. From any thread; a boot comes to its end before."""
        if not self._asked.is_set():
            self._watchdog = Watchdog(self._grace_s + AFTER_GRACE_S)
            self._asked.set()

    def _ask(self) -> None:
        if self._asked.is_set():
            return
        self.from_within()
        if not self._booted:
            raise StoppedEarly


def _wait_again(missed: str | None) -> None:
    """Have the signals wait that another thread was given while this process began anew."""
    if missed is None:
        return
    with os.fdopen(int(missed), "rb") as told:  # its other end was closed by exec
        for number in told.read():
            os.kill(os.getpid(), number)
