"""Commands of one event loop, all on one connection: each is written at once, and answers come in their order.

So any number of publishers share one connection without waiting for each other's round trips. A server that owes answers
and says nothing for :data:`~bus.store.redis.link.ATTEMPT_S` is taken for dead: what was asked has an unknown outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as LostConnection

from bus.errors import BusUnavailable
from bus.store.redis.link import ATTEMPT_S, Link
from bus.store.redis.pipe import is_cold
from bus.store.redis.talk import Line, Talk
from bus.store.redis.wire import AHEAD, Command

__all__ = ["Commands"]


class Commands:
    """Belongs to one loop."""

    def __init__(self, link: Link, connect: Callable[[], Any]) -> None:
        self._line = Line(link, connect, _Asking)

    async def ask(self, commands: Sequence[Command], *, tells: bool = False) -> list[Any]:
        """Send commands, none of anybody else's between them, and return their answers; an error answer is returned, not raised.

        Each goes in a write of its own, so that the server is at work on it while the next is packed. Whoever is cancelled
        loses nobody else's answers.
        ``tells``: see :data:`~bus.store.redis.wire.AHEAD`. Raises redis-py's ``ConnectionError`` and ``TimeoutError``.
        """
        talk = self._line.open()
        if not isinstance(talk, _Asking):
            talk = await talk
        return await asyncio.gather(*[talk.ask(command, tells=tells) for command in commands])

    def close(self) -> None:
        """Hang up; who still waits for an answer is told. Safe twice, usable afterwards."""
        self._line.close("the connection was closed")


class _Asking(Talk):
    def __init__(self, link: Link, connection: Any) -> None:
        super().__init__(link, connection)
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.Future[Any] = self.loop.create_future()
        self._unread.cancel()

    def ask(self, command: Command, *, tells: bool) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self.loop.create_future()
        if self.dead:
            answer.set_exception(LostConnection("the connection broke"))
            return answer
        commands = [command]
        if not self._asked:
            now, heard_at = self.loop.time(), self.heard_at
            self.heard_at = now  # it owes us something from now on
            if tells and is_cold(heard_at, now):
                commands.insert(0, AHEAD)
                self._asked.append(self._unread)
        self._asked.append(answer)
        self.send(commands)
        if self._patience is None:
            self._patience = self.loop.call_later(ATTEMPT_S, self._lose_patience)
        return answer

    def hear(self, said: Any) -> None:
        answer = self._asked.popleft()
        if not answer.done():  # its asker may have been cancelled
            answer.set_result(said)

    def _lose_patience(self) -> None:
        self._patience = None
        if not self._asked:
            return
        left_s = self.heard_at + ATTEMPT_S - self.loop.time()
        if left_s <= 0:
            self.lose(f"{self.where} does not answer")
        else:
            self._patience = self.loop.call_later(left_s, self._lose_patience)

    def end(self, why: BusUnavailable) -> None:
        if self._patience is not None:
            self._patience.cancel()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(LostConnection(str(why)))
        self._asked.clear()
