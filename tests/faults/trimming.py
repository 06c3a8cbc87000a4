"""A log that is trimmed, by number and by age, under a listener that sleeps: what it is told of what is gone."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from bus import Bus, Gap, Listener, Publication, Receipt
from tests.faults.harness import Fault, Finding
from tests.faults.line import line, name_of
from tests.faults.live_world import NAMESPACE, LiveWorld, ids_of
from tests.faults.transcripts import BEGINNING, Place, Said, Transcript
from tests.waiting import eventually

__all__ = ["FAULTS"]

CAP = 100
TTL_S = 3.0
MARGIN_S = 0.2
"""Between the clocks of the server and ours."""
READ = 7
"""What the sleeper reads before it falls asleep."""
MEANWHILE = 2_500
"""What is published while it sleeps: more than its queue holds, so that it must go on from the log."""
FRESH = 20
BATCH = 100
LAST = name_of("end", 0)


def trimmed_by_number(world: LiveWorld) -> Finding:
    return trimmed(world, "number", {"cap": CAP}, gone=READ + MEANWHILE + FRESH + 1 - CAP)


def trimmed_by_age(world: LiveWorld) -> Finding:
    return trimmed(world, "age", {"ttl_s": TTL_S}, gone=READ + MEANWHILE)


def trimmed(world: LiveWorld, how: str, limits: dict[str, float], *, gone: int) -> Finding:
    """On the server and in memory; ``gone`` is the last number that is gone when they come back."""

    async def everywhere() -> list[tuple[list[Transcript], Said]]:
        urls = (world.server.url, f"memory://trimmed-{how}")
        buses = [Bus(url, namespace=NAMESPACE, **limits) for url in urls]  # type: ignore[arg-type]
        wait_s = limits["ttl_s"] + MARGIN_S if "ttl_s" in limits else 0
        return await asyncio.gather(*(sleep_through(bus, wait_s) for bus in buses))

    gaps = 0
    for transcripts, said in asyncio.run(everywhere()):
        world.audit(transcripts, said)
        for transcript in transcripts:
            assert transcript.gaps() == [Gap(READ + 1, gone, "trimmed")], f"{transcript}: {transcript.gaps()}"
            gaps += 1
    return Finding(f"{MEANWHILE} events trimmed by {how}, on the server and in memory", f"{gaps} gaps, exact")


async def sleep_through(bus: Bus, wait_s: float) -> tuple[list[Transcript], Said]:
    """A listener falls asleep, and one leaves with its position; both come back when a part of the log is gone."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bus)
        sleeper = Transcript("sleeper", BEGINNING)
        asleep = await stack.enter_async_context(bus.listen("**"))
        published = await publish(bus, "before", READ)
        await read(asleep, sleeper, published[-1].id)
        published += await publish(bus, "meanwhile", MEANWHILE)
        # The hub has handed it all out, so that the sleeper's queue has overflowed.
        await eventually(lambda: bus.status().position == published[-1].position, "the hub to have seen it all", 20)
        awake_s = time.monotonic() + wait_s
        await eventually(lambda: time.monotonic() >= awake_s, "all of it to be too old", wait_s + 10)
        published += await publish(bus, "fresh", FRESH)
        published.append(await bus.publish(line("end", 0), id=LAST))
        newcomer = Transcript("newcomer", Place(READ, published[READ - 1].id))
        back = await stack.enter_async_context(bus.listen("**", after=published[READ - 1].position))
        await read(asleep, sleeper, LAST)
        await read(back, newcomer, LAST)
        kept = await ids_of(bus)
    said = [receipt.id for receipt in published]
    assert said[-len(kept) :] == kept, "the log keeps the newest"
    return [sleeper, newcomer], Said().branch(said)


async def publish(bus: Bus, by: str, count: int) -> list[Receipt]:
    receipts = []
    for first in range(0, count, BATCH):
        lines = [line(by, n) for n in range(first, min(first + BATCH, count))]
        receipts += await bus.publish_many([Publication(each, id=name_of(by, each.n)) for each in lines])
        await asyncio.sleep(0)  # memory has nothing to wait for, and the other bus has its links to look after
    return receipts


async def read(listener: Listener, transcript: Transcript, to: str) -> None:
    async with asyncio.timeout(20):
        async for item in listener:
            heard = transcript.take(item)
            if heard is not None and heard.id == to:
                return


FAULTS = (
    Fault(
        "trimmed-by-number",
        "who sleeps while the log's cap trims it is told exactly which numbers are gone",
        trimmed_by_number,
        world=LiveWorld,
    ),
    Fault("trimmed-by-age", "so it is where they have grown too old", trimmed_by_age, world=LiveWorld),
)
