"""Other task queues, each in an environment of its own, for some need other versions of redis-py than ours.

The environments stand outside of the repository (``BENCH_PEERS``, else ``~/.cache/callboard-peers``) and are made at the
first run. The modules of this folder run in them, so they import nothing but the standard library, their peer and
``tests.benchmarks``' own meter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PeerMissing", "python_with"]


class PeerMissing(RuntimeError):
    """A peer could not be installed here; the report says so."""


def python_with(name: str, requirements: Sequence[str]) -> str:
    """The Python of a peer's environment, which is made where it is missing. Raises :class:`PeerMissing`."""
    room = Path(os.environ.get("BENCH_PEERS") or Path.home() / ".cache" / "callboard-peers")
    where = room / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    python, ready = where / "bin" / "python", where / "ready"
    if not ready.exists():
        venv.create(where, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PeerMissing(f"{' '.join(requirements)} cannot be installed: {last[:200]}")
        ready.touch()
    return str(python)
