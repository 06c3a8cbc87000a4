"""Fifty fast listeners in one process with one that is slow and one that is stuck: whom it costs what."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from bus import Bus, Delivery, Listener, Publication
from tests.faults.harness import Fault, Finding
from tests.faults.line import Line, line, name_of
from tests.faults.live_world import LiveWorld, ids_of
from tests.faults.transcripts import BEGINNING, Said, Transcript
from tests.waiting import eventually

__all__ = ["FAULTS"]

FAST = 50
PER_S = 500
SLOWER = 10
"""How many events pass while the slow one takes one: it falls behind by more than its queue holds."""
WARM = 200
"""Events at the beginning that are not timed."""
WAITING = 1_000
"""What may wait in a listener at most."""

PAD = 4_096
BURST = 1_500
"""Large events that pass a stuck listener before the first look at the memory, and again before the second."""
BATCH = 100
GROWTH = 1.3
"""Of the most that was allocated, from the first look to the second; twice as much would be kept if it were unbounded."""


class Round(NamedTuple):
    """What one round has shown: how late the fast ones heard, and what the bad ones were told."""

    p99_s: float
    transcripts: list[Transcript]
    most_waiting: int
    log: list[str]


def slow_neighbours(world: LiveWorld) -> Finding:
    pairs, lines = world.many(1, 5), world.many(1_400, 3_000)
    good: list[float] = []
    bad: list[float] = []
    waiting = 0
    for number in range(pairs):
        for with_bad, p99s in ((False, good), (True, bad)):
            namespace = f"round-{number}-{with_bad}"
            found = asyncio.run(play(world, namespace, lines, with_bad=with_bad))
            p99s.append(found.p99_s)
            waiting = max(waiting, found.most_waiting)
            world.audit(found.transcripts, Said().branch(found.log))
            assert not any(each.gaps() for each in found.transcripts), "inside the log's window nothing is lost"
    assert waiting <= WAITING, f"{waiting} events waited in the stuck listener"
    assert waiting > 0, "it was really stuck"
    first_mb, second_mb = (most / (1 << 20) for most in asyncio.run(memory(world)))
    assert second_mb < first_mb * GROWTH, f"a stuck listener let memory grow from {first_mb:.0f} to {second_mb:.0f} MB"
    before, after = statistics.median(good), statistics.median(bad)
    return Finding(
        f"1 stuck (at most {waiting} waiting), 1 slow, {FAST} fast; {pairs} pair(s) of rounds",
        f"p99 of the fast {before * 1000:.1f} -> {after * 1000:.1f} ms ({after / before:.2f}); memory {first_mb:.0f} -> {second_mb:.0f} MB",
    )


# -- one round ---------------------------------------------------------------------------------------------------------


async def play(world: LiveWorld, namespace: str, lines: int, *, with_bad: bool) -> Round:
    last = name_of("ann", lines - 1)
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(Bus(world.server.url, namespace=namespace))
        fast = [await stack.enter_async_context(bus.listen("**")) for _ in range(FAST)]
        witness = Transcript(f"witness, {namespace}", BEGINNING)
        listening = [asyncio.create_task(delays(each, last)) for each in fast]
        listening_witness = asyncio.create_task(read(await stack.enter_async_context(bus.listen("**")), witness, last))
        speaker = world.start(
            "speaker",
            ["tests.faults.speaker", "ann", str(lines), str(PER_S)],
            BUS_URL=world.server.url,
            BUS_NAMESPACE=namespace,
        )
        try:
            async with bad_ones(bus, witness, last) if with_bad else nobody() as bad, asyncio.timeout(60):
                times = [each for every in await asyncio.gather(*listening) for each in every]
                await listening_witness
            assert speaker.wait(10) == 0, speaker.text
        finally:
            speaker.kill()
        log = await ids_of(bus)
    assert len(times) == FAST * (lines - WARM)
    return Round(statistics.quantiles(times, n=100)[98], [witness, *bad.transcripts], bad.most_waiting, log)


async def delays(listener: Listener, last: str) -> list[float]:
    """Listen to the last line; how long each was on its way, but for the first ones."""
    times: list[float] = []
    async for item in listener:
        assert isinstance(item, Delivery), item
        if isinstance(item.event, Line) and item.event.n >= WARM:
            times.append(time.monotonic() - item.event.sent_s)
        if item.envelope.id == last:
            break
    return times


async def read(listener: Listener, transcript: Transcript, last: str, *, pause: Pace | None = None) -> None:
    async for item in listener:
        heard = transcript.take(item)
        if heard is not None and heard.id == last:
            return
        if pause is not None:
            await pause.wait()


class Pace:
    """How slow a slow one is, until it is hurried: it takes one event while another takes several."""

    def __init__(self, slow: Transcript, other: Transcript) -> None:
        self._slow, self._other = slow, other
        self._hurried = False

    async def wait(self) -> None:
        await eventually(self._over, "the others to go ahead", 300)

    def _over(self) -> bool:
        return self._hurried or len(self._other.items) >= SLOWER * len(self._slow.items)

    def hurry(self) -> None:
        self._hurried = True


class Bad:
    """The bad ones, and what is known of them."""

    def __init__(self, transcripts: list[Transcript]) -> None:
        self.transcripts = transcripts
        self.most_waiting = 0


@asynccontextmanager
async def nobody() -> AsyncIterator[Bad]:
    yield Bad([])


@asynccontextmanager
async def bad_ones(bus: Bus, witness: Transcript, last: str) -> AsyncIterator[Bad]:
    """A stuck listener and a slow one; at the end both read what they have not, and must have missed nothing."""
    slow, stuck = Transcript("slow", BEGINNING), Transcript("stuck", BEGINNING)
    bad, pace = Bad([slow, stuck]), Pace(slow, witness)
    async with bus.listen("**", after="0") as slowly, bus.listen("**", after="0") as never:
        first = await anext(never)  # it is attached, and then it hangs
        stuck.take(first)
        watching = asyncio.create_task(watch(never, bad))
        listening = asyncio.create_task(read(slowly, slow, last, pause=pace))
        yield bad
        assert len(witness.items) - len(slow.items) > WAITING, "the slow one was far behind"
        pace.hurry()
        watching.cancel()
        async with asyncio.timeout(30):
            await listening
            await read(never, stuck, last)


async def watch(listener: Listener, bad: Bad) -> None:
    while True:
        bad.most_waiting = max(bad.most_waiting, waiting_in(listener))
        await asyncio.sleep(0.05)


def waiting_in(listener: Listener) -> int:
    """How many events wait in its memory, as it says itself."""
    found = re.search(r"(\d+) waiting", repr(listener))
    assert found is not None, repr(listener)
    return int(found[1])


# -- memory ------------------------------------------------------------------------------------------------------------


async def memory(world: LiveWorld) -> tuple[int, int]:
    """The most that is allocated, in bytes, by the time that a burst and another one have passed a stuck listener."""
    most: list[int] = []
    async with (
        Bus(world.server.url, namespace="burst") as bus,
        bus.listen("**") as stuck,
        bus.listen("**") as reading,
    ):
        tracemalloc.start()
        try:
            for first in range(0, 2 * BURST, BATCH):
                await pass_by(bus, reading, range(first, first + BATCH))
                if first + BATCH in (BURST, 2 * BURST):
                    most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        told = Transcript("stuck in a burst", BEGINNING)
        async with asyncio.timeout(30):
            await read(stuck, told, name_of("burst", 2 * BURST - 1))
        world.audit([told], Said().branch(await ids_of(bus)))
    return most[0], most[1]


async def pass_by(bus: Bus, reading: Listener, numbers: range) -> None:
    """Publish these, and see one listener hear them."""
    events = [Publication(line("burst", n, pad=PAD), id=name_of("burst", n)) for n in numbers]
    await bus.publish_many(events)
    for event in events:
        item = await anext(reading)
        assert isinstance(item, Delivery)
        assert item.envelope.id == event.id


FAULTS = (
    Fault(
        "slow-neighbours",
        "a stuck and a slow listener cost the fast ones nothing, are bounded in memory, and lose nothing themselves",
        slow_neighbours,
        world=LiveWorld,
    ),
)
