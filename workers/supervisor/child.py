"""A child as its master knows it: a process, the line that it tells things over, and when it must be gone."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["Child", "Command"]

LONGEST_LINE = 1 << 20

log = logging.getLogger("callboard.supervisor")


class Command:
    """How this process was started, so that others can be started as it was, with options more."""

    def __init__(self, subcommand: str) -> None:
        arguments = sys.argv[1:]
        at = arguments.index(subcommand) + 1
        ours = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
        self._head = [sys.executable, *ours, *arguments[:at]]
        self._tail = arguments[at:]

    def with_options(self, *options: str) -> list[str]:
        """The same command line, with these options in front of the others."""
        return [*self._head, *options, *self._tail]


class Child:
    """One process. Belongs to the master's thread; ``report`` may be looked at by any."""

    def __init__(self, command: Command, number: int, generation: int, options: Sequence[str] = ()) -> None:
        self.number = number
        self.generation = generation
        self.options = tuple(options)
        self.ready = False
        self.ready_at: float | None = None
        self.facts: dict[str, Any] = {}
        """What it has told, by name; the last word counts."""
        self.told_at = 0.0
        self.leaving = False
        self.kill_at: float | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this very command
                    command.with_options("--child", f"{number}:{theirs.fileno()}", *options),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # A signal to the master's group (Ctrl-C, honcho) is the master's to forward, once.
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        ours.settimeout(0)
        self.line = ours
        self._unread = b""
        self.pid = self._process.pid
        self.started_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Child {self.number}, pid {self.pid}>"

    @property
    def exit_code(self) -> int | None:
        """``None`` while it lives; minus the signal that ended it. Reaps it."""
        return self._process.poll()

    def hear(self) -> None:
        """Take in what it has told. Never blocks."""
        try:
            data = self.line.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data)[-LONGEST_LINE:].split(b"\n")
        for line in lines:
            self._note(line)
        if not data:
            self.line.close()

    def _note(self, line: bytes) -> None:
        try:
            facts = json.loads(line)
            self.facts = {**self.facts, **facts}
        except (ValueError, TypeError):
            log.warning("worker %d told something that is not JSON", self.number)
            return
        self.told_at = time.monotonic()
        if facts.get("ready") and not self.ready:
            self.ready, self.ready_at = True, self.told_at

    def drain(self, limit_s: float) -> None:
        """Ask it to stop (SIGTERM), once; :meth:`kill_if_late` ends it when the limit is over."""
        if not self.leaving:
            self.leaving = True
            self.kill_at = time.monotonic() + limit_s
            self._process.send_signal(signal.SIGTERM)

    def kill_if_late(self) -> bool:
        """Whether it had to be killed."""
        if self.kill_at is None or time.monotonic() < self.kill_at:
            return False
        self.kill_at = None
        self.kill()
        return True

    def kill(self) -> None:
        """End it at once. Safe twice."""
        self._process.kill()

    def close(self) -> None:
        """Free what the master has of it, once it is gone. Safe twice."""
        self._process.wait()
        self.line.close()
