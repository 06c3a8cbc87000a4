"""One of Dramatiq's ``Middleware.forks``, in a process of its own.

Dramatiq's command line imports the function's module, not the app, and exits with what the function returns; so do we.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any, NoReturn

from workers.supervisor.guard import Guard
from workers.supervisor.tether import Tether

__all__ = ["names_of_forks", "run_fork"]


GUARD_S = 3.0
"""More than the master gives."""


def names_of_forks(middleware: Iterable[Any]) -> list[str]:
    """What the middleware of a broker wants as processes, as ``module:function``."""
    return [f"{fork.__module__}:{fork.__name__}" for one in middleware for fork in one.forks]


def run_fork(where: str, tether: Tether) -> NoReturn:
    """Run it in this process. SIGTERM ends it through ``SystemExit``, as under Dramatiq: its ``finally`` blocks run."""
    signal.signal(signal.SIGTERM, _leave)
    Guard(GUARD_S, [signal.SIGTERM])  # a live master kills what does not leave; this is for when it is dead
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tether.watch()
    module, _, name = where.partition(":")
    function = getattr(importlib.import_module(module), name)
    tether.tell(ready=True)
    raise SystemExit(function())


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)
