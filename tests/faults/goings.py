"""Buses and listeners that come and go, in every way and under load, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import redis

from bus import Bus, BusClosed, Delivery, Listener
from tests import leaks
from tests.faults.harness import Fault, Finding
from tests.faults.line import line, name_of, sound
from tests.faults.live_world import NAMESPACE, LiveWorld
from tests.waiting import eventually, wait_until

__all__ = ["FAULTS"]

PER_S = 400
SETTLE_S = 5.0
"""What may pass until the last socket of a cycle is closed."""


# -- the ways to come and go -------------------------------------------------------------------------------------------


async def hear(listener: Listener, count: int) -> None:
    """Some events, in order."""
    before = 0
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        assert sound(item)
        assert before in (0, item.position.seq - 1)
        before = item.position.seq


async def properly(bus: Bus) -> None:
    async with bus, bus.listen() as one, bus.listen("*", after="0") as two:
        await asyncio.gather(hear(one, 3), hear(two, 3))


async def bus_first(bus: Bus) -> None:
    """The bus is closed while a listener waits, and one has never been read; their own ends come after it."""
    await bus.open()
    reading, idle = await bus.listen().__aenter__(), await bus.listen().__aenter__()
    task = asyncio.create_task(to_the_end(reading))
    await hear(idle, 1)
    await bus.close()
    await task
    await reading.close()
    await idle.close()


async def to_the_end(listener: Listener) -> None:
    async for _ in listener:
        pass


async def cancelled(bus: Bus) -> None:
    """A listener is cancelled while it waits, as a web server cancels whom the browser has left."""

    async def listen() -> None:
        async with bus.listen() as listener:
            listening.set()
            await to_the_end(listener)

    async with bus:
        listening = asyncio.Event()
        task = asyncio.create_task(listen())
        await listening.wait()
        task.cancel()
        await asyncio.wait((task,))


async def cancelled_at_the_door(bus: Bus) -> None:
    """The same while it is still entering."""
    listener = bus.listen(after="0")
    entering = asyncio.create_task(listener.__aenter__())
    await asyncio.sleep(random.uniform(0, 0.006))  # it takes about 4 ms
    entering.cancel()
    await asyncio.wait((entering,))
    if not entering.cancelled():
        entering.result()
    await listener.close()
    bus.close_sync()


async def never_read(bus: Bus) -> None:
    async with bus, bus.listen(after="0"), bus.listen("**"), bus.listen("nobody"):
        await bus.publish(line("short", 0), topics=["nobody"])


async def half_a_history(bus: Bus) -> None:
    """Somebody leaves a history in the middle, on a bus that nobody has opened."""
    history = bus.history("**")
    async for _ in history:
        break
    await history.aclose()  # type: ignore[attr-defined]  # it is a generator, as an async iterator that waits must be
    bus.close_sync()


async def twice(bus: Bus) -> None:
    """Two owners, of whom one leaves early; then the bus is opened anew."""
    async with bus, bus.listen() as listener:
        async with bus:
            await hear(listener, 1)
        await hear(listener, 1)
    async with bus, bus.listen() as listener:
        await hear(listener, 1)


async def failing(bus: Bus) -> None:
    """Somebody's own code fails in the middle, and somebody comes back to a bus that is closed."""
    with suppress(LookupError):
        async with bus, bus.listen() as listener:
            await hear(listener, 1)
            raise LookupError
    try:
        await bus.publish(line("late", 0))
    except BusClosed:
        return
    raise AssertionError("published by a bus that is closed")


WAYS: tuple[Callable[[Bus], Awaitable[None]], ...] = (
    properly,
    bus_first,
    cancelled,
    cancelled_at_the_door,
    never_read,
    half_a_history,
    twice,
    failing,
)


# -- what is there -----------------------------------------------------------------------------------------------------


class There(NamedTuple):
    """What this process holds."""

    threads: frozenset[threading.Thread]
    sockets: frozenset[str]
    descriptors: int

    @classmethod
    def now(cls) -> There:
        folder = Path("/proc/self/fd")
        return cls(leaks.threads_now(), leaks.sockets_now(), len(list(folder.iterdir())) if folder.is_dir() else 0)

    def beyond(self, before: There) -> int:
        """How many there are that were not there before."""
        more = len(self.threads - before.threads) + len(self.sockets - before.sockets)
        return more + max(0, self.descriptors - before.descriptors)


def comings_and_goings(world: LiveWorld) -> Finding:
    cycles = world.many(64, 504)
    speaker = world.start("speaker", ["tests.faults.speaker", "ann", "1000000", str(PER_S)], BUS_URL=world.server.url)
    try:
        world.bus.open_sync()
        wait_until(world.bus.store.logs, "the first line, so that its connection is there", 30)
        with world.server.client() as admin:
            took_s = asyncio.run(come_and_go(world.server.url, cycles, admin))
        assert speaker.alive, speaker.text
    finally:
        speaker.kill()
    with speaking("memory://goings"):
        took_s += asyncio.run(come_and_go("memory://goings", cycles, None))
    return Finding(
        f"{cycles} cycles on the server and {cycles} in memory, in {len(WAYS)} ways, at {PER_S} events/s",
        f"0 tasks, threads, sockets, descriptors left; {took_s / 2 / cycles * 1000:.0f} ms a cycle",
    )


async def come_and_go(url: str, cycles: int, admin: redis.Redis | None) -> float:
    """Do it in every way in turn; returns how long that took."""
    await warm_up()
    connections = leaks.connections_now(admin) if admin else frozenset()
    before = There.now()
    began = time.monotonic()
    for number in range(cycles):
        way = WAYS[number % len(WAYS)]
        async with asyncio.timeout(20):
            await way(Bus(url, namespace=NAMESPACE))
        left = leaks.tasks_left()
        assert not left, f"{way.__name__} left {left}"
    took_s = time.monotonic() - began
    await eventually(lambda: There.now().beyond(before) == 0, "threads, sockets and descriptors to go", SETTLE_S)
    if admin is not None:
        kept = leaks.connections_left(admin, connections)
        assert not kept, f"left on the server: {kept}"
    return took_s


async def warm_up() -> None:
    """Have the loop start all the threads that it may, for they stay as long as it does."""
    threads = min(32, (os.cpu_count() or 1) + 4)  # as concurrent.futures has it
    together = threading.Barrier(threads)
    await asyncio.gather(*(asyncio.to_thread(together.wait, 10) for _ in range(threads)))


@contextmanager
def speaking(url: str) -> Iterator[None]:
    """Publish by a thread of this process, steadily."""
    ending = threading.Event()

    def speak() -> None:
        bus = Bus(url, namespace=NAMESPACE)
        n = 0
        while not ending.wait(1 / PER_S):
            bus.publish_sync(line("ann", n), id=name_of("ann", n))
            n += 1
        bus.close_sync()

    thread = threading.Thread(target=speak, name="fault speaker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(10)


FAULTS = (
    Fault(
        "comings-and-goings",
        "buses and listeners that come and go, in whatever way, leave no task, thread, socket or descriptor",
        comings_and_goings,
        world=LiveWorld,
    ),
)
