"""Closing, leaving and joining that are cut short, or meet each other: nothing stays, and everybody is told."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bus import Bus, BusClosed, BusUnavailable, Closed, Delivery, Event, Gap, Listener, Publication
from bus.delivery import Item
from tests.servers import Server
from tests.waiting import eventually, wait_until


class Bell(Event, type="endings.bell"):
    n: int


async def take(listener: Listener, count: int) -> list[int]:
    return [item.event.n for item in [await anext(listener) for _ in range(count)] if isinstance(item, Delivery)]  # type: ignore[union-attr]


def bells(first: int, last: int) -> list[Publication]:
    return [Publication(Bell(n=n)) for n in range(first, last + 1)]


@pytest.mark.parametrize("turns", range(6))
async def test_a_close_that_is_cancelled_is_done_all_the_same(url: str, namespace: str, turns: int) -> None:
    bus = await Bus(url, namespace=namespace).open()
    listener = await bus.listen().__aenter__()
    for n in range(3):
        await bus.publish(Bell(n=n), ephemeral=True)
    closing = asyncio.create_task(bus.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    if turns == 0:  # it had not begun
        await bus.close()

    assert isinstance([item async for item in listener][-1], Closed)
    with pytest.raises(BusClosed):
        await bus.publish(Bell(n=1))
    await listener.close()


@pytest.mark.parametrize("turns", range(1, 5))
async def test_leaving_that_is_cancelled_is_done_all_the_same(url: str, namespace: str, turns: int) -> None:
    """It was the loop's last user: what it leaves would be found by the test's own look at sockets and tasks."""
    bus = Bus(url, namespace=namespace)
    listener = await bus.listen().__aenter__()
    leaving = asyncio.create_task(listener.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    bus.close_sync()


@pytest.mark.parametrize("after", [None, "0"])
async def test_who_joins_while_another_thread_closes_the_bus_is_refused_or_told(
    url: str, namespace: str, after: str | None
) -> None:
    for turns in range(8):
        bus = Bus(url, namespace=namespace).open_sync()
        closing = asyncio.create_task(asyncio.to_thread(bus.close_sync))
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            async with bus.listen(after=after) as listener:
                assert [type(item) for item in [item async for item in listener]][-1:] == [Closed]
        except BusClosed:
            pass
        await closing


async def test_reading_that_is_cancelled_at_a_fork_forgets_nothing(
    server: Server, redis_url: str, namespace: str
) -> None:
    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish_many(bells(1, 10))
        with server.client() as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
            await bus.publish_many(bells(11, 13))
            assert await take(listener, 13) == list(range(1, 14))
            client.flushall()
            for key, value in older.items():
                client.restore(key, 0, value)
        await bus.publish_many(bells(101, 103))

        heard: list[Item] = []
        for patience_ms in range(200):
            try:
                async with asyncio.timeout(patience_ms / 10_000):
                    heard.append(await anext(listener))
            except TimeoutError:
                continue
            if len(heard) == 4:
                break

        assert heard[0] == Gap(11, 13, "fork")
        assert [item.event.n for item in heard[1:] if isinstance(item, Delivery)] == [101, 102, 103]  # type: ignore[union-attr]


async def test_whispers_never_take_the_position_back(server: Server, redis_url: str, namespace: str) -> None:
    """Through links that are killed: what is read from the log may be ahead of what was whispered before it."""

    def publish() -> None:
        for n in range(400):
            bus.publish_sync(Bell(n=n), ephemeral=True)
            bus.publish_sync(Bell(n=n))
            if n % 20 == 0:
                with server.client() as client:
                    client.client_kill_filter(_type="pubsub")

    async with Bus(redis_url, namespace=namespace) as bus, bus.listen() as listener:
        publisher = asyncio.create_task(asyncio.to_thread(publish))
        heard: list[Delivery] = []
        while not heard or heard[-1].ephemeral or heard[-1].position.seq < 400:
            item = await anext(listener)
            assert isinstance(item, Delivery)
            heard.append(item)
        await publisher

        places = [item.position.seq for item in heard]
        assert places == sorted(places)
        assert sum(not item.ephemeral for item in heard) == 400
        assert sum(item.ephemeral for item in heard) > 0


async def test_from_now_on_is_after_what_was_published_before(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen():
        for n in range(50):
            bus.publish_sync(Bell(n=n))  # the hub is told later
            async with bus.listen() as listener:
                bus.publish_sync(Bell(n=100 + n))
                assert await take(listener, 1) == [100 + n]


async def test_a_log_that_ended_and_lost_its_data_is_heard_anew(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus:
        await bus.publish(Bell(n=1), log="run")
        await bus.log("run").close()
        async with bus.listen(log="run") as listener:
            assert isinstance(await anext(listener), Closed)
        with server.client() as client:
            client.flushall()

        async with bus.listen(log="run") as listener:
            await bus.publish(Bell(n=2), log="run")
            assert await take(listener, 1) == [2]


async def test_hubs_of_joins_that_failed_are_let_go(
    server: Server, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.sides.LINGER_S", 0.01)
    async with Bus(redis_url, namespace=namespace) as bus:
        for n in range(5):
            joining = asyncio.create_task(bus.listen(log=f"run:{n}").__aenter__())
            await asyncio.sleep(0)
            joining.cancel()
            await asyncio.wait([joining])
        with server.client() as client:
            await eventually(lambda: not client.client_list(_type="pubsub"), "no subscription to stay")
        await eventually(
            lambda: not [task for task in asyncio.all_tasks() if "hub" in task.get_name()], "no hub to stay"
        )


# Threads.


def test_closing_a_listener_of_threads_while_it_enters_harms_no_other(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    with bus.listen_sync() as other, ThreadPoolExecutor(1) as threads:
        for _ in range(20):
            listener = bus.listen_sync()
            entering = threads.submit(listener.__enter__)
            listener.close()
            try:
                entering.result(5)
            except BusClosed:
                continue  # closed before it entered
            listener.close()
        bus.publish_sync(Bell(n=1))
        assert isinstance(other.get(5), Delivery)
    assert not [thread for thread in threading.enumerate() if thread.name == "callboard listening"]
    bus.close_sync()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_listens_on_a_thread_of_its_own(redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    with bus.listen_sync() as listener:
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(10)  # whatever it hangs in
            try:
                with bus.listen_sync(after="0") as mine:
                    code = 0 if isinstance(mine.get(10), Delivery) else 2
            finally:
                os._exit(code)
        bus.publish_sync(Bell(n=1))
        assert isinstance(listener.get(5), Delivery)
        ended = wait_until(lambda: os.waitpid(child, os.WNOHANG), "the child to end", 15)
        ended = ended if ended[0] else os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
    bus.close_sync()


def test_threads_that_publish_while_the_bus_is_closed_and_opened_see_our_errors_only(
    redis_url: str, namespace: str
) -> None:
    bus = Bus(redis_url, namespace=namespace)
    done = threading.Event()

    def publish() -> int:
        count = 0
        while not done.is_set():
            try:
                bus.publish_sync(Bell(n=1))
                count += 1
            except (BusClosed, BusUnavailable):
                continue
        return count

    with ThreadPoolExecutor(4) as threads:
        publishing = [threads.submit(publish) for _ in range(4)]
        for _ in range(100):
            bus.open_sync()
            bus.close_sync()
        bus.open_sync()
        done.set()
        assert all(each.result(10) >= 0 for each in publishing)
    bus.close_sync()
