"""Where something is in the code, and how it is called, for the log: names and lines, no values."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from contextvars import Context
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["counted", "frame_of", "name_of", "place_of"]

MOST_NAMED = 10


def frame_of(thread: threading.Thread) -> FrameType | None:
    """What a thread runs right now, as far in as there is Python code. Let go of it soon: it keeps what it has."""
    return sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented for this use


def place_of(frame: FrameType | None) -> str:
    """The line that a frame is at."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown place"


def name_of(call: Any) -> str:
    """A function as ``module.name``, also from within what ``asyncio.to_thread`` makes of it."""
    while isinstance(call, partial):
        within = isinstance(getattr(call.func, "__self__", None), Context) and call.args
        call = call.args[0] if within else call.func
    name = getattr(call, "__qualname__", type(call).__qualname__).replace("<locals>.", "")
    return f"{getattr(call, '__module__', '') or type(call).__module__}.{name}"


def counted(names: Iterable[str]) -> str:
    """``shop.mail 4,000, shop.greet 998``: names with how many there are of each, the most first."""
    counts = Counter(names).most_common()
    more = [f"and {len(counts) - MOST_NAMED} more"] if len(counts) > MOST_NAMED else []
    return ", ".join([*(f"{name} {number:,}" for name, number in counts[:MOST_NAMED]), *more])
