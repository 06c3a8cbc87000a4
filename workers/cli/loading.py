"""From ``module:app`` to the app, or to one line that says why there is none."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bus import BusError
from workers.app import App
from workers.cli.stopping import StoppedEarly
from workers.errors import AppNotFound, WorkersError, instead_of

__all__ = ["add_folder", "load_app"]


def load_app(where: str) -> App:
    """Import ``module:attribute.path`` (the attribute is ``app`` unless named), with the current folder on the path.

    Raises :class:`~workers.errors.AppNotFound`. What a module raises while it is imported is named in its text.
    """
    module_name, _, path = where.partition(":")
    path = path or "app"
    if not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise AppNotFound(f"{where[:80]!r} names no app: write MODULE:APP, as in shop.events:app")
    add_folder()
    found: Any = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"module {module_name!r} has no {path!r}{_instead(module_name, path)}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise AppNotFound(f"{where!r} is a {type(found).__name__}, not a workers.App{_instead(module_name, path)}")
    return found


def add_folder() -> None:
    """Have modules of the current folder found, whichever way this process was started. Safe twice."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            hint = "start in the folder that it is imported from"
            parent, _, last = name.rpartition(".")
            if last == "py":
                hint = f"it is imported, so write {parent} without .py"
            elif parent in sys.modules and hasattr(sys.modules[parent], last):
                hint = f"did you mean {f'{parent}:{last}'!r}?"
            raise AppNotFound(f"there is no module {name!r} here: {hint}") from None
        raise _failed(name, error) from error
    except (KeyboardInterrupt, StoppedEarly):
        raise
    except BaseException as error:
        raise _failed(name, error) from error


def _failed(name: str, error: BaseException) -> AppNotFound:
    what = f"importing module {name!r} failed: {type(error).__name__}: {error}"
    # Our own errors say what to do.
    if isinstance(error, BusError | WorkersError):
        return AppNotFound(what)
    return AppNotFound(f"{what} (python -c 'import {name}' shows where)")


def _instead(module_name: str, path: str) -> str:
    module = sys.modules[module_name]
    apps = sorted(name for name, value in vars(module).items() if isinstance(value, App))
    if not apps:
        return ": make one with app = App(bus)"
    return instead_of(f"{module_name}:{path}", [f"{module_name}:{app}" for app in apps])
