"""Processes to be frozen and killed: each in a session of its own, with its output in files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waiting import NeverHappened, wait_until

__all__ = ["Process"]

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A Python module that runs as a process. Started and ended by the main thread; :meth:`kill` it in a ``finally``.

    ``inside`` is a command that becomes the one behind it (``ip netns exec NAME``), so that the process stays ours.
    """

    def __init__(
        self, arguments: Sequence[str], output: Path, environ: Mapping[str, str], *, inside: Sequence[str] = ()
    ) -> None:
        assert threading.current_thread() is threading.main_thread(), (
            "the kernel ends it with the thread that started it"
        )
        self.output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [*inside, sys.executable, "-m", "tests.faults.child", *arguments],
                cwd=ROOT,
                env={**_environ(), "FAULT_PARENT": str(os.getpid()), **environ},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Process {self.pid}, {'alive' if self.alive else f'ended with {self.exit_code}'}>"

    @property
    def alive(self) -> bool:
        """Whether it has not ended; a frozen one has not."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As :class:`subprocess.Popen` has it: minus the signal that ended it."""
        return self._process.poll()

    @property
    def text(self) -> str:
        """All that it has written."""
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Wait until it has written this."""
        try:
            wait_until(lambda: text in self.text, f"{self!r} to write {text!r}", timeout)
        except NeverHappened as never:
            raise AssertionError(f"{never}; it wrote:\n{self.text}") from None

    def wait(self, timeout: float = 30) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        return self._process.wait(timeout)

    def signal(self, number: int) -> float:
        """Send it a signal, it alone, and say when that was."""
        self._process.send_signal(number)
        return time.monotonic()

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP), and be sure that it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        wait_until(lambda: state_of(self.pid) == "T", f"{self!r} to stop")

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)
        wait_until(lambda: state_of(self.pid) != "T", f"{self!r} to go on")

    def kill(self) -> float:
        """Kill it and its group (SIGKILL), be sure that it is gone, and say when that was. Safe twice."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        at_s = time.monotonic()
        self._process.wait(10)
        return at_s


def state_of(pid: int) -> str:
    """The letter that the system gives to a process's state: T is stopped; "" where it is gone."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        # Behind the name, which is in parentheses and may hold anything.
        return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""
    found = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1]


def _environ() -> dict[str, str]:
    """Ours, without what would point a worker somewhere else."""
    ours = ("BUS_", "REDIS_", "DRAMATIQ_", "FAULT_")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
