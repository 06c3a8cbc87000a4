"""What is written for people: safe to show on a terminal, whatever an event or an error may hold."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from rich.console import Console

__all__ = ["one_line", "printable", "tell", "tell_error", "to_stdout", "without_secrets"]

IN_A_PIPE = 240
"""How wide a table is where no terminal says: rich takes 80, and crops what does not fit."""

_SECRET = re.compile(r"(?<=://)\S*@")
_LONGEST = 2_000


def printable(text: str) -> str:
    r"""The text with every control and formatting character spelt out, as in ``\x1b``: it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_secrets(text: str) -> str:
    """The text without the user and password of any URL in it."""
    return _SECRET.sub("", text)


def one_line(text: str) -> str:
    """The text on one printable line of bounded length, without the user and password of any URL in it."""
    joined = " ".join(text.split())
    return printable(without_secrets(joined))[:_LONGEST]


def to_stdout() -> Console:
    """Where tables are printed."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(file=sys.stdout, width=None if known else IN_A_PIPE)


def tell(text: str, *, to: TextIO | None = None) -> None:
    """Say something to the person at the terminal: on stderr, so that stdout holds the output alone."""
    print(text, file=to or sys.stderr, flush=True)


def tell_error(text: str) -> None:
    """Say what went wrong, in one line."""
    tell(f"error: {one_line(text)}")
