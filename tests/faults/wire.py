"""A wire that can be cut without anybody being told: a pair of veth devices, one end of it in a namespace of its own.

A proxy cannot make a link half-open, for its kernel still acknowledges. Here both ends are told a hardware address for
the other that nobody has: whatever they send is sent, and never arrives. It takes root and ``ip``; where either is
missing there is :class:`NoWire`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from types import TracebackType
from typing import Self

__all__ = ["NoWire", "Wire"]

NOBODY = "02:00:00:00:de:ad"


class NoWire(Exception):
    """There can be no such wire here; the text says why."""


class Wire:
    """A context manager; what it made is gone at its end. The near end is in our own namespace."""

    def __init__(self) -> None:
        number = random.randrange(1 << 14)
        self._namespace = f"callboard-{os.getpid()}-{number}"
        self._devices = f"cbn{number}", f"cbf{number}"
        # 198.18.0.0/15 is set aside for tests of network devices (RFC 2544).
        at = 4 * number
        self._addresses = [f"198.{18 + (at >> 16)}.{at >> 8 & 255}.{(at & 255) + end}" for end in (1, 2)]

    @property
    def near(self) -> str:
        """The address of the near end."""
        return self._addresses[0]

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to run at the far end."""
        return ["ip", "netns", "exec", self._namespace]

    def __enter__(self) -> Self:
        if os.name != "posix" or os.geteuid() != 0:
            raise NoWire("not root")
        if shutil.which("ip") is None:
            raise NoWire("no ip command")
        try:
            self._set_up()
        except subprocess.CalledProcessError as error:
            self._take_down()
            raise NoWire(str(error.stderr).strip() or str(error)) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._take_down()

    def _set_up(self) -> None:
        near, far = self._devices
        _run("ip", "netns", "add", self._namespace)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", self._namespace)
        _run("ip", "address", "add", f"{self._addresses[0]}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run("ip", "-n", self._namespace, "address", "add", f"{self._addresses[1]}/30", "dev", far)
        _run("ip", "-n", self._namespace, "link", "set", far, "up")
        _run("ip", "-n", self._namespace, "link", "set", "lo", "up")

    def _take_down(self) -> None:
        for command in (("link", "delete", self._devices[0]), ("netns", "delete", self._namespace)):
            subprocess.run(["ip", *command], capture_output=True, timeout=10, check=False)

    def cut(self) -> None:
        """From now on nothing arrives, at either end."""
        for each in self._ends():
            _run(*each[:-2], "neigh", "replace", each[-2], "lladdr", NOBODY, "nud", "permanent", "dev", each[-1])

    def mend(self) -> None:
        """Undo it."""
        for each in self._ends():
            _run(*each[:-2], "neigh", "delete", each[-2], "dev", each[-1])

    def is_cut(self) -> bool:
        """Whether both ends have the wrong address of the other."""
        return all(NOBODY in _run(*each[:-2], "neigh", "show", "dev", each[-1]) for each in self._ends())

    def _ends(self) -> list[tuple[str, ...]]:
        """For each end: the command that speaks to it, the other's address, and its device."""
        (near, far), (near_address, far_address) = self._devices, self._addresses
        return [("ip", far_address, near), ("ip", "-n", self._namespace, near_address, far)]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
