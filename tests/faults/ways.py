"""The ways to start a worker, and what each of them promises about signals; and who is still there afterwards."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.processes import ROOT, Process
from tests.faults.world import World
from tests.waiting import wait_until

__all__ = ["WAYS", "Way", "end_strays", "strays"]

APP = "tests.faults.signal_app:app"


@dataclass(frozen=True)
class Way:
    """``command`` makes the command line for a grace; ``ready`` is what is written by each process that works."""

    name: str
    command: Callable[[float], list[str]]
    processes: int = 1
    ready: str = "ready: redis"

    def start(self, world: World, grace_s: float, *, wait: bool = True, **environ: str) -> Process:
        """Start it and wait until it works."""
        places = {"BUS_URL": world.server.url, "CALLBOARD_APP": APP, "PATH": path_with_callboard(world.folder)}
        others = serving(world)
        worker = world.start(self.name, self.command(grace_s), **places, **environ)
        world.workers.append(worker)
        if wait and self.ready:
            wait_until(lambda: worker.text.count(self.ready) >= self.processes, f"{self.name} to be ready", 60)
        elif wait:  # it says nothing
            wait_until(lambda: serving(world) >= others + self.processes, f"{self.name} to be ready", 60)
        return worker


def serving(world: World) -> int:
    """How many worker processes the server knows."""
    world.bus.usable()
    return len(world.bus.store.census().serving)


def worker(*options: str) -> Callable[[float], list[str]]:
    return lambda grace_s: ["workers.cli", "worker", APP, "--threads", "4", "--grace", str(grace_s), *options]


def dramatiq(grace_s: float) -> list[str]:
    timeout = ["--worker-shutdown-timeout", str(int(grace_s * 1000))]
    return ["dramatiq", f"{APP}.broker", "-p", "2", "-t", "4", *timeout]


def honcho(_grace_s: float) -> list[str]:
    """The Procfile as it is, with the grace that it names."""
    return ["honcho", "-f", str(ROOT / "Procfile"), "start"]


WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("callboard", worker()),
        Way("processes", worker("--processes", "2"), 2),
        Way("dramatiq", dramatiq, 2, ready=""),
        Way("embedded", lambda grace_s: ["tests.faults.embedded", str(grace_s)], ready="ready: embedded"),
        Way("honcho", honcho),
    )
}


def path_with_callboard(folder: Path) -> str:
    """A PATH on which ``callboard`` is this source's, for shells."""
    command = folder / "bin" / "callboard"
    if not command.exists():
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "workers.cli"])} "$@"\n')
        command.chmod(0o755)
    return f"{command.parent}{os.pathsep}{os.environ['PATH']}"


def strays(world: World, *known: Process) -> list[int]:
    """The processes of a world that live, but for the known ones and what those started. Linux only; elsewhere none."""
    mark = f"FAULT_JOURNAL={world.journal.path}".encode()
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(folder.name)] = int(parent)
        except OSError:  # gone meanwhile
            continue
    spared = {one.pid for one in known}
    while more := {pid for pid, parent in parents.items() if parent in spared} - spared:
        spared |= more
    return sorted(parents.keys() - spared)


def end_strays(world: World) -> None:
    """Kill what a row has left, so that the next one begins clean."""
    for pid in strays(world):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
