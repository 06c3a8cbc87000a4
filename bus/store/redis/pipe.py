"""A connection's socket, from which answers are looked out for before they are waited for.

A thread that sleeps in ``recv`` is woken late: with client and server on a core each, falling idle and being called back
takes up to 50 us on a virtual machine, as long as the server takes for a publish, and leaves cold caches behind. A look
costs a microsecond.

It keeps its core while it looks: to yield it, where others wait for it, costs milliseconds until it is given back. Whoever
is answered later than that, over a network or by a busy server, sleeps at once the next few times; and so does who has been
told to ``rest``, for other threads have something to do meanwhile: four that publish are half as quick again.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Final, Protocol

__all__ = ["Pipe", "is_cold", "pipe"]

LOOK_S: Final = 0.0004
"""How long to look out for an answer: a publish's takes 60 to 200 us, the more the slower the machine is just now."""
WARM_S: Final = 0.005
"""After a longer silence the answer will take longer, and whoever works on it may need the core on which we would look."""
MOST_DISCOURAGED: Final = 32
"""After a look in vain, how many answers are waited for without one: one, and twice as many each time, up to so many."""


class Pipe(Protocol):
    """Bytes both ways, for one thread at a time. Errors are the socket's: ``OSError``, ``TimeoutError`` among them."""

    @property
    def cold(self) -> bool:
        """See :func:`is_cold`."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self, most: int) -> bytes:
        """What has come, ``most`` bytes of it; blocks until there is some. Nothing means that the other side has ended."""

    def rest(self) -> None:
        """The next bytes will be long in coming."""


def is_cold(heard_at: float, now: float) -> bool:
    """Whether so much time has gone by without a word that what is sent now finds the others at rest."""
    return now > heard_at + WARM_S


def pipe(sock: Any) -> Pipe:
    """The quickest that there is for this socket. Its timeout holds for each call; the socket is the pipe's from now on."""
    plain = type(sock) is socket.socket and hasattr(select, "poll")
    return _Watched(sock) if plain else _Patient(sock)


class _Patient:
    """For TLS, whose records are not the kernel's to see, and for systems without ``poll``."""

    def __init__(self, sock: Any) -> None:
        self.send = sock.sendall
        self.receive = sock.recv
        self.cold = False

    def rest(self) -> None:
        """It never does anything else."""


class _Watched:
    __slots__ = ("_discouraged", "_heard_at", "_in_vain", "_poll", "_socket", "_timeout_s")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._timeout_s = sock.gettimeout()
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._poll = poll.poll
        self._discouraged = 0
        self._in_vain = 1
        self._heard_at = 0.0
        sock.settimeout(0)  # a socket with a timeout asks the kernel before each call whether it may

    @property
    def cold(self) -> bool:
        return is_cold(self._heard_at, time.monotonic())

    def send(self, data: bytes) -> None:
        if not self._discouraged and self.cold:
            self._discouraged = 1
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # more than the kernel takes at once
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(memoryview(data)[sent:])
            self._socket.settimeout(0)

    def receive(self, most: int) -> bytes:
        if self._discouraged:
            self._discouraged -= 1
        else:
            until = time.monotonic() + LOOK_S
            while (now := time.monotonic()) < until:
                try:
                    heard = self._socket.recv(most)  # which lets go of the GIL
                except BlockingIOError:
                    continue
                self._in_vain, self._heard_at = 1, now
                return heard
            self._discouraged = self._in_vain
            self._in_vain = min(2 * self._in_vain, MOST_DISCOURAGED)
        if not self._poll(None if self._timeout_s is None else self._timeout_s * 1000):
            raise TimeoutError("timed out")
        self._heard_at = time.monotonic()
        return self._socket.recv(most)

    def rest(self) -> None:
        self._discouraged = max(1, self._discouraged)
