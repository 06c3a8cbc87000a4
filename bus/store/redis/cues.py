"""A worker's own channel, on which it is handed jobs while it stands by.

Not a blocking pop: the server says at once how many have heard what is published, so no job goes to somebody who is gone, and
a thread that waits here leaves nothing behind on the server when it is called away.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress
from typing import Any

import hiredis
import redis

from bus.errors import BusUnavailable
from bus.store.base import Cues, Taken
from bus.store.redis.scripts import cue
from bus.store.redis.wire import CHUNK, pack, refusal

__all__ = ["cues"]

LEAVE_S = 1.0
"""How long a thread may take to leave what is closed."""


def cues(connection: Any, channel: str) -> Cues | None:
    """Subscribe a connection of redis-py's. Raises its errors.

    ``None`` where its bytes cannot be waited for together with a call: TLS has records of its own, some systems no ``poll``.
    """
    if isinstance(connection, redis.SSLConnection) or not hasattr(select, "poll"):
        return None
    connection.connect()
    try:
        return _Channel(connection, connection._sock, channel)  # noqa: SLF001 - what it is, and there is no other door to it
    except BaseException:
        connection.disconnect()
        raise


class _Channel:
    def __init__(self, connection: Any, sock: socket.socket, channel: str) -> None:
        self._connection = connection
        self._socket = sock
        self._said = hiredis.Reader(replyError=refusal, errors="replace")
        self._closed = self._broken = False
        self._inside = threading.Lock()
        self._outside = threading.Lock()
        sock.sendall(pack([("SUBSCRIBE", channel)]))
        while (confirmed := self._said.gets()) is False:
            self._listen()
        if isinstance(confirmed, Exception):
            raise confirmed
        sock.settimeout(0)
        self._called, self._calling = os.pipe()
        os.set_blocking(self._calling, False)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.register(self._called, select.POLLIN)
        self._poll = poll.poll

    def hear(self, timeout_s: float | None) -> Taken | None:
        """See :class:`bus.store.base.Cues`."""
        with self._inside:
            if self._closed:
                raise BusUnavailable("the worker's channel is closed")
            if self._broken:
                raise BusUnavailable("the worker's channel broke")
            try:
                return self._hear(timeout_s)
            except BaseException as error:  # a thread that was struck here may have lost a part of what came
                self._broken = True
                if isinstance(error, OSError | ValueError | hiredis.ProtocolError):
                    if self._closed:  # and not left in time
                        raise BusUnavailable("the worker's channel is closed") from error
                    raise BusUnavailable("the worker's channel broke") from error
                raise

    def _hear(self, timeout_s: float | None) -> Taken | None:
        if (said := self._said.gets()) is False:  # two may have come at once
            for came, _ in self._poll(None if timeout_s is None else timeout_s * 1000):
                if came == self._called:
                    os.read(came, CHUNK)
                else:
                    self._listen()
            said = self._said.gets()
        if said is False:
            return None
        if not isinstance(said, list) or said[:1] != [b"message"]:
            raise ValueError("this is no message")
        return cue(said[2])

    def _listen(self) -> None:
        heard = self._socket.recv(CHUNK)
        if not heard:
            raise ConnectionResetError("the server has closed the connection")
        self._said.feed(heard)

    def call(self) -> None:
        """See :class:`bus.store.base.Cues`."""
        with self._outside:
            self._call()

    def _call(self) -> None:
        if not self._closed:
            with suppress(BlockingIOError):  # thousands of calls have not been answered: one will do
                os.write(self._calling, b"!")

    def close(self) -> None:
        """See :class:`bus.store.base.Cues`."""
        with self._outside:
            if self._closed:
                return
            self._call()
            self._closed = True
        left = self._inside.acquire(timeout=LEAVE_S)
        self._connection.disconnect()
        if left:
            os.close(self._called)
            os.close(self._calling)
            self._inside.release()
