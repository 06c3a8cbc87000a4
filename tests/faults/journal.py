"""The workers' half of the ledger: a file to which every run of a handler appends that it began, and how it ended.

A line is one ``write`` to a file that was opened for appending, so lines of many processes never mix, and what a killed
process had written stays. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Journal", "Pen", "Run"]


@dataclass(slots=True)
class Run:
    """One run of a handler. ``ended_s`` is ``None`` while it runs, and for ever where its process died."""

    id: str
    key: str
    pid: int
    began_s: float
    ended_s: float | None = None
    failed: bool = False

    @property
    def done(self) -> bool:
        """Whether it came to its end and did not fail."""
        return self.ended_s is not None and not self.failed


class Pen:
    """Writes runs, from any thread of a worker."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._count = itertools.count()

    @contextmanager
    def run(self, id: str, key: str) -> Iterator[None]:
        """Note the begin and the end of what runs inside."""
        pid = os.getpid()
        name = f"{pid}-{next(self._count)}"
        self._write(what="began", run=name, id=id, key=key, pid=pid)
        try:
            yield
        except BaseException:
            self._write(what="failed", run=name)
            raise
        self._write(what="ended", run=name)

    def _write(self, **line: str | int) -> None:
        os.write(self._file, json.dumps({**line, "at_s": time.monotonic()}).encode() + b"\n")


class Journal:
    """Reads what has been written so far; belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._by_name: dict[str, Run] = {}
        self._done: set[str] = set()

    def runs(self) -> list[Run]:
        """All runs, in the order in which they began."""
        self._read()
        return list(self._by_name.values())

    def of(self, id: str) -> list[Run]:
        """The runs of one event."""
        return [run for run in self.runs() if run.id == id]

    def done(self) -> set[str]:
        """The ids of all that was handled to its end, at least once. Ours: do not change it."""
        self._read()
        return self._done

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(new) + len(newline)
        for line in new.splitlines():
            self._add(json.loads(line))

    def _add(self, line: dict[str, str | float]) -> None:
        name, at_s = str(line["run"]), float(line["at_s"])
        if line["what"] == "began":
            self._by_name[name] = Run(str(line["id"]), str(line["key"]), int(line["pid"]), at_s)
            return
        run = self._by_name[name]
        run.ended_s, run.failed = at_s, line["what"] == "failed"
        if run.done:
            self._done.add(run.id)
