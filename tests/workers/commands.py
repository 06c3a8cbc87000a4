"""Run ``callboard`` as its users do: as a process, on its own arguments and environment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

from bus import Bus, Delivery
from tests.waiting import NeverHappened, wait_until

__all__ = ["CALLBOARD", "ROOT", "Program", "callboard", "error_of", "history", "program"]

ROOT = Path(__file__).parents[2]
CALLBOARD = (sys.executable, "-m", "workers.cli")

_SETTINGS = ("BUS_URL", "REDIS_URL", "BUS_NAMESPACE", "PLAY_LEDGER")


def callboard(
    *args: str, stdin: str = "", folder: Path = ROOT, env: dict[str, str] | None = None
) -> CompletedProcess[str]:
    """Run a command to its end; what it reads is a pipe."""
    return subprocess.run(
        [*CALLBOARD, *args],
        cwd=folder,
        env=_environment(env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def error_of(done: CompletedProcess[str], exit_code: int) -> str:
    """The one line that a command failed with."""
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (exit_code, 1), done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


class Program:
    """A running process whose output goes to files, so that it is never kept waiting and can be looked at."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def lines(self) -> list[str]:
        """What it has printed: whole lines only."""
        return self._out.read_text().split("\n")[:-1]

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return self._err.read_text()

    def wait_for(self, text: str, timeout: float = 20) -> None:
        """Wait until it has written this, on either stream."""
        try:
            wait_until(lambda: text in self._out.read_text() + self.errors, f"the program to write {text!r}", timeout)
        except NeverHappened as never:
            raise AssertionError(f"{never}; it wrote:\n{self._out.read_text()}{self.errors}") from None

    def end(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        """Send it a signal and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextmanager
def program(
    command: Sequence[str] | str,
    files: Path,
    *,
    folder: Path = ROOT,
    env: dict[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    errors_to: int | None = None,
) -> Iterator[Program]:
    """Start a program (a ``str`` is run by the shell) in a process group of its own, which does not outlive the block.

    What it writes to stderr can be looked at unless it goes elsewhere, to the descriptor ``errors_to``.
    """
    name = f"program-{len(list(files.glob('program-*.out')))}"
    out, err = files / f"{name}.out", files / f"{name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            env=_environment(env or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr if errors_to is None else errors_to,
            start_new_session=True,
        )
    try:
        yield Program(process, out, err)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        if process.stdin is not None:
            process.stdin.close()


def history(url: str, namespace: str, *patterns: str, log: str | None = None) -> list[Delivery]:
    """What a log holds."""

    async def read() -> list[Delivery]:
        async with Bus(url, namespace=namespace) as bus:
            return [item async for item in bus.history(*patterns, log=log) if isinstance(item, Delivery)]

    return asyncio.run(read())


def _environment(env: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **env}
