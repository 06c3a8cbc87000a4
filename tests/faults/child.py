"""``python -m tests.faults.child MODULE ...`` runs a module as ``python -m`` does, tied to the life of its parent.

A test run that is killed cannot clean up, so on Linux the kernel ends its children with it. It ends them with the
*thread* that started them, which is why the main thread starts them all.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = os.environ.pop("FAULT_PARENT", None)
    if parent is not None:  # what a module starts in its turn, as it was started, is its own affair
        _tie(int(parent))
    module = sys.argv[1]
    del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _tie(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we were tied to it
        sys.exit("the parent is gone")


if __name__ == "__main__":
    main()
