"""How a command ends: the exit codes, and which error has which."""

from __future__ import annotations

from bus import BusError, InvalidEvent, InvalidLog, InvalidPosition, InvalidSettings, InvalidTopic
from workers.errors import AppNotFound, InvalidHandler, MemoryWorker, UnknownName, WorkersError

__all__ = ["CUT_SHORT", "FAILURE", "USAGE", "Failed", "exit_code_of"]

FAILURE = 1
USAGE = 2
CUT_SHORT = 130
"""As a shell reports a command that Ctrl-C ended."""

_ASKED_WRONGLY = (
    AppNotFound,
    InvalidEvent,
    InvalidHandler,
    InvalidLog,
    InvalidPosition,
    InvalidSettings,
    InvalidTopic,
    MemoryWorker,
    UnknownName,
)


class Failed(Exception):
    """A command cannot go on. The text is one line for a person; it says what to do."""

    def __init__(self, text: str, exit_code: int = FAILURE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def exit_code_of(error: BusError | WorkersError) -> int:
    """2 where other arguments would have helped, 1 where it is the server."""
    return USAGE if isinstance(error, _ASKED_WRONGLY) else FAILURE
