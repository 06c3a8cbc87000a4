"""Callboard's workers: durable handlers for the events of a bus, run by Dramatiq.

Start with :class:`App`. The README beside this file tells how the rooms fit together.

What stands here is imported when it is first asked for: every pytest of an environment imports this package, for its
plugin, and most of them want nothing of it. ``__init__.pyi`` tells type checkers the same.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "workers.app": ("App",),
    "workers.context": ("Context", "Progress"),
    "workers.errors": (
        "AppNotFound",
        "BootFailed",
        "InvalidHandler",
        "InvalidStep",
        "MemoryWorker",
        "WorkersError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - names, all of them


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
