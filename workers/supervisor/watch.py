"""Watching source code: a reload for every change of a .py file.

``watchfiles`` (the extra ``callboard[dev]``) does the watching; it is imported when somebody watches.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Watcher", "keep_no_bytecode"]

SETTLE_MS = 200
"""Changes that come so close together are one (editors write a file in several steps)."""
END_S = 2.0

log = logging.getLogger("callboard.supervisor")


def keep_no_bytecode() -> None:
    """Have this process, and what it starts, write no ``.pyc`` files. For who watches code; safe twice.

    Python takes a file for unchanged whose size and whole second are the same. Code that is saved again within a second of
    being imported would be the old code for ever, and that is how somebody works who watches.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


class Watcher:
    """Calls ``changed`` on a thread of its own. ``start`` and ``close`` bear being called twice.

    Raises ``ModuleNotFoundError`` where ``watchfiles`` is not installed.
    """

    def __init__(self, folders: Sequence[Path], changed: Callable[[], None]) -> None:
        import watchfiles  # noqa: PLC0415 - optional

        self._watchfiles: Any = watchfiles
        self._folders = folders
        self._changed = changed
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch from now on."""
        if self._thread is None:
            self._ending.clear()
            self._thread = threading.Thread(target=self._watch, name="callboard watcher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending.set()
            thread.join(END_S)

    def _watch(self) -> None:
        changes = self._watchfiles.watch(
            *self._folders,
            watch_filter=self._watchfiles.PythonFilter(),
            debounce=SETTLE_MS,
            stop_event=self._ending,
            rust_timeout=500,
            raise_interrupt=False,
        )
        for change in changes:
            names = sorted({Path(path).name for _, path in change})
            log.info("changed: %s", ", ".join(names[:5]) + (" and more" if len(names) > 5 else ""))
            self._changed()
