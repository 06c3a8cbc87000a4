"""Ephemeral events that come fast: gathered, told in order, and gone when the bus is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import Bus, BusError, BusUnavailable, Delivery, Event, Listener, LogClosed, Receipt, whispers
from bus.position import Position
from bus.store.base import Announced, Ended, Whisper
from bus.whispers import LoopWhispers, ThreadWhispers
from tests.waiting import eventually, wait_until

FEW = 20
"""Far less than one round trip for each, however slow the machine is."""


class Token(Event, type="ephemeral.token"):
    n: int


class Final(Event, type="ephemeral.final"):
    text: str


def tokens(items: list[Delivery]) -> list[int]:
    return [item.event.n for item in items if isinstance(item.event, Token)]


async def take(listener: Listener, count: int) -> list[Delivery]:
    """The next deliveries; a gap is a failure."""
    found = []
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        found.append(item)
    return found


@asynccontextmanager
async def counted(bus: Bus) -> AsyncIterator[list[int]]:
    """How many were told in each of the calls that tell them, through either door."""
    sizes: list[int] = []
    async with bus.using() as side:
        stores: list[Any] = [bus.store] if bus.mode == "memory" else [bus.store, side.store]
        for store in stores:
            store.announce = _counting(store.announce, sizes)
        yield sizes
        for store in stores:
            del store.announce


def _counting(announce: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def count(log: str, epoch: str, said: Sequence[Whisper]) -> Any:
        sizes.append(len(said))
        return announce(log, epoch, said)

    return count


@pytest.fixture(params=["await", "sync"])
def door(request: pytest.FixtureRequest) -> str:
    """Which of the two doors a test goes through."""
    return str(request.param)


async def say(door: str, bus: Bus, *events: Event, log: str | None = None) -> list[Receipt]:
    """Publish them one by one through a door, the tokens ephemeral."""

    def all_sync() -> list[Receipt]:
        return [bus.publish_sync(event, log=log, ephemeral=isinstance(event, Token)) for event in events]

    if door == "sync":
        return await asyncio.to_thread(all_sync)
    return [await bus.publish(event, log=log, ephemeral=isinstance(event, Token)) for event in events]


@pytest.fixture
def _one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered waits for something else than time."""
    monkeypatch.setattr(whispers, "WINDOW_S", 3600)


# Gathering.


async def test_a_stream_of_tokens_takes_few_round_trips_and_is_heard_in_order(
    door: str, url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, counted(bus) as sizes:
        await say(door, bus, *(Token(n=n) for n in range(900)))

        heard = await take(listener, 900)

        assert tokens(heard) == list(range(900))
        assert all(item.ephemeral for item in heard)
        assert (sizes[0], sum(sizes)) == (1, 900)
        assert len(sizes) <= FEW


async def test_one_alone_goes_at_once(door: str, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, counted(bus) as sizes:
        await say(door, bus, Token(n=1))

        assert sizes == [1]


@pytest.mark.usefixtures("_one_window")
async def test_what_is_gathered_returns_at_once_with_the_last_known_position(
    door: str, url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, counted(bus) as sizes:
        first, told, gathered = await say(door, bus, Final(text="one"), Token(n=1), Token(n=2))

        assert sizes == [1]
        assert told.position == gathered.position == first.position
        assert gathered.id != told.id
        await asyncio.to_thread(bus.flush_sync)
        await bus.flush()
        assert sizes == [1, 1]
        assert tokens(await take(listener, 3)) == [1, 2]


async def test_logs_are_gathered_apart(door: str, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, counted(bus) as sizes:
        for log in ("run:1", "run:2", "run:3"):
            await say(door, bus, Token(n=1), log=log)

        assert sizes == [1, 1, 1]


async def test_many_tasks_that_begin_at_once_share_their_round_trips(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, counted(bus) as sizes:
        await asyncio.gather(*(bus.publish(Token(n=n), ephemeral=True) for n in range(300)))

        assert sorted(tokens(await take(listener, 300))) == list(range(300))
        assert len(sizes) <= FEW


@pytest.mark.usefixtures("_one_window")
async def test_no_more_is_gathered_than_there_is_room_for(
    door: str, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whispers, "MOST", 10)
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, counted(bus) as sizes:
        await say(door, bus, *(Token(n=n) for n in range(101)))

        assert tokens(await take(listener, 101)) == list(range(101))
        assert sizes == [1, *[10] * 10]


@pytest.mark.usefixtures("_one_window")
async def test_the_bytes_of_what_is_gathered_are_bounded(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whispers, "MOST_BYTES", 3000)
    lengths = [10, 900, 900, 5000, 10, 900, 900]
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener, counted(bus) as sizes:
        for length in lengths:
            await bus.publish(Final(text="x" * length), ephemeral=True)
        await bus.flush()

        assert [len(item.envelope.data["text"]) for item in await take(listener, 7)] == lengths
        assert sizes == [1, 2, 1, 3], "two that fit, one that is larger than all room, three that fit"


# Order.


@pytest.mark.usefixtures("_one_window")
async def test_a_final_event_never_overtakes_its_tokens(door: str, url: str, namespace: str) -> None:
    events: list[Event] = [Final(text="") if n % 5 == 4 else Token(n=n) for n in range(25)]
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        await say(door, bus, *events)

        assert [item.event for item in await take(listener, 25)] == events


@pytest.mark.usefixtures("_one_window")
async def test_a_log_ends_after_what_was_gathered_for_it(door: str, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen(log="run:1") as listener:
        await say(door, bus, *(Token(n=n) for n in range(5)), log="run:1")
        log = bus.log("run:1")
        await (log.close() if door == "await" else asyncio.to_thread(log.close_sync))

        assert tokens(await take(listener, 5)) == list(range(5))


# Closing. What is left behind fails every test here.


@pytest.mark.usefixtures("_one_window")
async def test_closing_tells_what_was_gathered(door: str, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, counted(bus) as sizes:
        await bus.open()
        await say(door, bus, *(Token(n=n) for n in range(4)))
        assert sizes == [1]

        await bus.close()
        await bus.close()
        await bus.close()

        assert sizes == [1, 3]
        assert not [thread for thread in threading.enumerate() if "whispers" in thread.name]


@pytest.mark.usefixtures("_one_window")
@pytest.mark.parametrize("end", ["close_sync", "rest"])
def test_a_script_tells_what_was_gathered_when_it_ends(end: str, url: str, namespace: str) -> None:
    bus, sizes = Bus(url, namespace=namespace), list[int]()
    store: Any = bus.store
    store.announce = _counting(store.announce, sizes)
    for n in range(3):
        bus.publish_sync(Token(n=n), ephemeral=True)
    assert sizes == [1]

    getattr(bus, end)()

    assert sizes == [1, 2]
    assert not [thread for thread in threading.enumerate() if "whispers" in thread.name]
    bus.close_sync()


@pytest.mark.usefixtures("_one_window")
async def test_whoever_leaves_a_bus_that_nobody_opened_tells_what_was_gathered(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as other, other.listen() as listener:
        bus = Bus(url, namespace=namespace)
        async with bus.listen():
            for n in range(3):
                await bus.publish(Token(n=n), ephemeral=True)
        bus.close_sync()

        assert tokens(await take(listener, 3)) == [0, 1, 2]


async def test_a_loop_that_never_opened_the_bus_tells_each_at_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as other, other.listen() as listener:
        bus = Bus(url, namespace=namespace)
        for n in range(3):
            await bus.publish(Token(n=n), ephemeral=True)
        bus.close_sync()

        assert tokens(await take(listener, 3)) == [0, 1, 2]


# A closed log, and a server that is away.


async def test_a_closed_log_takes_no_ephemeral_event(door: str, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        position = await bus.log("run:1").close()

        with pytest.raises(LogClosed, match="'run:1' is closed") as caught:
            await say(door, bus, Token(n=1), log="run:1")

        assert (caught.value.log, caught.value.position) == ("run:1", position)


class Away:
    """A store that is away whenever it is told to be, and remembers what it was told."""

    def __init__(self) -> None:
        self.failing: BusError | None = None
        self.told: list[bytes] = []
        self.calls = 0
        self.delay = 0

    async def announce(self, log: str, epoch: str, said: Sequence[Whisper]) -> Announced | Ended:  # noqa: ARG002 - the signature of a store
        self.calls += 1
        for _ in range(self.delay):
            await asyncio.sleep(0)
        if self.failing is not None:
            raise self.failing
        self.told += [each.body for each in said]
        return Announced(Position("e", 1, "t"), 1)


class AwayForThreads:
    """The same for threads; every other call takes a while."""

    def __init__(self) -> None:
        self.failing: BusError | None = None
        self.told: list[bytes] = []
        self._calls = 0

    def announce(self, log: str, epoch: str, said: Sequence[Whisper]) -> Announced | Ended:  # noqa: ARG002 - the signature of a store
        if self.failing is not None:
            raise self.failing
        self._calls += 1
        if self._calls % 2:
            threading.Event().wait(0.001)
        self.told += [each.body for each in said]
        return Announced(Position("e", 1, "t"), 1)


def whisper(n: int) -> Whisper:
    return Whisper("global", b"%d" % n)


async def test_what_was_gathered_is_logged_if_it_is_lost_and_the_next_publisher_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.whispers.WINDOW_S", 0.4)  # that a busy machine does not miss it
    store = Away()
    door = LoopWhispers(store)
    await door.say("main", whisper(0))
    store.failing = BusUnavailable("away")
    for n in (1, 2):
        await door.say("main", whisper(n))
    await eventually(lambda: "2 ephemeral events on log 'main' were not told: away" in caplog.text, "it to be logged")

    for _ in range(3):
        with pytest.raises(BusUnavailable, match="away"):
            await door.say("main", whisper(3))
    store.failing = None
    await door.say("main", whisper(4))
    await door.close()

    assert store.told == [b"0", b"4"]
    assert len(caplog.records) == 1


def test_threads_are_told_of_what_is_lost_likewise(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.whispers.WINDOW_S", 0.4)  # as above
    store = AwayForThreads()
    door = ThreadWhispers(lambda: store)
    door.say("main", whisper(0))
    store.failing = BusUnavailable("away")
    for n in (1, 2):
        door.say("main", whisper(n))
    wait_until(lambda: "2 ephemeral events on log 'main' were not told: away" in caplog.text, "it to be logged")

    for _ in range(3):
        with pytest.raises(BusUnavailable, match="away"):
            door.say("main", whisper(3))
    store.failing = None
    door.say("main", whisper(4))
    door.close()

    assert store.told == [b"0", b"4"]
    assert len(caplog.records) == 1


async def test_whoever_is_cancelled_loses_nobody_elses_words() -> None:
    store = Away()
    store.delay = 5
    door = LoopWhispers(store)
    sayings = [asyncio.create_task(door.say("main", whisper(n))) for n in range(3)]
    await asyncio.sleep(0)

    sayings[0].cancel()
    await asyncio.wait(sayings)
    await door.close()

    assert store.told == [b"0", b"1", b"2"]


def test_many_threads_lose_and_repeat_nothing_and_each_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whispers, "WINDOW_S", 0.001)
    monkeypatch.setattr(whispers, "MOST", 7)
    store = AwayForThreads()
    door = ThreadWhispers(lambda: store)

    def say(first: int) -> None:
        for n in range(first, first + 200):
            door.say("main", whisper(n))
            if n % 50 == 0:
                door.flush("main")

    threads = [threading.Thread(target=say, args=(1000 * each,)) for each in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    door.close()

    told = [int(body) for body in store.told]
    assert len(told) == 800
    for each in range(1, 5):
        assert [n for n in told if n // 1000 == each] == list(range(1000 * each, 1000 * each + 200))


def test_a_forked_child_does_not_tell_what_its_parent_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whispers, "WINDOW_S", 3600)
    store = AwayForThreads()
    door = ThreadWhispers(lambda: store)
    for n in range(2):
        door.say("main", whisper(n))
    parents = door.__dict__.copy()

    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        door.flush("main")
        door.say("main", whisper(7))
        door.close()
        assert store.told == [b"0", b"7"]
    door.__dict__.update(parents)
    door.close()

    assert store.told == [b"0", b"7", b"1"]


@contextmanager
def tiny_rooms() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whispers, "MOST", 3)
        patch.setattr(whispers, "WINDOW_S", 0.0)
        yield


STEPS = st.lists(st.sampled_from(["say", "say", "say", "turn", "flush", "away", "back", "close"]), max_size=40)


@given(STEPS, st.integers(0, 3))
async def test_whatever_happens_each_is_told_at_most_once_and_in_order(steps: list[str], delay: int) -> None:
    store, said = Away(), 0
    store.delay = delay
    lost_any = False
    with tiny_rooms():
        door = LoopWhispers(store)
        sayings: list[asyncio.Task[Position]] = []
        for step in [*steps, "back", "close"]:
            match step:
                case "say":
                    sayings.append(asyncio.create_task(door.say("main", whisper(said))))
                    await asyncio.sleep(0)
                    said += 1
                case "flush":
                    await door.flush("main")
                    assert store.failing is not None or lost_any or len(store.told) == said
                case "away":
                    store.failing, lost_any = BusUnavailable("away"), True
                case "back":
                    store.failing = None
                case "close":
                    await door.close()
                case _:
                    await asyncio.sleep(0)
        if sayings:
            await asyncio.wait(sayings)
        for saying in sayings:
            saying.exception()

    told = [int(body) for body in store.told]
    assert told == sorted(set(told))
    if not lost_any:
        assert told == list(range(said))
