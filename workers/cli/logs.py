"""What a process that runs for long writes: a line for each record on stderr, with nobody's secrets."""

from __future__ import annotations

import logging
from typing import Any

from workers.cli.terminal import one_line, without_secrets

__all__ = ["log_to_stderr"]


def log_to_stderr(number: int | None = None) -> None:
    """Set up the logging of this process; the lines of one of several workers begin with its number."""
    who = f"[{number}] " if number is not None else ""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(f"{who}%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    # Dramatiq tells about each thread and each stop at INFO; watchfiles about each look.
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("dramatiq", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Lines(logging.Formatter):
    """A line for each record, then its traceback if it has one. What ends the process is an error like any command's."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """An app's own error may quote a URL; its password is nobody's business in a log."""
        return without_secrets(super().formatException(ei))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = one_line(record.message)
        return f"error: {record.message}" if record.levelno >= logging.CRITICAL else super().formatMessage(record)
