"""One rehearsal, from the first cue to the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import dramatiq

from bus import Bus, Closed, Delivery
from workers.demo.cast import PROMPT_BOOK, Call, CueCalled, address, make_app
from workers.demo.screen import Screen
from workers.demo.tally import Ledger, Listening, Tally

__all__ = ["rehearse"]

BEAT_S = 1.2
LONGEST_MS = 50_000
CATCH_UP_S = 5.0
STOP_MS = 2_000


async def rehearse(screen: Screen, speed: float) -> tuple[Ledger, list[str]]:
    """Play the whole prompt book. Returns the account, and in words whatever does not add up."""
    beat_s = BEAT_S / speed
    tally = Tally(screen.notice)
    house = Listening("the house", "stage", "agent:**")  # every event matches twice, and comes once
    desk = Listening("the prompt desk", "agent:*")
    court = Listening("the royal box", "agent:hamlet", "agent:gertrude")
    late = Listening("a latecomer", "stage", after="0")  # joins in the middle, and misses nothing
    everybody = (house, desk, court, late)
    screen.follow(tally, everybody)
    async with Bus("memory://") as bus:
        app = make_app(bus, tally, beat_s)
        async with _working(app.broker), contextlib.AsyncExitStack() as seats:
            for listener in (house, desk, court):
                await seats.enter_async_context(_seated(bus, listener, screen if listener is house else None))
            half = len(PROMPT_BOOK) // 2
            await _call(bus, tally, PROMPT_BOOK[:half], 1, beat_s)
            await seats.enter_async_context(_seated(bus, late, None))
            await _call(bus, tally, PROMPT_BOOK[half:], 1 + half, beat_s)
            await asyncio.to_thread(app.broker.join, "default", timeout=LONGEST_MS, fail_fast=False)
            kept = {listener: await _kept(bus, listener) for listener in everybody}
            await _until_heard(kept)
        dead = bus.store.dead_count()
    return _account(tally, kept, dead)


async def _call(bus: Bus, tally: Tally, calls: Sequence[Call], first: int, beat_s: float) -> None:
    for number, call in enumerate(calls, first):
        await asyncio.sleep(call.beats * beat_s)
        tally.called(call.agent_id)
        cue = CueCalled(agent_id=call.agent_id, number=number, text=call.text)
        tally.posted(await bus.publish(cue, topics=address(call.agent_id)))


@contextlib.asynccontextmanager
async def _working(broker: dramatiq.Broker) -> AsyncIterator[None]:
    worker = dramatiq.Worker(broker, worker_timeout=100)
    await asyncio.to_thread(worker.start)
    try:
        yield
    finally:
        await asyncio.to_thread(worker.stop, STOP_MS)


@contextlib.asynccontextmanager
async def _seated(bus: Bus, account: Listening, screen: Screen | None) -> AsyncIterator[None]:
    """A listener that is counted, and for the house shown, in a task of its own."""
    async with bus.listen(*account.patterns, after=account.after) as listener:

        async def hear() -> None:
            async for item in listener:
                if isinstance(item, Closed):
                    return
                account.count(item)
                if screen is not None and isinstance(item, Delivery):
                    screen.show(item)

        hearing = asyncio.create_task(hear(), name=f"callboard demo {account.name}")
        try:
            yield
        finally:
            hearing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hearing


async def _kept(bus: Bus, account: Listening) -> set[int]:
    """What the log holds for a listener."""
    return {item.position.seq async for item in bus.history(*account.patterns) if isinstance(item, Delivery)}


async def _until_heard(kept: dict[Listening, set[int]]) -> None:
    """Give the last events the moment they need; what has not come by then is missing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CATCH_UP_S):
            while any(account.missing(numbers) for account, numbers in kept.items()):  # noqa: ASYNC110 - a moment, once
                await asyncio.sleep(0.02)


def _account(tally: Tally, kept: dict[Listening, set[int]], dead: int) -> tuple[Ledger, list[str]]:
    ledger = Ledger(
        published=tally.published,
        handled=tally.handled,
        retried=tally.retried,
        dead_letters=tally.dead,
        delivered=sum(account.delivered for account in kept),
        gaps=sum(account.gaps + account.missing(numbers) for account, numbers in kept.items()),
        duplicates=sum(account.duplicates for account in kept),
    )
    logged = len(set().union(*kept.values()))
    checks = (
        (ledger.gaps == 0, "a listener has a gap"),
        (ledger.duplicates == 0, "a listener got an event twice"),
        (ledger.published == logged, f"{ledger.published} events were published and {logged} are in the log"),
        (tally.jobs == tally.handled + tally.dead, f"{tally.jobs} jobs were queued and not all of them ended"),
        (tally.dead == dead, f"{tally.dead} jobs failed for good and {dead} are in the dead letters"),
        (not tally.out_of_order, "; ".join(tally.out_of_order)),
    )
    return ledger, [why for holds, why in checks if not holds]
