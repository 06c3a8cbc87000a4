"""Callboard's workers: durable handlers for the events of a bus, run by Dramatiq.

Start with :class:`App`. The README beside this file tells how the rooms fit together.
"""

from workers.app import App
from workers.context import Context, Progress
from workers.errors import AppNotFound, BootFailed, InvalidHandler, InvalidStep, MemoryWorker, WorkersError

__all__ = [
    "App",
    "AppNotFound",
    "BootFailed",
    "Context",
    "InvalidHandler",
    "InvalidStep",
    "MemoryWorker",
    "Progress",
    "WorkersError",
]
