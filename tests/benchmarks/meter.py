"""What a process takes for its work. The standard library alone: the peers' processes have nothing else of ours."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["Meter"]


class Meter:
    """What the process took between :meth:`start` and :meth:`read`. Linux only: peaks are the kernel's."""

    def start(self) -> None:
        """Everything is set up, and the work begins."""
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._idle_kb = _status_kb("VmRSS")
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds, and MB above the start."""
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": (_status_kb("VmHWM") - self._idle_kb) / 1024}


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
