"""Signals of a process that begins anew: whoever is told to stop meanwhile does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from workers.cli.stopping import Stop, StoppedEarly

stop = Stop(60)
if sys.argv[1] == "first":
    stop.heed()
    stop.booted()
    os.kill(os.getpid(), signal.SIGHUP)
    stop.wait()  # its watchdog is a thread by now, and blocks no signal
    {before}
    if not stop.over(0):
        sys.exit("stopped")
    {after}
    os.execv(sys.executable, [sys.executable, sys.argv[0], "second"])
try:
    stop.heed()
    print("works")
except StoppedEarly:
    print("begins anew" if stop.over(0) else "stopped early")
"""
TERM, HUP = (f"os.kill(os.getpid(), signal.SIG{name})" for name in ("TERM", "HUP"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("pass", TERM, "stopped early"),
        ("pass", HUP, "begins anew"),
        ("pass", f"{HUP}; {TERM}", "stopped early"),
        (TERM, "pass", "stopped"),
    ],
    ids=["a stop", "another", "both", "a stop before"],
)
def test_a_signal_that_comes_as_a_process_begins_anew_is_heeded(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(before=before, after=after))

    ended = subprocess.run([sys.executable, program, "first"], capture_output=True, text=True, timeout=20, check=False)

    assert (ended.stdout + ended.stderr).strip() == said
