"""A measured piece in a process of its own: no thread, loop, cache or garbage of one run is there in the next.

A piece is a function of this folder with plain arguments and a plain answer. The child runs
``python -m tests.benchmarks.child module:function '{"argument": ...}'`` and prints lines of JSON: whatever the piece
tells with :func:`say` on its way, then its answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

__all__ = ["Child", "ended", "run", "say"]

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 180.0


class Child:
    """A piece that runs until it has answered, or until the end of its ``with``. After ``LONGEST_S`` it is killed.

    One that runs in another ``python`` is named, ``module:function``, for it may not be importable here.
    """

    def __init__(
        self,
        piece: Callable[..., Any] | str,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.name = piece if isinstance(piece, str) else f"{piece.__module__}:{piece.__qualname__}"
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.child", self.name, json.dumps(arguments)],
            cwd=ROOT,
            env=_environ() | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._deadline = Timer(LONGEST_S, self._process.kill)
        self._deadline.daemon = True
        self._deadline.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()  # closes its stdin, for which an idle piece waits
        self._deadline.cancel()
        if kind is None and self._process.returncode:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}")

    def heard(self) -> Any:
        """The next thing that it says. Blocks; an error if it ends first."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended without an answer, or took more than {LONGEST_S:g} s")
        return json.loads(line)


def run(
    piece: Callable[..., Any] | str,
    arguments: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Any:
    """Run a piece in a child and return its answer."""
    with Child(piece, arguments, environ, python) as child:
        return child.heard()


def say(words: object) -> None:
    """In the child: tell the parent something before the answer."""
    print(json.dumps(words), flush=True)


def ended() -> None:
    """In the child: wait until the parent has had enough."""
    sys.stdin.read()


def _environ() -> dict[str, str]:
    """Ours, without what would tune either side behind the benchmark's back."""
    return {name: value for name, value in os.environ.items() if not name.lower().startswith(("dramatiq_", "bus_"))}


def main(target: str, arguments: str) -> None:
    module, _, function = target.partition(":")
    say(getattr(import_module(module), function)(**json.loads(arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
