"""Connections for script calls, kept on a stack.

A line is taken from it, written to, read from, and put back, without a look at the socket first. A line that turns out to
have died while it lay there is replaced, once: every script may be sent again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError, RedisError

from bus.store.redis.wire import Command, Wire

__all__ = ["Lines", "Turns"]

_forked = threading.Lock()


class Turns:
    """A semaphore that locks nothing while there are turns left; ``threading``'s always does.

    (``SimpleQueue.get(timeout=)`` would do in C, but where several wait, one of them may wait for ever.)
    """

    def __init__(self, many: int) -> None:
        self._free: deque[None] = deque([None] * many)
        self._freed = threading.Condition()
        self._waiting = 0

    @property
    def left(self) -> int:
        """How many turns there are."""
        return len(self._free)

    def take(self, timeout_s: float) -> bool:
        """Take a turn; ``False`` where there was none for so long."""
        try:
            self._free.pop()
        except IndexError:
            return self._wait(timeout_s)
        return True

    def give_back(self) -> None:
        """Let another one have it. Never blocks."""
        self._free.append(None)
        # In this order: whoever waits has counted itself before it looked for a turn, so that none is missed.
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def _came_free(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _wait(self, timeout_s: float) -> bool:
        with self._freed:
            self._waiting += 1
            try:
                return self._freed.wait_for(self._came_free, timeout_s)
            finally:
                self._waiting -= 1


class Lines:
    """At most ``most`` connections, opened when first needed. Safe from any thread, and after a fork.

    ``resting`` lines are for commands that rest on the server. One that had died is not replaced: its repetition would rest
    too, while the caller should know that what the first one took was lost on the way. And closing ends their rest: on a
    server that hangs it would outlast whoever rests there.
    """

    def __init__(self, connect: Callable[[], Any], *, most: int, patience_s: float, resting: bool = False) -> None:
        self._connect = connect
        self._resting = resting
        self._most = most
        self._patience_s = patience_s
        self._start()

    def _start(self) -> None:
        self._idle: deque[Wire] = deque()
        self._at_rest: set[Wire] = set()
        self._turns = Turns(self._most)
        self._closings = 0
        self._shut = False
        self._pid = os.getpid()  # the last one: other threads look at it first

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their answers; an error answer is returned, not raised.

        Blocks for a round trip, and before it while all lines are in use. Raises redis-py's ``ConnectionError`` and
        ``TimeoutError``; a line that raised is closed.
        """
        if self._pid != os.getpid():
            with _forked:
                if self._pid != os.getpid():
                    self._start()  # the parent's sockets stay the parent's
        if not self._turns.take(self._patience_s):
            raise LostConnection("all connections are in use")
        try:
            closings = self._closings
            alone = self._turns.left == self._most - 1  # otherwise a look would keep another thread from its own work
            try:
                line, rested = self._idle.pop(), True
            except IndexError:
                line, rested = Wire(self._connect(), resting=self._resting), False
            try:
                answers = self._rest(line, commands) if self._resting else line.ask(commands, look=alone)
            except LostConnection as lost:
                if not rested or self._resting:
                    raise
                self.close()  # what rested beside it is as dead
                closings = self._closings
                line, answers = self._ask_again(commands, lost)
            self._put_back(line, closings)
            return answers
        finally:
            self._turns.give_back()

    def _rest(self, line: Wire, commands: Sequence[Command]) -> list[Any]:
        self._at_rest.add(line)
        try:
            return line.ask(commands)
        finally:
            self._at_rest.discard(line)

    def _ask_again(self, commands: Sequence[Command], lost: LostConnection) -> tuple[Wire, list[Any]]:
        """Over a new line. What went over the lost one may have arrived: a refusal now does not say that it did not."""
        try:
            line = Wire(self._connect())
            answers = line.ask(commands)
        except (RedisError, OSError):
            raise lost from None
        if any(isinstance(answer, RedisError) and not isinstance(answer, NoScriptError) for answer in answers):
            line.close()
            raise lost
        return line, answers

    def _put_back(self, line: Wire, closings: int) -> None:
        self._idle.append(line)
        if closings != self._closings or self._shut:  # closed meanwhile: nothing may rest here
            self.close()

    def shut(self) -> None:
        """Close the lines that rest, and let none rest until :meth:`open`. Safe twice; usable all the same."""
        self._shut = True
        self.close()

    def open(self) -> None:
        """Let lines rest again. Safe twice."""
        self._shut = False

    def close(self) -> None:
        """Close the idle lines; those in use are closed when they come back. Safe twice; usable afterwards."""
        self._closings += 1
        for line in tuple(self._at_rest):
            line.cut()
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:
                return
            line.close()
