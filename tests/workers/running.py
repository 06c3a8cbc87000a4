"""Run an app's worker inside the test, or a program of the test's own in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dramatiq

from workers import App

ROOT = Path(__file__).parents[2]


@contextmanager
def working(app: App, threads: int = 4, queues: set[str] | None = None) -> Iterator[dramatiq.Worker]:
    """A ``dramatiq.Worker`` on the app's broker, stopped at the end."""
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=threads, queues=queues)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=10_000)


def start_program(code: str, *args: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python with this code; its output is captured. The caller ends it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_program(code: str, *args: str, **environment: str) -> str:
    """Run Python with this code to its end, and return what it printed."""
    with start_program(code, *args, **environment) as program:
        out, err = program.communicate(timeout=30)
    assert program.returncode == 0, err
    return out
