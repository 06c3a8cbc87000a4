"""Where something is in the code, and how it is called, for the log: names and lines, no values."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterable
from contextvars import Context
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["apps_part", "counted", "frame_of", "name_of", "place_of"]

MOST_NAMED = 10
_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("bus", "workers"))


def frame_of(thread: threading.Thread) -> FrameType | None:
    """What a thread runs right now, as far in as there is Python code. Let go of it soon: it keeps what it has."""
    return sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented for this use


def place_of(frame: FrameType | None) -> str:
    """The line that a frame is at: the one of the app from which it went on into the standard library, where there is one."""
    apps = frame
    while apps is not None and _is_between(apps.f_code.co_filename):
        apps = apps.f_back
    at = apps or frame
    return f"{at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}" if at else "an unknown place"


def apps_part(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame on that is neither ours nor the standard library's; all of it where none is."""
    part = trace
    while part is not None and _is_between(part.tb_frame.f_code.co_filename):
        part = part.tb_next
    return part or trace


def _is_between(file: str) -> bool:
    return file.startswith(_OURS) or (file.startswith(_LIBRARY) and "site-packages" not in file)


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
