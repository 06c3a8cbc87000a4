"""The room where coroutines run: one event loop for each process, and a stage on it for the async jobs."""

from workers.loop.stage import Stage
from workers.loop.thread import WorkerLoop

__all__ = ["Stage", "WorkerLoop"]
