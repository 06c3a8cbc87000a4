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
        setattr(socket.socket, "send", self._sending(socket.socket.send))  # noqa: B010 - a method, to mypy
        setattr(socket.socket, "sendall", self._sending(socket.socket.sendall))  # noqa: B010
        setattr(socket.socket, "sendmsg", self._gathering(socket.socket.sendmsg))  # noqa: B010
        setattr(socket.socket, "recv", self._reading(socket.socket.recv))  # noqa: B010
        setattr(socket.socket, "recv_into", self._reading_into(socket.socket.recv_into))  # noqa: B010

    def _sending(self, sends: Callable[..., Any]) -> Callable[..., Any]:
        def send(sock: socket.socket, data: Buffer, *rest: Any) -> Any:
            self.before_sending(sock, bytes(data))
            sent = sends(sock, data, *rest)
            self.after_sending(sock)
            return sent

        return send

    def _gathering(self, sends: Callable[..., int]) -> Callable[..., int]:
        def sendmsg(sock: socket.socket, buffers: Iterable[Buffer], *rest: Any) -> int:
            parts = list(buffers)  # they may come by an iterator, which can be used once
            self.before_sending(sock, b"".join(bytes(each) for each in parts))
            sent = sends(sock, parts, *rest)
            self.after_sending(sock)
            return sent

        return sendmsg

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
