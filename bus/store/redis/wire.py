"""One connection's bytes: commands out, answers in (RESP2, https://redis.io/docs/latest/develop/reference/protocol-spec).

redis-py makes the connection, with its TLS, its login and its database. Then we speak for ourselves: its way from a call
to an answer costs three times what the kernel takes for both directions, and a publish is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as LostConnection

from bus.store.redis.pipe import pipe

__all__ = ["Command", "Wire", "pack", "refusal"]

Command = Sequence[str | bytes | int]

CHUNK = 65_536

_ERRORS: dict[bytes, type[Exception]] = {
    b"LOADING": BusyLoadingError,
    b"NOAUTH": AuthenticationError,
    b"NOPERM": NoPermissionError,
    b"NOSCRIPT": NoScriptError,
    b"OOM": OutOfMemoryError,
    b"READONLY": ReadOnlyError,
    b"WRONGPASS": AuthenticationError,
}
"""What redis-py calls them, so that one table at the boundary explains the errors of both of us."""


def pack(commands: Sequence[Command]) -> bytes:
    """Commands as they travel."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for part in command:
            data = part if type(part) is bytes else str(part).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def refusal(text: bytes) -> Exception:
    """What an error answer means."""
    return _ERRORS.get(text.partition(b" ")[0], ResponseError)(text.decode(errors="replace"))


class Wire:
    """A connection of redis-py's, open. For one thread at a time; one that raised is closed and of no more use."""

    __slots__ = ("_at", "_connection", "_data", "_pipe", "_resting")

    def __init__(self, connection: Any, *, resting: bool = False) -> None:
        """Connect. ``resting``: the first answer of each ``ask`` is one that the server keeps back until there is one.

        Raises redis-py's ``ConnectionError``, ``TimeoutError`` and ``AuthenticationError``.
        """
        connection.connect()
        self._connection = connection
        self._pipe = pipe(connection._sock)  # noqa: SLF001 - what a connection is, and there is no other door to it
        self._resting = resting
        self._data = b""
        self._at = 0

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their answers; an error answer is returned, not raised.

        Whatever cuts this short leaves answers unread, so it closes the connection.
        """
        try:
            self._pipe.send(pack(commands))
            if self._resting:
                self._pipe.rest()
            return [self._answer() for _ in commands]
        except TimeoutError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise LostConnection("the connection broke") from error
        except ValueError:
            self.close()
            raise InvalidResponse("Protocol Error: not an answer of a Redis server") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Safe twice."""
        self._connection.disconnect()

    def _answer(self) -> Any:
        line = self._line()
        kind = line[:1]
        if kind == b"$":
            return self._text(int(line[1:]))
        if kind == b":":
            return int(line[1:])
        if kind == b"*":
            return [self._answer() for _ in range(int(line[1:]))] if line != b"*-1" else None
        if kind == b"+":
            return line[1:]
        if kind != b"-":
            raise ValueError(kind)
        return refusal(line[1:])

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            self._more(1)
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _text(self, length: int) -> bytes | None:
        if length < 0:
            return None
        missing = self._at + length + 2 - len(self._data)
        if missing > 0:
            self._more(missing)
        start, self._at = self._at, self._at + length + 2
        return self._data[start : start + length]

    def _more(self, missing: int) -> None:
        """Read at least so many bytes behind what is left."""
        chunks = [self._data[self._at :]]
        while missing > 0:
            chunk = self._pipe.receive(max(CHUNK, missing))
            if not chunk:
                raise LostConnection("the server has closed the connection")
            chunks.append(chunk)
            missing -= len(chunk)
        self._data, self._at = b"".join(chunks), 0
