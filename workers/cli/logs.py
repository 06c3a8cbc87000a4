"""What a process that runs for long writes: a line for each record on stderr, with nobody's secrets."""

from __future__ import annotations

import logging
import os
import select
import sys
from typing import Any

from workers.cli.terminal import one_line, without_secrets

__all__ = ["log_to_stderr"]


def log_to_stderr(number: int | None = None) -> None:
    """Set up the logging of this process; the lines of one of several workers begin with its number."""
    who = f"[{number}] " if number is not None else ""
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(_Lines(f"{who}%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    # Dramatiq tells about each thread and each stop at INFO; watchfiles about each look.
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("dramatiq", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


PATIENCE_S = 1.0


class _Stderr:
    """Stderr, for whom a reader that has stopped is no reason to stop: with its pipe full, what is said is lost.

    A master that waited there would forward no signal, and end nobody.
    """

    def __init__(self) -> None:
        self._descriptor = sys.stderr.fileno()
        self._patience_s = PATIENCE_S

    def write(self, text: str) -> None:
        """Write it, or as much as there is room for; waits a second for room, once."""
        left = text.encode(errors="backslashreplace")
        while left:
            if not select.select([], [self._descriptor], [], self._patience_s)[1]:
                self._patience_s = 0.0
                return
            self._patience_s = PATIENCE_S
            left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]  # for so much there is room then

    def flush(self) -> None:
        """Nothing is kept back."""


class _Lines(logging.Formatter):
    """A line for each record, then its traceback if it has one. What ends the process is an error like any command's."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """An app's own error may quote a URL; its password is nobody's business in a log."""
        return without_secrets(super().formatException(ei))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = one_line(record.message)
        return f"error: {record.message}" if record.levelno >= logging.CRITICAL else super().formatMessage(record)
