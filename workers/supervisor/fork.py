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

__all__ = ["END_S", "names_of_forks", "run_fork"]

END_S = 1.0
"""How long a fork may take to end."""
GUARD_S = 1.0
"""So long after that its guard kills it, should its master be gone."""


def names_of_forks(middleware: Iterable[Any]) -> list[str]:
    """What the middleware of a broker wants as processes, as ``module:function``."""
    return [f"{fork.__module__}:{fork.__name__}" for one in middleware for fork in one.forks]


def run_fork(where: str, tether: Tether) -> NoReturn:
    """Run it in this process. SIGTERM ends it through ``SystemExit``, as under Dramatiq: its ``finally`` blocks run."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Guard(END_S + GUARD_S, [signal.SIGTERM], tether.fileno())
    module, _, name = where.partition(":")
    function = getattr(importlib.import_module(module), name)
    tether.tell(ready=True)
    raise SystemExit(function())


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)
