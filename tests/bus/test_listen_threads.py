"""Listening from threads, as a sync handler does."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bus import Bus, BusClosed, Closed, Delivery, Event, SyncListener
from tests.servers import Server
from tests.waiting import wait_until


class Said(Event, type="threads.said"):
    n: int


def take(listener: SyncListener, count: int) -> list[int]:
    found = []
    for _ in range(count):
        item = next(listener)
        assert isinstance(item, Delivery), item
        assert isinstance(item.event, Said)
        found.append(item.event.n)
    return found


def listening() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "callboard listening"]


def test_a_thread_hears_what_is_published(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    with bus.listen_sync() as listener, bus.listen_sync("other", after="0") as other:
        for n in range(3):
            bus.publish_sync(Said(n=n), topics=["global", "other"])
        assert take(listener, 3) == take(other, 3) == [0, 1, 2]
    assert listening() == []
    bus.close_sync()


def test_nothing_in_time_loses_nothing(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    with bus.listen_sync() as listener:
        assert listener.get(0) is None
        bus.publish_sync(Said(n=1))
        assert take(listener, 1) == [1]
        assert listener.get(0) is None
    bus.close_sync()


def test_many_threads_share_one_connection(server: Server, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    together = threading.Barrier(5)

    def hear() -> list[int]:
        with bus.listen_sync() as listener:
            together.wait()
            found = take(listener, 20)
            together.wait()
            return found

    with ThreadPoolExecutor(4) as threads:
        heard = [threads.submit(hear) for _ in range(4)]
        together.wait()
        with server.client() as client:
            assert len(client.client_list(_type="pubsub")) == 1
        for n in range(20):
            bus.publish_sync(Said(n=n))
        together.wait()
        assert [each.result() for each in heard] == [list(range(20))] * 4
    assert listening() == []
    bus.close_sync()


def test_closing_from_another_thread_ends_the_iteration(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    with ThreadPoolExecutor(1) as threads, bus.listen_sync() as listener:
        hearing = threads.submit(lambda: list(listener))
        bus.publish_sync(Said(n=1))
        wait_until(lambda: listener.position is not None and listener.position.seq == 1, "the event to be heard")
        listener.close()
        listener.close()
        assert [type(item) for item in hearing.result()] == [Delivery]
        assert listener.get(1) is None
    bus.close_sync()


def test_a_bus_that_is_closed_ends_the_listeners_of_threads(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace).open_sync()
    with bus.listen_sync() as listener:
        bus.close_sync()
        assert [type(item) for item in listener] == [Closed]
    assert listening() == []


def test_a_listener_of_threads_is_entered_once_and_before_it_is_read(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    listener = bus.listen_sync()
    with pytest.raises(BusClosed, match="enter"):
        next(listener)
    with listener, pytest.raises(BusClosed, match="entered before"):
        listener.__enter__()
    listener.close()
    bus.close_sync()


def test_a_server_that_is_away_is_said_and_leaves_no_thread(namespace: str) -> None:
    bus = Bus("redis://127.0.0.1:1/0", namespace=namespace)
    with pytest.raises(Exception, match="cannot be reached"), bus.listen_sync():
        pass
    assert listening() == []


async def test_threads_and_tasks_hear_the_same(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as task:
        with bus.listen_sync() as listener:
            await bus.publish(Said(n=1))
            mine = await anext(task)
            theirs = await asyncio.to_thread(next, listener)
            assert mine == theirs
