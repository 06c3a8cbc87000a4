"""A storm: every connection killed, again and again, while publishers publish and listeners join.

``python -m tests.faults storm [--quick] [--json FILE]``. The same storm, in the same run, goes over a subscription of
bare redis-py with its own retries and resubscribing; what that loses is printed beside.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from bus import Bus, BusUnavailable, Listener, Position
from tests.faults import harness
from tests.faults.harness import Fault, Finding
from tests.faults.line import line, name_of
from tests.faults.live_world import NAMESPACE, LiveWorld, ids_of
from tests.faults.processes import Process
from tests.faults.transcripts import BEGINNING, Place, Said, Transcript
from tests.servers import Server
from tests.waiting import NeverHappened, eventually, wait_until

__all__ = ["FAULTS", "main"]

SPEAKERS = ("ann", "bob", "cat", "dan")
BUSES = 3
"""Hubs that the listeners share."""
BARE = "bare"
"""The channel that redis-py listens to alone."""
UNSEEN, LAST = name_of("end", 0), name_of("end", 1)
"""The last event of the storm, which no subscription is there to hear, and the one that ends it all."""


# -- the storm ---------------------------------------------------------------------------------------------------------


class Kills(NamedTuple):
    """How many connections were cut."""

    subscriptions: int
    others: int


class Storm:
    """Kills all connections but its own every 5 to 50 ms, on a thread, for as long as its ``with`` lasts.

    It is over after ``longest_s``: on a machine where nothing is done in 50 ms, everybody would be killed for ever.
    """

    def __init__(self, server: Server, dice: random.Random, longest_s: float) -> None:
        self._server, self._dice, self._longest_s = server, dice, longest_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._rage, name="fault storm", daemon=True)
        self.kills = Kills(0, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join(10)

    def _rage(self) -> None:
        over_s = time.monotonic() + self._longest_s
        with self._server.client() as client:
            while time.monotonic() < over_s and not self._ending.wait(self._dice.uniform(0.005, 0.05)):
                subscriptions = client.client_kill_filter(_type="pubsub")
                others = client.client_kill_filter(_type="normal", skipme=True)
                self.kills = Kills(self.kills.subscriptions + subscriptions, self.kills.others + others)


# -- those who listen --------------------------------------------------------------------------------------------------


class Bare:
    """A subscription as users of redis-py have it: retries, resubscribing by itself, and begun anew if it ends."""

    def __init__(self, port: int) -> None:
        self.heard: list[str] = []
        self.attached = asyncio.Event()
        self._client = redis.asyncio.Redis(host="127.0.0.1", port=port, retry=Retry(ExponentialBackoff(), 10))

    async def listen(self) -> None:
        try:
            while True:
                try:
                    await self._subscription()
                except (redis.ConnectionError, redis.TimeoutError):
                    continue
        finally:
            await self._client.aclose()

    async def _subscription(self) -> None:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(BARE)
            async for message in pubsub.listen():
                self.attached.set()
                if message["type"] == "message":
                    self.heard.append(message["data"].decode())


async def listen(bus: Bus, transcript: Transcript, after: str | None, attached: asyncio.Event) -> None:
    """Listen to all, to the last line; where one begins from now on, its place is noted."""
    listener = await enter(bus, after)
    try:
        if after is None and isinstance(listener.position, Position):
            transcript.after = Place(listener.position.seq, None)
        attached.set()
        async for item in listener:
            heard = transcript.take(item)
            if heard is not None and heard.id == LAST:
                return
    finally:
        await listener.close()


async def enter(bus: Bus, after: str | None) -> Listener:
    """Enter, again where the link breaks just then: it says so, and from then on sees to it by itself."""
    while True:
        try:
            return await bus.listen("**", after=after).__aenter__()
        except BusUnavailable:
            continue


# -- all together ------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What came of it."""

    transcripts: list[Transcript]
    log: list[str]
    bare: list[str]
    kills: Kills


def storm(world: LiveWorld) -> Finding:
    lines, per_s = world.many(1_000, 12_000), world.many(250, 400)
    dice = random.Random(seed := time.time_ns() % 1_000_000)
    with world.server.client() as client:
        before = client.info("stats")["total_connections_received"]
        speakers: list[Process] = []
        try:
            told = asyncio.run(weather(world, lines, per_s, dice, speakers))
        finally:
            for speaker in speakers:
                speaker.kill()
        connections = client.info("stats")["total_connections_received"] - before
    published = {name_of(by, n) for by in SPEAKERS for n in range(lines)}
    assert set(told.log) == published | {UNSEEN, LAST}
    assert len(told.log) == len(published) + 2, "each was published once, however often it was tried"
    for by in SPEAKERS:
        own = [event_id for event_id in told.log if event_id.startswith(by)]
        assert own == [name_of(by, n) for n in range(lines)], "in the order of each publisher"
    world.audit(told.transcripts, Said().branch(told.log))
    assert not any(each.gaps() for each in told.transcripts), "nothing was trimmed, so there is no gap to tell"
    assert told.kills.subscriptions >= 10 * BUSES, f"that was no storm: {told.kills}"
    assert told.kills.others >= 100, f"that was no storm: {told.kills}"

    lost = len(published - set(told.bare))
    return Finding(
        f"{told.kills.subscriptions} subscriptions, {told.kills.others} others killed; {connections} connections made; seed {seed}",
        f"bare redis-py lost {lost} of {len(published)} ({lost / len(published):.1%})",
    )


async def weather(world: LiveWorld, lines: int, per_s: float, dice: random.Random, speakers: list[Process]) -> Told:
    total = lines * len(SPEAKERS)
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(Bus(world.server.url, namespace=NAMESPACE)) for _ in range(BUSES)]
        bare = Bare(world.server.port)
        listening_bare = asyncio.create_task(bare.listen())
        lead, attached = Transcript("lead", BEGINNING), asyncio.Event()
        listening = [asyncio.create_task(listen(buses[0], lead, None, attached))]
        await asyncio.gather(bare.attached.wait(), attached.wait())
        for by in SPEAKERS:
            command = ["tests.faults.speaker", by, str(lines), str(per_s), BARE]
            speakers.append(world.start(by, command, BUS_URL=world.server.url))
        joined, entered = [lead], [attached]
        longest_s = world.many(25, 300)
        with Storm(world.server, dice, longest_s) as raging:
            for moment in sorted(dice.uniform(0.05, 0.9) for _ in range(8)):
                await eventually(lambda m=moment: len(lead.items) >= m * total, "the stream to go on", 2 * longest_s)  # type: ignore[misc]
                transcript, after = begin(len(joined), lead, dice)
                joined.append(transcript)
                entered.append(asyncio.Event())
                bus = buses[len(joined) % BUSES]
                listening.append(asyncio.create_task(listen(bus, transcript, after, entered[-1])))
            await eventually(lambda: not any(each.alive for each in speakers), "the speakers to end", 2 * longest_s)
        assert [each.exit_code for each in speakers] == [0] * len(speakers), [each.text for each in speakers]
        async with asyncio.timeout(30):  # one that enters only now would begin behind what it is to hear
            await asyncio.gather(*(each.wait() for each in entered))
        await asyncio.to_thread(end_unheard, world)
        await all_hear_the_unseen(joined, buses)
        await buses[0].publish(line("end", 1), id=LAST)
        async with asyncio.timeout(30):
            await asyncio.gather(*listening)
        log = await ids_of(buses[0])
        listening_bare.cancel()
        await asyncio.wait((listening_bare,))
    return Told(joined, log, bare.heard, raging.kills)


def end_unheard(world: LiveWorld) -> None:
    """Publish while nobody is subscribed, and nothing after it that would show the hole: so they must look by themselves."""
    with world.server.client() as client:
        wait_until(
            lambda: client.client_kill_filter(_type="pubsub") >= BUSES, "all subscriptions to be cut at once", 30
        )
        world.bus.publish_sync(line("end", 0), id=UNSEEN)


async def all_hear_the_unseen(transcripts: list[Transcript], buses: list[Bus]) -> None:
    def deaf() -> list[Transcript]:
        return [each for each in transcripts if not has_heard(each, UNSEEN)]

    try:
        await eventually(lambda: not deaf(), "all to hear what they missed", 30)
    except NeverHappened as never:
        never.add_note(f"Not heard by {deaf()}; {[bus.status() for bus in buses]}")
        raise


def has_heard(transcript: Transcript, event_id: str) -> bool:
    return any(heard.id == event_id for heard in transcript.heard()[-1:])


def begin(number: int, lead: Transcript, dice: random.Random) -> tuple[Transcript, str | None]:
    """A newcomer, and where it begins: with all, after something that the first has heard, or now; by turns."""
    match number % 3:
        case 0:
            return Transcript(f"{number}, from now on", BEGINNING), None
        case 1:
            return Transcript(f"{number}, from the beginning", BEGINNING), "0"
        case _:
            known = dice.choice(lead.heard())
            return Transcript(f"{number}, after {known.seq}", Place(known.seq, known.id)), known.position


FAULTS = (
    Fault(
        "storm",
        "every listener hears every event from its start on, once and in order, whatever is cut and whenever it joined",
        storm,
        world=LiveWorld,
    ),
)


def main(arguments: Sequence[str]) -> int:
    return harness.main("storm", FAULTS, arguments)
