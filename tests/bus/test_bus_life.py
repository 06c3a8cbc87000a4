"""The life of a bus: opening and closing, loops and threads, settings, and servers that are away or unfit."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bus import Bus, BusClosed, BusUnavailable, Delivery, Event, InvalidSettings, Listener, Status, UnsafeServer
from tests import leaks
from tests.servers import Server
from tests.waiting import eventually, wait_until

StartServer = Callable[..., Server]

NOWHERE = "redis://:canary@127.0.0.1:1/0"
"""Nothing listens on port 1."""


class Mark(Event, type="life.mark"):
    n: int


MARK = Mark(n=0)


async def take(listener: Listener, count: int) -> list[Delivery]:
    """The next deliveries; a gap is a failure."""
    found = []
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        found.append(item)
    return found


def assert_one_discreet_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1
    assert "canary" not in str(error)
    assert "redis://:" not in str(error)


# Opening and closing.


async def test_opening_is_counted_and_the_last_close_closes(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    await bus.open()
    await bus.open()

    await bus.close()
    await bus.publish(MARK)

    await bus.close()
    with pytest.raises(BusClosed, match="open it again"):
        await bus.publish(MARK)
    with pytest.raises(BusClosed, match="open it again"):
        await asyncio.to_thread(bus.publish_sync, MARK)
    with pytest.raises(BusClosed):
        await bus.publish(MARK, ephemeral=True)
    with pytest.raises(BusClosed):
        await bus.listen().__aenter__()
    with pytest.raises(BusClosed):
        await anext(bus.history())
    with pytest.raises(BusClosed):
        bus.bind([])


async def test_a_closed_bus_can_be_opened_again(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    for n in range(1, 4):
        async with bus, bus.listen() as listener:
            receipt = await bus.publish(Mark(n=n))

            assert receipt.position.seq == n
            assert (await take(listener, 1))[0].event == Mark(n=n)


async def test_closing_without_opening_does_nothing(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    await bus.close()
    await bus.publish(MARK)
    await bus.close()  # it was opened by nobody, so there is nothing to undo
    await bus.publish(MARK)

    bus.close_sync()


async def test_closing_twice_does_nothing_more(url: str, namespace: str) -> None:
    bus = await Bus(url, namespace=namespace).open()

    await bus.close()
    await bus.close()
    bus.close_sync()
    bus.close_sync()

    await bus.open()
    await bus.publish(MARK)
    await bus.close()


def test_threads_together_are_an_owner_too(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace).open_sync().open_sync()

    async def use() -> None:
        async with bus:
            await bus.publish(MARK)

    asyncio.run(use())
    bus.close_sync()
    bus.publish_sync(MARK)
    bus.close_sync()
    with pytest.raises(BusClosed):
        bus.publish_sync(MARK)


async def test_a_worker_closes_only_what_it_opened(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        await asyncio.to_thread(bus.open_sync)
        await asyncio.to_thread(bus.close_sync)
        bus.close_sync()  # once too often

        await bus.publish(MARK)


@pytest.mark.timeout(120)
async def test_a_hundred_lives_leave_nothing(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    descriptors: list[int] = []
    for n in range(100):
        async with bus, bus.listen() as listener:
            await bus.publish(Mark(n=n))
            await asyncio.to_thread(bus.publish_sync, Mark(n=n))
            await take(listener, 2)
        assert leaks.tasks_left() == []
        descriptors.append(len(leaks.sockets_now()))

    await eventually(lambda: len(leaks.sockets_now()) <= descriptors[0], "sockets to be closed")
    assert max(descriptors) <= descriptors[0] + 2


# Loops and threads.


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(work)) as threads:
        return [each.result() for each in [threads.submit(one) for one in work]]


def test_one_bus_serves_three_loops_and_five_threads_at_once(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    events = 3 * 50 + 5 * 50
    attached = threading.Barrier(8)

    async def loop(first: int) -> list[tuple[int, int]]:
        async with bus, bus.listen() as listener:
            await asyncio.to_thread(attached.wait, 10)
            reader = asyncio.create_task(take(listener, events))
            for n in range(first, first + 50):
                await bus.publish(Mark(n=n))
            return [(each.position.seq, each.event.n) for each in await reader if isinstance(each.event, Mark)]

    def thread(first: int) -> None:
        attached.wait(10)
        for n in range(first, first + 50):
            bus.publish_sync(Mark(n=n))

    heard = in_threads(
        *[lambda first=first: asyncio.run(loop(first)) for first in (0, 50, 100)],
        *[lambda first=first: thread(first) for first in range(150, 400, 50)],
    )[:3]
    bus.close_sync()

    assert heard[0] == heard[1] == heard[2]
    assert [seq for seq, _ in heard[0]] == list(range(1, events + 1))
    assert sorted(n for _, n in heard[0]) == list(range(events))
    for first in range(0, events, 50):  # each publisher's own order is kept
        assert [n for _, n in heard[0] if first <= n < first + 50] == list(range(first, first + 50))


def test_a_loop_that_ends_without_closing_breaks_nobody_else(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    async def forget() -> None:
        listener = bus.listen()
        await bus.open()
        await listener.__aenter__()
        await bus.publish(Mark(n=1))

    async def use() -> list[Delivery]:
        async with bus, bus.listen(after="0") as listener:
            await bus.publish(Mark(n=2))
            return await take(listener, 2)

    with warnings.catch_warnings():
        # Its connections were left to the garbage collector: that is the fault of whoever ended the loop.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(forget())
        bus.publish_sync(MARK, topics=["other"])  # while nobody has noticed yet
        heard = asyncio.run(use())
        gc.collect()
    bus.close_sync()

    assert [each.event for each in heard] == [Mark(n=1), Mark(n=2)]
    with pytest.raises(BusClosed):  # the dead loop's ownership does not keep it open
        bus.publish_sync(MARK)


def test_a_loop_that_ended_without_closing_does_not_keep_the_bus_open(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    async def forget() -> None:
        await bus.open()
        await bus.publish(MARK)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(forget())
        gc.collect()
        bus.close_sync()
        gc.collect()

    with pytest.raises(BusClosed):
        bus.publish_sync(MARK)


# Which store.


@pytest.mark.parametrize(
    ("bus_url", "redis_url", "mode"),
    [
        (None, None, "memory"),
        ("", "", "memory"),
        ("", "redis://127.0.0.1:1/0", "redis"),
        (None, "redis://127.0.0.1:1/0", "redis"),
        ("memory://", "redis://127.0.0.1:1/0", "memory"),
        ("redis://127.0.0.1:1/0", "memory://", "redis"),
    ],
)
def test_without_a_url_the_environment_decides(
    bus_url: str | None, redis_url: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUS_NAMESPACE", raising=False)
    for name, value in (("BUS_URL", bus_url), ("REDIS_URL", redis_url)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    assert Bus().mode == mode
    assert Bus("memory://").mode == "memory"


@pytest.mark.parametrize(
    ("given", "from_environment", "namespace"),
    [(None, None, "callboard"), (None, "", "callboard"), (None, "theirs", "theirs"), ("mine", "theirs", "mine")],
)
def test_without_a_namespace_the_environment_decides(
    given: str | None, from_environment: str | None, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUS_NAMESPACE", raising=False)
    if from_environment is not None:
        monkeypatch.setenv("BUS_NAMESPACE", from_environment)

    assert Bus("memory://", namespace=given).namespace == namespace


def test_private_memory_is_private_and_named_memory_is_shared(namespace: str) -> None:
    name = f"memory://{namespace}"
    for bus in (Bus("memory://"), Bus("memory://"), Bus(name), Bus(name, namespace="other")):
        assert bus.publish_sync(MARK).position.seq == 1

    assert Bus(name).publish_sync(MARK).position.seq == 2


async def test_namespaces_hear_nothing_of_each_other(url: str, namespace: str) -> None:
    async with (
        Bus(url, namespace=namespace) as here,
        Bus(url, namespace=f"{namespace}-b") as there,
        here.listen("**") as hears_here,
        there.listen("**") as hears_there,
    ):
        await here.publish(Mark(n=1))
        await there.publish(Mark(n=2))

        assert [each.event for each in await take(hears_here, 1)] == [Mark(n=1)]
        assert [each.event for each in await take(hears_there, 1)] == [Mark(n=2)]


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"namespace": ""},
        {"namespace": "a b"},
        {"namespace": "a:b"},
        {"namespace": "a{b}"},
        {"namespace": "x" * 65},
        {"namespace": "ä"},
        {"namespace": 5},
        {"max_bytes": 0},
        {"max_bytes": 0.5},
        {"cap": 0},
        {"cap": -1},
        {"cap": 0.5},
        {"cap": 1.5},
        {"cap": True},
        {"cap": "5"},
        {"cap": 10**30},
        {"ttl_s": 0},
        {"ttl_s": 0.0001},
        {"ttl_s": float("nan")},
        {"ttl_s": 1e300},
        {"window_s": 0},
        {"window_s": 0.0001},
        {"window_s": float("inf")},
        {"deadline_s": -1},
        {"deadline_s": None},
        {"lease_s": 0},
        {"fallback": "redis"},
        {"fallback": True},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Bus("memory://", **settings)

    assert_one_discreet_line(caught.value)
    assert next(iter(settings)) in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "canary",
        "canary@localhost",
        "http://canary@localhost",
        "redis://:canary@localhost:port/0",
        "redis://:canary@localhost:99999/0",
        "redis://:canary@localhost/zero",
        "redis://:can#ary@localhost/0",
        "redis://:canary/x@localhost:6379/0",
        "redis://:canary@[localhost/0",
        "redis://localhost/0?password=canary",
        "memory:canary",
        5,
    ],
    ids=str,
)
def test_urls_that_cannot_be_used_are_refused_without_being_shown(url: Any) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Bus(url)

    assert_one_discreet_line(caught.value)


def test_urls_from_the_environment_are_checked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUS_URL", "canary")

    with pytest.raises(InvalidSettings) as caught:
        Bus()

    assert_one_discreet_line(caught.value)


# Servers that are away or unfit.


def first_uses(bus: Bus) -> list[Callable[[], Awaitable[object]]]:
    return [
        bus.open,
        lambda: bus.publish(MARK),
        lambda: bus.publish(MARK, ephemeral=True),
        lambda: asyncio.to_thread(bus.publish_sync, MARK),
        lambda: anext(bus.history()),
        lambda: asyncio.to_thread(bus.open_sync),
        lambda: bus.listen().__aenter__(),
    ]


@pytest.mark.parametrize(
    "way", ["nobody listens", pytest.param("hangs", marks=pytest.mark.slow), "speaks something else"]
)
async def test_a_server_that_is_away_is_said_at_once(way: str, start_server: StartServer) -> None:
    url = NOWHERE
    stranger: asyncio.Server | None = None
    if way == "hangs":
        server = start_server()
        server.freeze()
        url = server.url.replace("redis://", "redis://:canary@")
    elif way == "speaks something else":
        stranger = await asyncio.start_server(_speak_http, "127.0.0.1", 0)
        url = f"redis://:canary@127.0.0.1:{stranger.sockets[0].getsockname()[1]}/0"
    bus = Bus(url)

    for use in first_uses(bus)[:: 3 if way == "hangs" else 1]:  # each waits two seconds for one that hangs
        began = time.monotonic()
        with pytest.raises(BusUnavailable) as caught:
            await use()
        assert time.monotonic() - began < 5
        assert_one_discreet_line(caught.value)
        assert "127.0.0.1" in str(caught.value)

    assert not bus.status().connected
    assert bus.status().listeners == 0
    if stranger is not None:
        stranger.close()
        await stranger.wait_closed()


async def _speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def test_a_server_that_goes_away_later_is_said_after_the_deadline(
    start_server: StartServer, namespace: str
) -> None:
    server = start_server()
    async with Bus(server.url, namespace=namespace, deadline_s=0.2) as bus, bus.listen():
        await bus.publish(MARK)
        await asyncio.to_thread(server.stop)

        publishing: list[Callable[[], Awaitable[object]]] = [
            lambda: bus.publish(MARK, id="mine"),
            lambda: asyncio.to_thread(bus.publish_sync, MARK, id="mine"),
        ]
        for publish in publishing:
            with pytest.raises(BusUnavailable) as caught:
                await publish()
            assert_one_discreet_line(caught.value)
            assert (caught.value.outcome, caught.value.id) == ("refused", "mine")
        with pytest.raises(BusUnavailable):
            await bus.listen(log="another").__aenter__()
        await eventually(lambda: not bus.status().connected, "the loss to be noticed")


async def test_a_bus_that_could_not_open_opens_when_the_server_is_there(
    start_server: StartServer, namespace: str
) -> None:
    server = start_server()
    await asyncio.to_thread(server.stop)
    bus = Bus(server.url, namespace=namespace)
    with pytest.raises(BusUnavailable):
        await bus.open()

    await asyncio.to_thread(server.start)
    async with bus, bus.listen() as listener:
        await bus.publish(MARK)
        assert len(await take(listener, 1)) == 1


@pytest.mark.parametrize("by_a_thread", [False, True], ids=["await", "sync"])
async def test_with_a_fallback_it_goes_on_in_memory_and_says_so(
    *, by_a_thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(NOWHERE, fallback="memory")
    if by_a_thread:
        await asyncio.to_thread(bus.publish_sync, MARK)
    async with bus, bus.listen(after="0") as listener:
        await bus.publish(MARK)
        await asyncio.to_thread(bus.publish_sync, MARK)

        assert len(await take(listener, 2 + by_a_thread)) == 2 + by_a_thread
        assert (bus.status().mode, bus.status().connected, bus.mode) == ("fallback", True, "fallback")
    bus.close_sync()

    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "IN MEMORY" in warning.message
    assert "canary" not in caplog.text


async def test_a_fallback_is_not_used_while_the_server_is_there(
    server: Server, redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bus(redis_url, namespace=namespace, fallback="memory") as bus:
        await bus.publish(MARK)

        assert bus.status().mode == "redis"
    assert caplog.text == ""


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused_and_left(policy: str, start_server: StartServer) -> None:
    server = start_server(maxmemory="50mb", maxmemory_policy=policy)
    bus = Bus(server.url)

    for use in first_uses(bus):
        with pytest.raises(UnsafeServer, match="set 'maxmemory-policy noeviction' on it") as caught:
            await use()
        assert_one_discreet_line(caught.value)
        with server.client() as client:
            assert leaks.connections_left(client, frozenset()) == []


# What it says of itself.


async def test_what_is_printed_holds_no_secret(start_server: StartServer, namespace: str) -> None:
    server = start_server(requirepass="canary")
    bus = Bus(server.url, namespace=namespace)
    before = repr(bus)
    async with bus, bus.listen() as listener:
        await bus.publish(MARK)
        inside = [repr(bus), repr(listener), repr(bus.store), repr(bus.status()), str(bus), f"{bus.__dict__}"]
        inside += [repr(each) for side in [bus.__dict__["_life"].sides.here()] for each in (side, *side.hubs.values())]
        assert "attached" in repr(listener)
    after = [repr(bus), repr(listener)]

    assert all("canary" not in text for text in [before, *inside, *after])
    assert (before, after[0]) == (f"<Bus {namespace} in redis not opened>", f"<Bus {namespace} in redis closed>")
    assert any("<Hub main live" in text for text in inside)


def test_status_works_anywhere_and_any_time(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    before = bus.status()
    bus.publish_sync(MARK)
    during = bus.status()
    bus.close_sync()
    after = bus.status()

    mode = "memory" if url.startswith("memory") else "redis"
    assert before == Status(mode, False, None, 0, 0, "not opened")
    assert during == Status(mode, True, None, 0, 0, "live")
    assert after == Status(mode, False, None, 0, 0, "closed")


def test_status_is_of_the_calling_loop(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    seen: list[int] = []

    async def use() -> None:
        async with bus, bus.listen():
            thread = threading.Thread(target=lambda: seen.append(bus.status().listeners))
            thread.start()
            wait_until(lambda: seen, "the thread to look")
            thread.join()
            seen.append(bus.status().listeners)

    asyncio.run(use())

    assert seen == [0, 1]


def test_many_threads_wait_for_a_hung_server_together_and_not_one_after_the_other(
    start_server: StartServer, namespace: str
) -> None:
    server = start_server()
    bus = Bus(server.url, namespace=namespace)
    server.freeze()

    def ask(_: int) -> str:
        with pytest.raises(BusUnavailable) as caught:
            bus.open_sync()
        return str(caught.value)

    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        said = set(threads.map(ask, range(8)))
    took = time.monotonic() - began
    server.thaw()

    assert took < 6, f"eight threads waited {took:.1f} s for a server that gets 2 s"
    assert len(said) == 1
