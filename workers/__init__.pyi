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
