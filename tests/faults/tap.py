"""What this process sends and receives on its sockets, seen (and spoilt) just above the kernel.

So it is the same for threads and for event loops, and whatever stands above: redis-py, or our own words.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Tap"]

Buffer = bytes | bytearray | memoryview


class Tap:
    """Subclass it, and :meth:`install` one in a process that lives for it alone: there is no way back."""

    def before_sending(self, sock: socket.socket, data: bytes) -> None:
        """This is about to be sent."""

    def after_sending(self, sock: socket.socket) -> None:
        """It has been handed to the kernel, or a part of it."""

    def received(self, sock: socket.socket, data: bytes) -> bytes:  # noqa: ARG002 - for subclasses
        """This has arrived; what is returned is what is read. May raise what a socket raises."""
        return data

    def install(self) -> None:
        """Over all sockets of this process."""
        # `socket.socket` inherits these from C and does not define them, so that it can be given its own.
        for name, gather in (("send", _one), ("sendall", _one), ("sendmsg", _many)):
            setattr(socket.socket, name, self._sending(getattr(socket.socket, name), gather))
        setattr(socket.socket, "recv", self._reading(socket.socket.recv))  # noqa: B010 - a method, to mypy
        setattr(socket.socket, "recv_into", self._reading_into(socket.socket.recv_into))  # noqa: B010

    def _sending(self, sends: Callable[..., Any], gather: Callable[[Any], bytes]) -> Callable[..., Any]:
        def send(sock: socket.socket, data: Any, *rest: Any) -> Any:
            self.before_sending(sock, gather(data))
            sent = sends(sock, data, *rest)
            self.after_sending(sock)
            return sent

        return send

    def _reading(self, reads: Callable[..., bytes]) -> Callable[..., bytes]:
        def recv(sock: socket.socket, *arguments: Any) -> bytes:
            return self.received(sock, reads(sock, *arguments))

        return recv

    def _reading_into(self, reads: Callable[..., int]) -> Callable[..., int]:
        def recv_into(sock: socket.socket, buffer: Any, *arguments: Any) -> int:
            count = reads(sock, buffer, *arguments)
            self.received(sock, bytes(memoryview(buffer)[:count]))
            return count

        return recv_into


def _one(data: Buffer) -> bytes:
    return bytes(data)


def _many(buffers: Iterable[Buffer]) -> bytes:
    return b"".join(bytes(each) for each in buffers)
