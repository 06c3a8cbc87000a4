"""Everything that is published leaves here: one body behind the door of an event loop and the door of threads.

Ephemeral events that were gathered go before a numbered one of their log, so a last event never overtakes its tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from bus.errors import BusUnavailable, UnsafeServer
from bus.finishing import finished
from bus.life import Life
from bus.publication import Draft
from bus.publisher import Answer, Pause, Publisher, Receipt
from bus.settings import check_log
from bus.sides import Side
from bus.store.base import Batch

__all__ = ["Outgoing"]


class Outgoing:
    """Safe from any thread, and from any loop. Raises as :meth:`bus.Bus.publish` does."""

    def __init__(self, life: Life, publisher: Publisher) -> None:
        self._life = life
        self._publisher = publisher

    # -- from tasks ----------------------------------------------------------------------------------------------------

    async def publish(self, drafts: Iterable[Draft]) -> list[Receipt]:
        """Numbered events, in order. On a loop that has not opened the bus it works through a thread."""
        batches = self._publisher.batches(drafts)
        side = None if self._life.closed else self._life.sides.here()
        if side is None:
            return await asyncio.to_thread(self._send, batches)
        side.uses += 1  # whoever leaves meanwhile is not the last
        try:
            return await self._append(side, batches)
        finally:
            await finished(self._life.sides.release(side))

    async def _append(self, side: Side, batches: list[Batch]) -> list[Receipt]:
        if side.whispers:
            for name in {batch.log for batch in batches}:
                await side.whispers.flush(name)
        plan = self._publisher.plan(batches)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration has no type for it
            answer = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await side.store.append(step)
            except BusUnavailable as error:
                answer = error

    async def whisper(self, draft: Draft) -> Receipt:
        """An ephemeral event."""
        log, event_id, whisper = self._publisher.whisper(draft)
        side = None if self._life.closed else self._life.sides.here()
        if side is not None:
            position = await side.whispers.say(log, whisper)
        else:
            async with self._life.using() as passing:
                position = await passing.whispers.say(log, whisper)
        return Receipt(event_id, position, duplicate=False, jobs=0)

    async def flush(self, log: str | None) -> None:
        """See :meth:`bus.Bus.flush`."""
        side = self._life.sides.here()
        if side is not None:
            await side.whispers.flush(check_log(log))

    # -- from threads --------------------------------------------------------------------------------------------------

    def publish_sync(self, drafts: Iterable[Draft]) -> list[Receipt]:
        """As :meth:`publish`; blocks, and opens what it needs by itself."""
        return self._send(self._publisher.batches(drafts))

    def _send(self, batches: list[Batch]) -> list[Receipt]:
        try:
            self._life.usable()
        except UnsafeServer:
            raise
        except BusUnavailable as error:
            first = batches[0].posts[0].id if batches else None
            raise BusUnavailable(f"{error}; nothing was published", outcome="refused", id=first) from error
        if self._life.whispers:
            for name in {batch.log for batch in batches}:
                self._life.whispers.flush(name)
        plan = self._publisher.plan(batches)
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration has no type for it
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._life.store.append(step)
            except BusUnavailable as error:
                answer = error

    def whisper_sync(self, draft: Draft) -> Receipt:
        """As :meth:`whisper`; blocks where it has to wait."""
        log, event_id, whisper = self._publisher.whisper(draft)
        self._life.usable()
        position = self._life.whispers.say(log, whisper)
        return Receipt(event_id, position, duplicate=False, jobs=0)

    def flush_sync(self, log: str | None) -> None:
        """See :meth:`bus.Bus.flush_sync`."""
        self._life.whispers.flush(check_log(log))
