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
    """A semaphore without a lock: while there are turns left to take one is a pop, and who waits is handed one in its turn.

    No lock, for a thread that is struck by a time limit's exception while it has it would keep it; and first come, first
    served, for otherwise who gives back and takes again at once is always ahead. What is done to a deque is done at once.
    (``SimpleQueue.get(timeout=)`` would do in C, but where several wait, one of them may wait for ever.)
    """

    def __init__(self, many: int) -> None:
        self.free: deque[None] = deque([None] * many)
        self.line: deque[threading.Lock] = deque()
        """Who waits: locked, until a turn is its."""

    def take(self, timeout_s: float) -> bool:
        """Take a turn; ``False`` where there was none for so long."""
        try:
            self.free.pop()
        except IndexError:
            return self._wait(timeout_s)
        return True

    def give_back(self) -> None:
        """Let another one have it. Never blocks."""
        self.free.append(None)
        if self.line:
            self.serve()

    def serve(self) -> None:
        """Hand what is free to who waits."""
        while self.line:
            try:
                self.free.pop()
            except IndexError:
                return
            try:
                self.line.popleft().release()
            except IndexError:  # it has given up
                self.free.append(None)

    def _wait(self, timeout_s: float) -> bool:
        me = threading.Lock()
        me.acquire()
        try:
            self.line.append(me)  # whoever is struck here stands in line already
            self.serve()  # one may have become free before we stood in line
            return me.acquire(timeout=timeout_s) or not self._leave(me)
        except BaseException:
            if not self._leave(me):
                self.give_back()
            raise

    def _leave(self, me: threading.Lock) -> bool:
        """Stop waiting; ``False`` where one was handed a turn already."""
        try:
            self.line.remove(me)
        except ValueError:
            return False
        return True


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

    def ask(self, commands: Sequence[Command], *, tells: bool = False, apart: bool = False) -> list[Any]:
        """Send commands and return their answers; an error answer is returned, not raised.

        ``tells`` and ``apart``: see :meth:`~bus.store.redis.wire.Wire.ask`. Blocks for a round trip, and before it while all lines are in
        use. Raises redis-py's ``ConnectionError`` and ``TimeoutError``; a line that raised is closed.
        """
        if self._pid != os.getpid():
            with _forked:
                if self._pid != os.getpid():
                    self._start()  # the parent's sockets stay the parent's
        turns = self._turns
        if not turns.take(self._patience_s):
            raise LostConnection("all connections are in use")
        try:
            closings = self._closings
            alone = len(turns.free) == self._most - 1  # otherwise a look would keep another thread from its own work
            try:
                line, rested = self._idle.pop(), True
            except IndexError:
                line, rested = Wire(self._connect(), resting=self._resting), False
            try:
                answers = (
                    self._rest(line, commands)
                    if self._resting
                    else line.ask(commands, look=alone, tells=tells, apart=apart)
                )
            except LostConnection as lost:
                if not rested or self._resting:
                    raise
                self.close()  # what rested beside it is as dead
                closings = self._closings
                line, answers = self._ask_again(commands, lost)
            self._put_back(line, closings)
            return answers
        finally:
            turns.free.append(None)  # as give_back(), but a function of ours may be struck before it does anything
            if turns.line:
                turns.serve()

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
        for answer in answers:
            if isinstance(answer, NoScriptError):
                answer.__cause__ = lost  # who sends the script itself should know
            elif isinstance(answer, RedisError):
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
