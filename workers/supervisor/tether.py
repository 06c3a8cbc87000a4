"""A child's end of the line to its master: what it tells, and how its guard learns that the master is gone."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

__all__ = ["Tether"]


class Tether:
    """``given`` is the value of ``--child``: the child's number, a colon, and the descriptor of its socket.

    The master says nothing over it; it only ends, and takes its end of the line along.
    """

    def __init__(self, given: str) -> None:
        number, _, descriptor = given.partition(":")
        self.number = int(number)
        self._socket = socket.socket(fileno=int(descriptor))
        self._socket.set_inheritable(False)  # what handlers start must not hold the line
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor, for a :class:`~workers.supervisor.guard.Guard` to watch."""
        return self._socket.fileno()

    def tell(self, **facts: Any) -> None:
        """Tell the master. Never raises: a master that is gone is noticed elsewhere."""
        line = json.dumps(facts).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(line)
        except OSError:
            return
