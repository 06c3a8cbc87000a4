"""What a SIGHUP means: somebody asks for a reload, or the terminal was closed."""

from __future__ import annotations

import os
import signal

__all__ = ["Hangup"]


class Hangup:
    """Made at the start, for only then can be told that there was a terminal."""

    def __init__(self) -> None:
        self.heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        """Whether SIGHUP means anything at all: nohup has it ignored, and so it stays."""
        self._had_terminal = _terminal_is_there()

    def closed_terminal(self) -> bool:
        """Whether the terminal is gone that was there: then whoever looked at it has left, and nobody asks for a reload."""
        return self._had_terminal and not _terminal_is_there()


def _terminal_is_there() -> bool:
    """Whether this process has a terminal that can be reached."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
