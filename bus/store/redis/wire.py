"""One connection's bytes: commands out, answers in (RESP2, https://redis.io/docs/latest/develop/reference/protocol-spec).

redis-py makes the connection, with its TLS, its login and its database, and hiredis reads and writes what travels. What
is left out are redis-py's detours between them: its way from a call to an answer costs three times what the kernel takes for
both directions, and a publish is one call.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
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

__all__ = ["AHEAD", "Command", "Wire", "pack", "refusal"]

Command = tuple[str | bytes | int, ...]

CHUNK = 65_536

AHEAD: Command = ("PING",)
"""Sent ahead of a command that tells others something, where nothing went before it for a while.

A server writes to its clients once it has done all that has come, and to those first to whom it came to owe something last
(``clients_pending_write`` of Redis 7 and Valkey). We are owed an answer to this before the others are told, so they are
written to before us. Otherwise their wake-up would come after ours: a twentieth of the time that an idle worker takes to
begin. Who publishes much sends none: nobody rests then.
"""

_ERRORS: dict[str, type[Exception]] = {
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "WRONGPASS": AuthenticationError,
}
"""What redis-py calls them, so that one table at the boundary explains the errors of both of us."""


def pack(commands: Sequence[Command]) -> bytes:
    """Commands as they travel."""
    # Its stub says "a tuple of one".
    if len(commands) == 1:
        return hiredis.pack_command(commands[0])  # type: ignore[arg-type,no-any-return]
    return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]


def refusal(text: str) -> Exception:
    """What an error answer means."""
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)


class Wire:
    """A connection of redis-py's, open. For one thread at a time; one that raised is closed and of no more use."""

    __slots__ = ("_connection", "_pipe", "_resting", "_said")

    def __init__(self, connection: Any, *, resting: bool = False) -> None:
        """Connect. ``resting``: the first answer of each ``ask`` is one that the server keeps back until there is one.

        Raises redis-py's ``ConnectionError``, ``TimeoutError`` and ``AuthenticationError``.
        """
        connection.connect()
        self._connection = connection
        self._pipe = pipe(connection._sock)  # noqa: SLF001 - what a connection is, and there is no other door to it
        self._resting = resting
        self._said = hiredis.Reader(replyError=refusal, errors="replace")

    def ask(
        self, commands: Sequence[Command], *, look: bool = True, tells: bool = False, apart: bool = False
    ) -> list[Any]:
        """Send commands in one write and return their answers; an error answer is returned, not raised.

        ``look`` out for them before waiting, unless there is something else to do. ``tells``: see :data:`AHEAD`. ``apart``:
        each in a write of its own, for large ones: the server is at work on the first while we pack the next. Whatever
        cuts this short leaves answers unread, so it closes the connection.
        """
        try:
            ahead = tells and not apart and self._pipe.cold
            if apart:
                for command in commands:
                    self._pipe.send(pack((command,)))
            else:
                self._pipe.send(pack([AHEAD, *commands] if ahead else commands))
            if self._resting or not look:
                self._pipe.rest()
            return self._answers(len(commands) + ahead)[ahead:]
        except TimeoutError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise LostConnection("the connection broke") from error
        except hiredis.ProtocolError:
            self.close()
            raise InvalidResponse("Protocol Error: not an answer of a Redis server") from None
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Have a wait of another thread's end now, as if the server had hung up. The socket stays that thread's to close."""
        sock = self._connection._sock  # noqa: SLF001 - as above
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the plain one under TLS, which is in use

    def close(self) -> None:
        """Safe twice."""
        self._connection.disconnect()

    def _answers(self, many: int) -> list[Any]:
        said = self._said
        answers: list[Any] = []
        while len(answers) < many:
            heard = self._pipe.receive(CHUNK)
            if not heard:
                raise LostConnection("the server has closed the connection")
            said.feed(heard)
            while len(answers) < many and (answer := said.gets()) is not False:  # RESP2 has no booleans
                answers.append(answer)
        return answers
