"""Which event caused what is being published now.

A worker sets this around each handler, so that whatever the handler publishes, by whichever door, says what caused it
(CloudEvents' correlation extension). Context variables follow tasks and ``asyncio.to_thread``.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["CAUSE", "Cause"]


class Cause(NamedTuple):
    """The event being handled: its id, the id of the first event of the chain, and its trace."""

    id: str
    correlation: str
    traceparent: str | None


CAUSE: ContextVar[Cause | None] = ContextVar("callboard_cause", default=None)
