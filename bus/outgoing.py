"""Everything that is published leaves here: one body behind the door of an event loop and the door of threads.

Ephemeral events that were gathered go before a numbered one of their log, so a last event never overtakes its tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from bus.errors import BusUnavailable, InvalidEvent, UnsafeServer
from bus.finishing import finished
from bus.life import Life
from bus.publication import Publication
from bus.publisher import Answer, Letter, Pause, Publisher, Receipt
from bus.settings import check_log
from bus.sides import Side
from bus.store.base import Whisper

__all__ = ["Outgoing"]


class Outgoing:
    """Safe from any thread, and from any loop. Raises as :meth:`bus.Bus.publish` does."""

    def __init__(self, life: Life, publisher: Publisher) -> None:
        self._life = life
        self._publisher = publisher

    # -- from tasks ----------------------------------------------------------------------------------------------------

    async def publish(self, publications: Iterable[Publication]) -> list[Receipt]:
        """Numbered events, in order. On a loop that has not opened the bus it works through a thread."""
        letters = [self._publisher.letter(publication) for publication in publications]
        side = None if self._life.closed else self._life.sides.here()
        if side is None:
            return await asyncio.to_thread(self._send, letters)
        side.uses += 1  # whoever leaves meanwhile is not the last
        try:
            return await self._append(side, letters)
        finally:
            await finished(self._life.sides.release(side))

    async def _append(self, side: Side, letters: list[Letter]) -> list[Receipt]:
        if side.whispers:
            for name in {letter.log for letter in letters}:
                await side.whispers.flush(name)
        plan = self._publisher.plan(letters)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return list(done.value)
            answer = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await side.store.append(step)
            except BusUnavailable as error:
                answer = error

    async def whisper(self, publication: Publication) -> Receipt:
        """An ephemeral event."""
        letter = self._ephemeral(publication)
        side = None if self._life.closed else self._life.sides.here()
        if side is not None:
            position = await side.whispers.say(letter.log, _whisper(letter))
        else:
            async with self._life.using() as passing:
                position = await passing.whispers.say(letter.log, _whisper(letter))
        return Receipt(letter.id, position, duplicate=False, jobs=0)

    async def flush(self, log: str | None) -> None:
        """See :meth:`bus.Bus.flush`."""
        side = self._life.sides.here()
        if side is not None:
            await side.whispers.flush(check_log(log))

    # -- from threads --------------------------------------------------------------------------------------------------

    def publish_sync(self, publications: Iterable[Publication]) -> list[Receipt]:
        """As :meth:`publish`; blocks, and opens what it needs by itself."""
        return self._send([self._publisher.letter(publication) for publication in publications])

    def _send(self, letters: list[Letter]) -> list[Receipt]:
        try:
            self._life.usable()
        except UnsafeServer:
            raise
        except BusUnavailable as error:
            first = letters[0].id if letters else None
            raise BusUnavailable(f"{error}; nothing was published", outcome="refused", id=first) from error
        if self._life.whispers:
            for name in {letter.log for letter in letters}:
                self._life.whispers.flush(name)
        plan = self._publisher.plan(letters)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return list(done.value)
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._life.store.append(step)
            except BusUnavailable as error:
                answer = error

    def whisper_sync(self, publication: Publication) -> Receipt:
        """As :meth:`whisper`; blocks where it has to wait."""
        letter = self._ephemeral(publication)
        self._life.usable()
        position = self._life.whispers.say(letter.log, _whisper(letter))
        return Receipt(letter.id, position, duplicate=False, jobs=0)

    def flush_sync(self, log: str | None) -> None:
        """See :meth:`bus.Bus.flush_sync`."""
        self._life.whispers.flush(check_log(log))

    def _ephemeral(self, publication: Publication) -> Letter:
        if publication.delay is not None or publication.at is not None:
            raise InvalidEvent("an ephemeral event has no jobs to delay: leave delay= and at= out")
        return self._publisher.letter(publication)


def _whisper(letter: Letter) -> Whisper:
    return Whisper(letter.topics, letter.body)
