"""A child's end of the line to its master: what it tells, and how it learns that it is alone."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

__all__ = ["Tether"]

_PR_SET_PDEATHSIG = 1


class Tether:
    """``given`` is the value of ``--child``: the child's number, a colon, and the descriptor of its socket.

    From here on the end of the master is a SIGTERM to this process: on Linux the kernel sends it, and everywhere the
    socket's end is watched for. Make it on the main thread, before anything is slow.
    """

    def __init__(self, given: str) -> None:
        number, _, descriptor = given.partition(":")
        self.number = int(number)
        self._socket = socket.socket(fileno=int(descriptor))
        self._socket.set_inheritable(False)  # what handlers start must not hold the line
        self._lock = threading.Lock()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    def watch(self) -> None:
        """Have a thread send this process SIGTERM once the master is gone."""
        threading.Thread(target=self._watch, name="callboard tether", daemon=True).start()

    def tell(self, **facts: Any) -> None:
        """Tell the master. Never raises: a master that is gone is noticed elsewhere."""
        line = json.dumps(facts).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(line)
        except OSError:
            return

    def _watch(self) -> None:
        try:
            while self._socket.recv(64):
                pass  # a master says nothing; it only ends
        except OSError:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
