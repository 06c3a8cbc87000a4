"""The last way out of a process whose stop does not come to an end."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from workers.whereabouts import frame_of, place_of

__all__ = ["AFTER_GRACE_S", "CALLS", "Watchdog", "leave"]

AFTER_GRACE_S = 7.0
"""For everything that a stop does besides waiting for handlers."""
EXIT_S = 1.0
"""How long the threads of others may take to end, once all else is done."""
CALLS = "callboard calls"
"""How the names of those threads begin whose calls the log has named already (``workers/loop/calls.py``)."""
FAILURE = 1
AGAIN = "what was running runs again when the lease ends"


class Watchdog:
    """Has this process leave at its deadline, in so many seconds, whatever hangs, but not inside C code that holds the interpreter.

    Once :meth:`all_done` was said, what may still keep it from exiting is somebody's thread: Python waits for each thread of a
    pool, whatever it blocks in. Such a one is named and left behind at once, and the exit code is the one it would have had.
    """

    def __init__(self, delay_s: float) -> None:
        self._ends_at = time.monotonic() + delay_s
        self._all_done = threading.Event()
        self._exit_code = 0
        threading.Thread(target=self._watch, name="callboard watchdog", daemon=True).start()

    def all_done(self, exit_code: int = 0) -> None:
        """All is settled and closed: the process is about to exit."""
        self._exit_code = exit_code
        self._all_done.set()

    def _watch(self) -> None:
        if self._all_done.wait(self._left_s()):
            time.sleep(min(EXIT_S, self._left_s()))
            holding = _who_holds()
            if holding:
                new = [one for one in holding if not one.name.startswith(CALLS)]
                names = ", ".join(f"thread {one.name!r} at {place_of(frame_of(one))}" for one in new)
                _leave(self._exit_code, names and f"warning: all is done; left behind, for it does not end: {names}")
            time.sleep(self._left_s())  # what is registered with atexit may take longer
        place = place_of(frame_of(threading.main_thread()))
        leave(f"the stop is not done at its deadline (it is at {place}): leaving; {AGAIN}")

    def _left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())


def _who_holds() -> list[threading.Thread]:
    """The threads for whose end the interpreter waits at its own; pools' may be daemons, and are waited for all the same."""
    frame, waiting, held = frame_of(threading.main_thread()), list[threading.Thread](), False
    while frame is not None:
        if frame.f_code.co_filename == threading.__file__:
            held = held or frame.f_code.co_name == "_shutdown"
            if frame.f_code.co_name == "join":
                waiting = [frame.f_locals["self"]]
        frame = frame.f_back
    others = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    return (waiting or others) if held else []


def leave(why: str) -> NoReturn:
    """Exit without asking anybody, from any thread or signal handler: so no logging, whose lock may be taken."""
    _leave(FAILURE, f"error: {why}")


def _leave(exit_code: int, text: str) -> NoReturn:
    with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more, or ever did
        stderr = sys.__stderr__.fileno()  # type: ignore[union-attr]  # Dramatiq puts a pipe of its own in the other's place
        if text and select.select([], [stderr], [], 0)[1]:  # or whoever reads has stopped, and the pipe is full
            os.write(stderr, f"{text}\n".encode())
    os._exit(exit_code)
