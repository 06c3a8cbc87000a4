"""The last way out of a process whose stop does not come to an end."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

__all__ = ["AFTER_GRACE_S", "leave", "leave_later"]

AFTER_GRACE_S = 7.0
"""For everything that a stop does besides waiting for handlers."""
FAILURE = 1


def leave_later(delay_s: float) -> None:
    """Leave after so many seconds, unless the process has ended by then: whatever hangs, but not inside C code that holds the interpreter."""

    def watch() -> None:
        time.sleep(delay_s)
        leave("the stop is not done at its deadline: leaving; what was running runs again when the lease ends")

    threading.Thread(target=watch, name="callboard watchdog", daemon=True).start()


def leave(why: str) -> NoReturn:
    """Exit without asking anybody, from any thread or signal handler: so no logging, whose lock may be taken."""
    with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more, or ever did
        stderr = sys.__stderr__.fileno()  # type: ignore[union-attr]  # Dramatiq puts a pipe of its own in the other's place
        if select.select([], [stderr], [], 0)[1]:  # or whoever reads has stopped, and the pipe is full
            os.write(stderr, f"error: {why}\n".encode())
    os._exit(FAILURE)
