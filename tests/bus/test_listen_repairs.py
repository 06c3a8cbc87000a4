"""Broken links: listeners repair themselves without a gap or a repeat, and publishers try again until it counts once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from itertools import count, pairwise, takewhile

import pytest
import redis

from bus import Bus, BusUnavailable, Delivery, Event, Listener, Receipt
from tests.servers import Server
from tests.waiting import eventually, wait_until

StartServer = Callable[..., Server]

PAUSE_S = 0.01
"""Between one kill and the next, so that there is something to kill."""


class Tick(Event, type="repairs.tick"):
    n: int


async def take_ticks(listener: Listener, count: int) -> list[int]:
    """The next ticks; a gap is a failure."""
    found = []
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        assert isinstance(item.event, Tick)
        found.append(item.event.n)
    return found


async def ticks_kept(bus: Bus) -> list[int]:
    items = [item async for item in bus.history()]
    return [item.event.n for item in items if isinstance(item, Delivery) and isinstance(item.event, Tick)]


def kill_subscriptions(client: redis.Redis) -> None:
    wait_until(lambda: client.client_kill_filter(_type="pubsub"), "a subscription to kill")


# Listeners.


async def test_killed_subscriptions_cost_a_listener_nothing(server: Server, redis_url: str, namespace: str) -> None:
    def publish() -> None:
        with server.client() as client:
            for n in range(1000):
                bus.publish_sync(Tick(n=n))
                if n % 50 == 25:
                    kill_subscriptions(client)

    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as one, bus.listen("*") as two:
        publisher = asyncio.create_task(asyncio.to_thread(publish))

        heard = await asyncio.gather(take_ticks(one, 1000), take_ticks(two, 1000))

        await publisher
        await bus.publish(Tick(n=-1))
        assert list(heard) == [list(range(1000))] * 2
        assert await take_ticks(one, 1) == [-1]  # so there was no repeat at the end either


async def test_subscriptions_that_are_killed_at_any_moment_cost_nothing(
    server: Server, redis_url: str, namespace: str
) -> None:
    done = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        with server.client() as client:
            while not done.is_set():
                kills += client.client_kill_filter(_type="pubsub")

    def publish() -> None:
        for n in range(1000):
            bus.publish_sync(Tick(n=n))

    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener:
        killer = asyncio.create_task(asyncio.to_thread(kill))
        try:
            await asyncio.to_thread(publish)
        finally:
            done.set()
            await killer

        assert await take_ticks(listener, 1000) == list(range(1000))
    assert kills >= 3


@pytest.mark.slow
async def test_a_server_that_restarts_costs_a_listener_nothing(start_server: StartServer, namespace: str) -> None:
    server = start_server(appendonly=True, appendfsync="always")

    def publish() -> list[Receipt]:
        return [bus.publish_sync(Tick(n=n)) for n in range(300)]

    async with Bus(server.url, namespace=namespace) as bus, bus.listen() as listener:
        publisher = asyncio.create_task(asyncio.to_thread(publish))
        heard = await take_ticks(listener, 50)

        await asyncio.to_thread(server.restart)
        heard += await take_ticks(listener, 250)

        receipts = await publisher
        assert heard == list(range(300))
        assert [each.position.seq for each in receipts] == list(range(1, 301))
        assert not any(each.duplicate for each in receipts)
        assert bus.status().connected


@pytest.mark.slow
async def test_a_server_that_hangs_is_noticed_and_repaired(start_server: StartServer, namespace: str) -> None:
    server = start_server()
    async with Bus(server.url, namespace=namespace, deadline_s=0.5) as bus, bus.listen() as listener:
        await bus.publish(Tick(n=1))
        assert await take_ticks(listener, 1) == [1]
        assert bus.status().connected

        server.freeze()
        try:
            with pytest.raises(BusUnavailable, match="does not answer") as caught:
                await bus.publish(Tick(n=2), id="two")
            await eventually(lambda: not bus.status().connected, "the hang to be noticed", timeout=10)
        finally:
            server.thaw()
        await eventually(lambda: bus.status().connected, "the link to be repaired", timeout=10)
        await bus.publish(Tick(n=2), id="two")
        await bus.publish(Tick(n=3))

        assert (caught.value.outcome, caught.value.id) == ("unknown", "two")
        assert await take_ticks(listener, 2) == [2, 3]


@pytest.mark.slow
async def test_silence_is_no_broken_link(server: Server, redis_url: str, namespace: str) -> None:
    """A link on which nothing happens is asked whether it is there, and kept."""

    def subscriptions() -> set[str]:
        return {each["id"] for each in client.client_list(_type="pubsub")}

    def has_been_idle_for_5_s() -> bool:
        (each,) = client.client_list(_type="pubsub")
        return int(each["age"]) >= 5

    with server.client() as client:
        async with Bus(redis_url, namespace=namespace) as bus, bus.listen():
            before = subscriptions()

            await eventually(has_been_idle_for_5_s, "the first link to grow old", timeout=8)

            assert subscriptions() == before


# Publishers.


@pytest.mark.parametrize("by_a_thread", [False, True], ids=["await", "sync"])
async def test_a_publisher_whose_connections_are_killed_tries_again(
    *, by_a_thread: bool, server: Server, redis_url: str, namespace: str
) -> None:
    done = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        with server.client() as client:
            while not done.wait(PAUSE_S):
                kills += client.client_kill_filter(_type="normal", skipme=True)

    async with Bus(redis_url, namespace=namespace) as bus:
        killer = asyncio.create_task(asyncio.to_thread(kill))
        try:
            enough = takewhile(lambda n: n < 300 or kills < 5, count())
            if by_a_thread:
                receipts = await asyncio.to_thread(lambda: [bus.publish_sync(Tick(n=n)) for n in enough])
            else:
                receipts = [await bus.publish(Tick(n=n)) for n in enough]
        finally:
            done.set()
            await killer

        assert [each.position.seq for each in receipts] == list(range(1, len(receipts) + 1))
        assert not any(each.duplicate for each in receipts)
        assert await ticks_kept(bus) == list(range(len(receipts)))


def test_threads_whose_connections_are_killed_publish_each_event_once(
    server: Server, redis_url: str, namespace: str
) -> None:
    bus = Bus(redis_url, namespace=namespace).open_sync()

    def publish(first: int) -> list[Receipt]:
        return [bus.publish_sync(Tick(n=n)) for n in range(first, first + 100)]

    with ThreadPoolExecutor(4) as threads, server.client() as client:
        working = [threads.submit(publish, first) for first in range(0, 400, 100)]
        kills = 0
        while wait(working, PAUSE_S).not_done:
            kills += client.client_kill_filter(_type="normal", skipme=True)
        receipts = [receipt for each in working for receipt in each.result()]
    top = bus.store.read("main", "0", 0, 0).top
    bus.close_sync()

    assert kills >= 5
    assert top == 400
    assert sorted(each.position.seq for each in receipts) == list(range(1, 401))


# A link that loses just one thing. A server cannot be told to; a proxy can.


class Proxy:
    """Stands between a bus and its server. ``lose`` says what to leave out of the server's answers, or to hang up at."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lost = 0
        self.lose: bytes | None = None
        self.hang_up = False
        self._server_port = port
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listening.close()
            while self._tasks:
                await asyncio.wait(set(self._tasks))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        await asyncio.gather(self._pass_on(reader, to_server, None), self._pass_on(from_server, writer, self))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rule: Proxy | None) -> None:
        try:
            while data := await reader.read(1 << 16):
                if rule is not None and rule.lose is not None and rule.lose in data:
                    rule.lose = None
                    rule.lost += 1
                    if rule.hang_up:
                        break
                    continue
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def test_a_lost_live_frame_is_noticed_by_the_next_one(server: Server, namespace: str) -> None:
    async with (
        Proxy(server.port).running() as proxy,
        Bus(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace) as bus,
        bus.listen() as listener,
    ):
        await bus.publish(Tick(n=1))
        assert await take_ticks(listener, 1) == [1]
        proxy.lose = b"live:main"
        await bus.publish(Tick(n=2))
        await eventually(lambda: proxy.lost, "the frame to be lost")
        await bus.publish(Tick(n=3))

        assert await take_ticks(listener, 2) == [2, 3]
        assert proxy.lost == 1


@pytest.mark.parametrize("by_a_thread", [False, True], ids=["await", "sync"])
async def test_a_lost_reply_to_a_publish_counts_once_and_is_no_duplicate(
    *, by_a_thread: bool, server: Server, namespace: str
) -> None:
    async with (
        Proxy(server.port).running() as proxy,
        Bus(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace) as bus,
        bus.listen() as listener,
    ):
        await bus.publish(Tick(n=1))
        proxy.hang_up = True
        proxy.lose = b"\r\n:1\r\n"  # the answer says after which number it comes
        if by_a_thread:
            receipt = await asyncio.to_thread(bus.publish_sync, Tick(n=2))
        else:
            receipt = await bus.publish(Tick(n=2))
        third = await bus.publish(Tick(n=3))

        assert proxy.lost == 1
        assert (receipt.position.seq, receipt.duplicate) == (2, False)
        assert third.position.seq == 3
        assert await take_ticks(listener, 3) == [1, 2, 3]
        assert await ticks_kept(bus) == [1, 2, 3]


# Together.


@pytest.mark.slow
async def test_a_storm_of_kills_leaves_every_listener_complete(server: Server, redis_url: str, namespace: str) -> None:
    done = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        with server.client() as client:
            while not done.wait(PAUSE_S):
                kills += client.client_kill_filter(_type="pubsub")
                kills += client.client_kill_filter(_type="normal", skipme=True)

    published: list[int] = []

    def publish(first: int) -> None:
        published.extend(bus.publish_sync(Tick(n=n)).position.seq for n in range(first, first + 250))

    async def enter(after: str | None) -> Listener:
        while True:  # entering says where the link breaks; from then on the listener sees to it by itself
            try:
                return await bus.listen(after=after).__aenter__()
            except BusUnavailable:
                continue

    async def listen(after: str | None) -> list[int]:
        listener = await enter(after)
        try:
            seqs = [0 if after == "0" or listener.position is None else listener.position.seq]
            while seqs[-1] < 1000:
                item = await anext(listener)
                assert isinstance(item, Delivery), item
                seqs.append(item.position.seq)
            return seqs
        finally:
            await listener.close()

    async with Bus(redis_url, namespace=namespace) as bus:
        joined = []
        killer = asyncio.create_task(asyncio.to_thread(kill))
        publishers = [asyncio.create_task(asyncio.to_thread(publish, first)) for first in range(0, 1000, 250)]
        try:
            for top in range(0, 1000, 200):
                await eventually(lambda top=top: len(published) >= top, "publishing to get on", 20)  # type: ignore[misc]
                joined += [asyncio.create_task(listen(after)) for after in (None, "0")]
            await asyncio.gather(*publishers)
        finally:
            done.set()
            await killer
        heard = await asyncio.gather(*joined)

    assert sorted(published) == list(range(1, 1001))
    assert all(b == a + 1 for seqs in heard for a, b in pairwise(seqs))
    assert [seqs[-1] for seqs in heard] == [1000] * 10
    assert kills >= 10


async def test_an_outcome_that_was_unknown_once_is_never_called_refused(
    start_server: Callable[..., Server], namespace: str
) -> None:
    server = start_server()
    async with Bus(server.url, namespace=namespace, deadline_s=5) as bus:
        await bus.publish({"type": "test.before"})
        server.freeze()
        publishing = asyncio.create_task(bus.publish({"type": "test.unknown"}))
        ended, _ = await asyncio.wait({publishing}, timeout=2.5)  # past the first attempt, which nobody answers
        assert not ended
        server.kill()
        with pytest.raises(BusUnavailable) as caught:
            await publishing

    assert caught.value.outcome == "unknown"
