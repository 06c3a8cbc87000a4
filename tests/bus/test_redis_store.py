"""What only the store on Redis can get wrong: round trips, unknown scripts, and servers that are full, unfit or away."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager
from functools import partial
from typing import Any, cast

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from bus import Bus, Event, Publication
from bus.bindings import Binding
from bus.errors import BusUnavailable, InvalidSettings, UnsafeServer
from bus.store.base import Announced, Appended, Batch, Ended, Job, Route, Stale, Whisper
from bus.store.redis import RedisStore, blocking, scripts
from bus.store.redis.scripts import PIECE, Call
from bus.store.redis.wire import AHEAD, pack
from bus.testing import QUEUE_CHECKS
from bus.testing.log_checks import LOG_CHECKS
from bus.testing.store_checks import (
    CALM_LEASE_MS,
    HOME,
    NEVER,
    Worker,
    append,
    batch,
    bodies,
    enqueue,
    post,
    whisper,
    write,
)
from tests.faults.proxy import Drop, Proxy, calling
from tests.monitor import monitored
from tests.servers import Server
from tests.waiting import wait_until

LEASE_MS = 60_000
SECRET = "s3cret"


class Noted(Event, type="redis_store.noted"):
    n: int


@pytest.fixture
def store(redis_url: str, namespace: str) -> Iterator[RedisStore]:
    with opened(RedisStore(redis_url, namespace, lease_ms=LEASE_MS)) as one:
        yield one


@contextmanager
def opened(store: RedisStore) -> Iterator[RedisStore]:
    try:
        store.open()
        yield store
    finally:
        store.close()


# -- one round trip ----------------------------------------------------------------------------------------------------


@contextmanager
def commands_seen(server: Server) -> Iterator[list[str]]:
    """The names of the commands that clients send meanwhile, without those that a script runs."""
    seen: list[str] = []
    with monitored(server) as heard:
        yield seen
    seen += [one.command.partition(" ")[0].upper() for one in heard if not one.by_script]


@pytest.fixture
def always_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silence is long."""
    monkeypatch.setattr("bus.store.redis.pipe.WARM_S", 1e9)


@pytest.fixture
def always_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every silence is long."""
    monkeypatch.setattr("bus.store.redis.pipe.WARM_S", -1.0)


@pytest.mark.usefixtures("always_warm")
def test_a_publish_is_one_command(server: Server, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    with closing_bus(bus):
        bus.bind([Binding.make(handler="h", types=("redis_store.noted",), key="n")])
        bus.publish_sync(Noted(n=0))  # connects, and learns the bindings

        with commands_seen(server) as seen:
            bus.publish_sync(Noted(n=1))

    assert seen == ["EVALSHA"]


@pytest.mark.usefixtures("always_warm")
def test_a_publish_of_many_is_one_command_for_each_piece(server: Server, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    with closing_bus(bus):
        bus.publish_sync(Noted(n=0))

        with commands_seen(server) as seen:
            receipts = bus.publish_many_sync(Publication(Noted(n=n)) for n in range(2 * PIECE + 1))

    assert seen == ["EVALSHA"] * 3
    assert [receipt.position.seq for receipt in receipts] == list(range(2, 2 * PIECE + 3))


@pytest.mark.usefixtures("always_warm")
async def test_a_publish_on_a_loop_is_one_command(server: Server, redis_url: str, namespace: str) -> None:
    async with Bus(redis_url, namespace=namespace) as bus:
        await bus.publish(Noted(n=0))

        with commands_seen(server) as seen:
            await bus.publish(Noted(n=1))
            await bus.publish_many(Publication(Noted(n=n)) for n in range(PIECE + 1))

    assert seen == ["EVALSHA"] * 3


@contextmanager
def closing_bus(bus: Bus) -> Iterator[None]:
    bus.open_sync()
    try:
        yield
    finally:
        bus.close_sync()


@pytest.mark.usefixtures("always_warm")
def test_an_event_with_many_jobs_is_one_command(server: Server, store: RedisStore) -> None:
    routes = [Route("q", f"h{n}", 1) for n in range(50)]
    write(store, b"warm")

    with commands_seen(server) as seen:
        append(store, batch(post(jobs=[(route, "k") for route in routes])))

    assert seen == ["EVALSHA"]
    assert store.pending("q") == 50


# -- pieces of a batch -------------------------------------------------------------------------------------------------


def pieces(many: int, **options: Any) -> tuple[Batch, list[Call[list[Appended] | Stale | Ended]]]:
    """A batch, and the calls that it is sent in, which nobody has sent yet."""
    whole = batch(*(post(b"%d" % n) for n in range(many * PIECE)), **options)
    return whole, scripts.append(whole)


@pytest.fixture
def send(server: Server, store: RedisStore) -> Iterator[Callable[[Call[Any]], Any]]:
    """Run a call by itself. What the server says."""
    with server.client() as client:
        yield lambda call: client.eval(call.script.text, 1, store.prefix, *call.arguments)


def kept(store: RedisStore) -> list[bytes]:
    """What the log has."""
    return [entry.body for entry in store.read("main", "e", 0, 10_000).entries]


def test_a_piece_goes_in_only_behind_the_one_before(store: RedisStore, send: Callable[[Call[Any]], Any]) -> None:
    whole, (first, second, third) = pieces(3)

    said = [send(call)[0] for call in (second, third, first, third, second, third)]

    assert said == [b"behind", b"behind", b"ok", b"behind", b"ok", b"ok"]
    assert kept(store) == [post.body for post in whole.posts]


@pytest.mark.usefixtures("always_warm")
def test_ids_that_are_known_hold_no_piece_up(server: Server, store: RedisStore) -> None:
    whole, calls = pieces(3)
    theirs = batch(*(post(b"theirs", id=whole.posts[n].id) for n in (PIECE - 1, 2 * PIECE - 1)))
    append(store, theirs)

    with commands_seen(server) as seen:
        answers = store.append(whole)

    assert seen == ["EVALSHA"] * len(calls)
    assert isinstance(answers, list)
    assert [n for n, answer in enumerate(answers) if answer.duplicate] == [PIECE - 1, 2 * PIECE - 1]
    with commands_seen(server) as seen:
        again = store.append(whole._replace(posts=[each._replace(token="other") for each in whole.posts]))
    assert seen == ["EVALSHA"] * len(calls)
    assert again == [answer._replace(duplicate=True) for answer in answers]
    with server.client() as client:
        assert client.keys("*piece:*") == []


def test_a_server_that_fills_up_in_the_midst_of_a_batch_has_the_first_of_it(
    start_server: Callable[..., Server], namespace: str
) -> None:
    server = start_server(maxmemory_policy="noeviction")
    bus = Bus(server.url, namespace=namespace, deadline_s=0.001)
    large = [Publication({"type": "test.large", "n": n, "text": "x" * 8_000}, id=str(n)) for n in range(500)]
    with closing_bus(bus), server.client() as client:
        bus.publish_many_sync(large[:1])
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)

        with pytest.raises(BusUnavailable) as told:
            bus.publish_many_sync(large[1:])

        had = bus.store.read("main", "e", 0, 1_000).top
        assert 1 < had < 500
        assert (had - 1) % PIECE == 0
        assert (told.value.outcome, told.value.id) == ("refused", str(had)), "the first that did not go in"

        client.config_set("maxmemory", 0)
        receipts = bus.publish_many_sync(large)
    assert [receipt.position.seq for receipt in receipts] == list(range(1, 501))
    assert [receipt.duplicate for receipt in receipts] == [n < had for n in range(500)]


def test_a_log_that_ends_in_the_midst_of_a_batch_has_the_first_of_it(
    store: RedisStore, send: Callable[[Call[Any]], Any]
) -> None:
    whole, (first, *others) = pieces(3)
    went_in = first.answer(send(first))
    store.close_log("main", "e1")
    said = [send(call) for call in others]

    assert [each[0] for each in said] == [b"closed", b"behind"]
    assert scripts.joined(went_in, zip(others, said, strict=True)) == went_in
    assert isinstance(store.append(whole._replace(posts=whole.posts[PIECE:])), Ended)


def test_what_went_in_behind_a_piece_that_did_not_is_left_out(send: Callable[[Call[Any]], Any]) -> None:
    """It went in before: its own answer was lost, and the piece before it is behind another that it stood behind then."""
    _, (first, second, third) = pieces(3)
    went_in = first.answer(send(first))

    assert len(scripts.joined(went_in, [(second, [b"behind"]), (third, [b"ok", b"e1", 101])])) == PIECE


def test_a_piece_that_was_broken_off_is_not_told_as_one_that_did_not_go_in() -> None:
    _, (_, second) = pieces(2)
    broken = ResponseError("ERR user_script:1: no more")

    with pytest.raises(ResponseError) as told:
        scripts.joined([], [(second, broken)])

    assert told.value is broken


@pytest.mark.parametrize(("listens", "said"), [(True, 8), (False, 1)])
def test_where_nobody_listens_only_the_first_of_a_call_is_said(
    server: Server, store: RedisStore, *, listens: bool, said: int
) -> None:
    with server.client() as client, client.pubsub() as listener:
        if listens:
            listener.psubscribe("*live:*")
            wait_until(lambda: client.pubsub_numpat() == 1, "the server to know who listens")
        client.config_resetstat()

        write(store, *(b"%d" % n for n in range(8)))

        assert client.info("commandstats")["cmdstat_publish"]["calls"] == said


def is_told(one: socket.socket) -> bool:
    """Whether something has come, without a wait."""
    try:
        return bool(one.recv(65_536, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_whoever_sends_a_command_ahead_is_answered_after_the_others_were_told(server: Server, namespace: str) -> None:
    """The server's habit on which ``wire.AHEAD`` counts. Without that command some are told later, if two cores are free."""
    publish = ("EVAL", f"return redis.call('PUBLISH', '{namespace}', 'news')", 0)
    with contextlib.ExitStack() as stack:
        publisher, *seats = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5)) for _ in range(50)
        ]
        for seat in seats:
            seat.sendall(pack([("SUBSCRIBE", namespace)]))
            assert seat.recv(65_536)
        for _ in range(20):
            publisher.sendall(pack([AHEAD, publish]))
            deadline = time.monotonic() + 5
            while not is_told(publisher):  # awake: whoever sleeps is woken after all was written
                assert time.monotonic() < deadline

            assert all(map(is_told, seats))


@pytest.mark.usefixtures("always_cold")
async def test_only_what_tells_others_something_has_a_command_ahead(server: Server, store: RedisStore) -> None:
    write(store, b"warm")
    enqueue(store, b"warm")
    loop_store = store.on_loop()
    await loop_store.seek("main", "e", 0)

    with commands_seen(server) as seen:
        write(store, b"news")
        store.seek("main", "e", 0)
        enqueue(store, b"job")
        await asyncio.gather(loop_store.append(batch(post())), loop_store.append(batch(post())))
        await loop_store.seek("main", "e", 0)
    await loop_store.close()

    told = ["PING", "EVALSHA"]
    assert seen == [*told, "EVALSHA", *told, *told, "EVALSHA", "EVALSHA"]


# -- scripts that the server does not know -----------------------------------------------------------------------------


@pytest.fixture
def forget_scripts(server: Server) -> Iterator[Callable[[], None]]:
    """Have the server know no script, as after a restart."""
    with server.client() as client:
        yield lambda: cast("None", client.script_flush())


def test_every_script_survives_a_server_that_does_not_know_it(
    store: RedisStore, forget_scripts: Callable[[], None]
) -> None:
    route, worker = Route("q", "h", 1), Worker(store)
    steps: list[tuple[Callable[[], Any], Callable[[Any], bool]]] = [
        (lambda: write(store, b"a"), lambda answer: answer[0].position.seq == 1),
        (lambda: write(store, b"b", b"c"), lambda answer: [one.position.seq for one in answer] == [2, 3]),
        (lambda: whisper(store), lambda answer: answer.seq == 3),
        (lambda: store.read("main", "e", 0, 10), lambda answer: answer.top == 3),
        (lambda: store.seek("main", "e", 0), lambda answer: answer.seq == 0),
        (lambda: store.close_log("run:1", "e"), lambda answer: answer.seq == 0),
        (store.logs, lambda answer: answer == ["main", "run:1"]),
        (lambda: store.bind({"h": b"1"}), lambda answer: answer > 0),
        (lambda: store.enqueue(Job("1", route, "", b"1"), 60_000), lambda answer: answer is True),
        (lambda: store.enqueue(Job("2", route, "", b"2"), 60_000), lambda answer: answer is True),
        (lambda: worker.take(1), lambda answer: bodies(answer) == [b"1"]),
        (lambda: worker.settle(worker.take_one()), lambda answer: answer is True),
        (worker.beat, lambda answer: answer.handed_back == 1),
        (lambda: store.poke("@w1"), lambda _: store.wait(["@w1"], 0).rang == "@w1"),
        (lambda: worker.take(1) and store.leave("w1"), lambda answer: answer == 1),
        (lambda: store.flush("q"), lambda answer: answer == 1),
    ]

    for act, holds in steps:
        forget_scripts()
        answer = act()
        assert holds(answer), answer


def test_an_exchange_survives_a_server_that_knows_no_script(
    store: RedisStore, forget_scripts: Callable[[], None]
) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", key="a")
    first = worker.take_one()

    forget_scripts()
    answer = worker.settle_and_take(first)

    assert (answer.settled, bodies(answer.taken)) == ([True], [b"2"])
    assert store.pending("q") == 1


async def test_the_loops_door_survives_a_server_that_knows_no_script(
    store: RedisStore, forget_scripts: Callable[[], None]
) -> None:
    door = store.on_loop()
    try:
        forget_scripts()
        one = await door.append(batch(post()))
        forget_scripts()
        two = await door.append(batch(post()))
        forget_scripts()
        announced = await door.announce("main", "e", [Whisper("global", b"")])
        forget_scripts()
        page = await door.read("main", "e", 0, 10)
    finally:
        await door.close()

    numbers = [answer[0].position.seq for answer in (one, two) if not isinstance(answer, Stale | Ended)]
    assert isinstance(announced, Announced)
    assert (numbers, announced.position.seq, len(page.entries)) == ([1, 2], 2, 2)


# -- a full server -----------------------------------------------------------------------------------------------------


def test_a_full_server_refuses_new_events_and_lets_work_go_on(
    start_server: Callable[..., Server], namespace: str
) -> None:
    server = start_server(maxmemory="12mb", maxmemory_policy="noeviction")
    with opened(RedisStore(server.url, namespace, lease_ms=LEASE_MS)) as store:
        accepted, refusal = fill(store, store.bind({"h": b"1"}))

        assert refusal.outcome == "refused"
        assert "is full" in str(refusal)
        assert store.read("main", "e", 0, 10_000).top == accepted, "a refused event left something"
        with pytest.raises(BusUnavailable) as again:
            store.enqueue(Job("1", Route("q", "h", 1), "", b"x"), 60_000)
        assert again.value.outcome == "refused"

        # Workers come and go, report, and drain.
        store.open()
        version = store.bind({"h": b"1", "h2": b"2"})
        assert whisper(store, b"progress").seq == accepted
        assert store.close_log("run:1", "e").seq == 0
        assert store.seek("main", "e", 0).seq == 0
        assert store.logs() == ["main", "run:1"]
        store.poke("@w1")
        worker = Worker(store)
        assert drain(worker) == accepted
        assert store.dead_count() == 1
        assert store.leave(worker.name) == 0
        assert store.flush("q") == 0

        assert append(store, batch(post(), version=version))[0].position.seq == accepted + 1, (
            "drained, it is as full as before"
        )


def fill(store: RedisStore, version: int) -> tuple[int, BusUnavailable]:
    """Append until the server refuses. How many it took."""
    for accepted in range(10_000):
        one = batch(post(bytes(64 * 1024), jobs=[(HOME, f"k{accepted % 5}")]), version=version)
        try:
            store.append(one)
        except BusUnavailable as refusal:
            return accepted, refusal
    raise AssertionError("the server took everything")


def drain(worker: Worker) -> int:
    """Take, give back, retry, bury and ack until nothing is left."""
    done = 0
    first = worker.take_one()
    assert worker.settle(first, "dead", notes=b"n" * 1000)
    assert worker.settle(worker.take_one(), "back")
    assert worker.settle(worker.take_one(), "retry", 0, b"n" * 1000)
    assert worker.settle(worker.take_one(), "pass", 0, b"n" * 1000)
    worker.take(1)
    while worker.beat(held=[]).handed_back or worker.store.pending("q"):
        for one in worker.take():
            assert worker.settle(one)
            done += 1
    return done + 1


# -- unfit servers, and none -------------------------------------------------------------------------------------------


def test_a_server_that_evicts_is_refused(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server(maxmemory="64mb", maxmemory_policy="allkeys-lru")

    with pytest.raises(UnsafeServer, match="set 'maxmemory-policy noeviction' on it"), opened(of(server, namespace)):
        pass


def test_a_user_who_may_not_ask_for_facts_is_served(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server()
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", f">{SECRET}", "~callboard:*", "&callboard:*", "+@all", "-@admin", "-info"
        )
        client.execute_command("ACL", "SETUSER", "guest", "on", f">{SECRET}", "~other:*", "+@all")

    with opened(RedisStore(f"redis://app:{SECRET}@127.0.0.1:{server.port}/0", namespace, lease_ms=LEASE_MS)) as store:
        assert write(store, b"a")[0].position.seq == 1

    with opened(RedisStore(f"redis://guest:{SECRET}@127.0.0.1:{server.port}/0", namespace, lease_ms=LEASE_MS)) as store:
        refused = failure(lambda: write(store, b"a"))
    assert refused.outcome == "refused"


def of(server: Server, namespace: str) -> RedisStore:
    return RedisStore(server.url, namespace, lease_ms=LEASE_MS)


def failure(act: Callable[[], object]) -> BusUnavailable:
    """The error of an act that must fail: one line, without a secret anywhere in its traceback."""
    with pytest.raises(BusUnavailable) as caught:
        act()
    assert_discreet(caught.value)
    return caught.value


def assert_discreet(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)
    whole = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error)):
        assert "://" not in text.replace("memory://, redis://, rediss:// or unix://", "").replace(
            "redis://localhost:6379/0", ""
        ).replace("rediss://", "")
    assert SECRET not in whole


def test_a_wrong_password_is_told_without_it(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server(requirepass="right")
    store = RedisStore(f"redis://:{SECRET}@127.0.0.1:{server.port}/0", namespace, lease_ms=LEASE_MS)

    at_open, at_append = failure(store.open), failure(lambda: store.append(batch(post())))

    assert (at_open.outcome, at_append.outcome) == (None, "refused")
    assert "refused the user or password" in str(at_append)
    with opened(of(server, namespace)) as right:
        assert right.read("main", "e", 0, 1).top == 0


def test_a_server_that_is_away_is_told(namespace: str) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))  # and does not listen
        port = placeholder.getsockname()[1]
        store = RedisStore(f"redis://user:{SECRET}@127.0.0.1:{port}/0", namespace, lease_ms=LEASE_MS)

        at_open, at_append = failure(store.open), failure(lambda: store.append(batch(post())))

    assert (at_open.outcome, at_append.outcome) == (None, "refused")
    assert "cannot be reached" in str(at_append)
    assert f"127.0.0.1:{port}" in str(at_append)


def test_a_port_that_speaks_another_protocol_is_told(namespace: str) -> None:
    with web_server() as port:
        store = RedisStore(f"redis://user:{SECRET}@127.0.0.1:{port}/0", namespace, lease_ms=LEASE_MS)
        without_password = RedisStore(f"redis://127.0.0.1:{port}/0", namespace, lease_ms=LEASE_MS)

        errors = [failure(store.open), failure(without_password.open)]
        at_append = failure(lambda: without_password.append(batch(post())))

    assert all("does not speak the Redis protocol" in str(error) for error in [*errors, at_append])
    assert at_append.outcome == "refused"


@contextmanager
def web_server() -> Iterator[int]:
    """Something that answers as HTTP servers do."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, name="web server")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


async def test_a_server_that_hangs_costs_two_seconds(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server()
    with opened(of(server, namespace)) as store, closing(of(server, namespace)) as never_connected:
        door = store.on_loop()
        try:
            await door.append(batch(post()))
            server.freeze()
            start = time.perf_counter()
            errors = await asyncio.gather(
                asyncio.to_thread(store.append, batch(post())),
                asyncio.to_thread(never_connected.append, batch(post())),
                door.append(batch(post())),
                return_exceptions=True,
            )
            took_s = time.perf_counter() - start
        finally:
            server.thaw()
            await door.close()

    assert 1.5 < took_s < 5
    for error in errors:
        assert isinstance(error, BusUnavailable)
        assert error.outcome == "unknown"
        assert str(error).endswith("does not answer")
        assert_discreet(error)


def test_a_server_that_comes_back_is_used_again(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server(appendonly=True, appendfsync="always")
    with opened(of(server, namespace)) as store:
        write(store, b"a")
        server.restart()

        numbers = wait_until(lambda: retried(store), "an append on the server that came back")

        assert numbers == 2
        assert store.wait(["nothing"], 0).rang is None


def retried(store: RedisStore) -> int:
    try:
        return write(store, b"b")[0].position.seq
    except BusUnavailable:
        return 0


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://sam:s3cret@cactus:port/0",
        "redis://sam:s3cret@cactus:99999/0",
        "redis://sam:s3cret@cactus:-1/0",
        "redis://sam:s3cret@[host/0",
        "redis://sam:pa#s3cret@cactus:6379/0",
        "redis://sam:12#s3cret@cactus:6379/0",
        "redis://sam:pa/s3cret@cactus:6379/0",
        "redis://sam:12/s3cret@cactus:6379/0",
        "redis://sam:pa?s3cret@cactus:6379/0",
        "redis://sam:12?s3cret@cactus:6379/0",
        "redis://:12?s3cret=1@cactus:6379/0",
        "http://sam:s3cret@cactus:6379/0",
        "s3cret",
        "redis:s3cret",
        "redis://cactus:6379/0?s3cret=1",
        "redis://cactus:6379/0?db=s3cret",
        "redis://cactus:6379/0?ssl_cert_reqs=s3cret",
        "rediss://cactus:6379/0?ssl_s3cret=1",
        "redis://cactus:6379/s3cret",
        "redis://cactus:6379/0/s3cret",
        "redis://cactus:6379/999999",
        "redis://cactus:6379/-1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        RedisStore(url, "ns", lease_ms=LEASE_MS)

    assert_discreet(caught.value)
    assert not [part for part in ("sam", "cactus", "99999") if part in str(caught.value)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0, "tls": False}),
        ("redis://cactus", {"host": "cactus", "port": 6379, "db": 0, "tls": False}),
        ("redis://cactus:1/3", {"host": "cactus", "port": 1, "db": 3, "tls": False}),
        ("redis://cactus/3?db=4", {"host": "cactus", "port": 6379, "db": 4, "tls": False}),
        ("redis://[::1]:7/0", {"host": "::1", "port": 7, "db": 0, "tls": False}),
        (
            "rediss://u:p%23%2F%40@cactus/0?ssl_check_hostname=false&ssl_ca_certs=/ca",
            {
                "host": "cactus",
                "port": 6379,
                "db": 0,
                "tls": True,
                "username": "u",
                "password": "p#/@",
                "ssl_check_hostname": False,
                "ssl_ca_certs": "/ca",
            },
        ),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "db": 2}),
        ("unix://:pw@/run/s.sock", {"path": "/run/s.sock", "db": 0, "password": "pw"}),
    ],
)
def test_the_parts_of_a_url_are_read(url: str, expected: dict[str, Any]) -> None:
    with closing(RedisStore(url, "ns", lease_ms=LEASE_MS)) as store:
        assert store.link.options == expected


def test_options_for_tls_are_ones_that_both_clients_know(namespace: str) -> None:
    url = (
        "rediss://127.0.0.1:1/0?ssl_ca_certs=a&ssl_ca_path=b&ssl_certfile=c&ssl_cert_reqs=none"
        "&ssl_check_hostname=no&ssl_keyfile=d&ssl_password=e"
    )
    store = RedisStore(url, namespace, lease_ms=LEASE_MS)

    error = failure(store.open)

    assert "cannot be reached" in str(error)
    known = inspect.signature(redis.asyncio.SSLConnection).parameters
    assert {name for name in store.link.options if name.startswith("ssl_")} <= set(known)


def test_a_unix_socket_is_connected_to(start_server: Callable[..., Server], namespace: str, tmp_path: Any) -> None:
    path = tmp_path / "redis socket"
    start_server(unixsocket=str(path))

    with opened(RedisStore(f"unix://{str(path).replace(' ', '%20')}", namespace, lease_ms=LEASE_MS)) as store:
        assert write(store, b"a")[0].position.seq == 1


def test_no_repr_shows_a_secret() -> None:
    with closing(RedisStore(f"redis://user:{SECRET}@cactus:1234/5", "ns", lease_ms=LEASE_MS)) as store:
        shown = [repr(store), str(store), repr(store.link), repr(store.on_loop()), store.link.where]

    for text in shown:
        assert SECRET not in text
        assert "user" not in text
        assert "cactus:1234" in text


# -- keys and waits ----------------------------------------------------------------------------------------------------


async def test_all_keys_stand_under_the_namespace_in_one_slot(
    server: Server, store: RedisStore, namespace: str
) -> None:
    prefix = f"callboard:{{{namespace}}}:"
    worker = Worker(store)
    version = store.bind({"h": b"1"})
    append(store, batch(post(jobs=[(HOME, "a}b{c"), (HOME, "")]), version=version, log="run:1"))
    enqueue(store, b"dead", b"later", b"held", b"flying", key="{k}")
    enqueue(store, b"", due=NEVER)
    for verdict in ("dead", "pass", "retry"):
        worker.settle(next(one for one in worker.take() if one.key == "{k}"), verdict, 3_600_000, b"notes")
        worker.beat(held=[])
    worker.take()
    whisper(store)
    store.poke("@w1")
    door = store.on_loop()

    async with aclosing(cast("AsyncGenerator[Any]", door.subscribe("run:1"))) as heard:
        await anext(heard)
        with server.client() as client:
            keys = {key.decode() for key in client.scan_iter(count=1000)}
            channels = {channel.decode() for channel in client.pubsub_channels()}
        await door.close()

    kinds = {key.removeprefix(prefix).partition(":")[0] for key in keys}
    everything = "bindings dead due held jobs lane letters log logs meta pending ready seen sent top wake workers"
    assert kinds >= set(everything.split()) - {"ready"}
    assert all(name.startswith(prefix) for name in keys | channels)
    assert len({key_slot(name.encode()) for name in keys | channels}) == 1
    assert channels == {f"{prefix}live:run:1"}


def test_two_namespaces_do_not_meet(store: RedisStore, redis_url: str, namespace: str) -> None:
    with opened(RedisStore(redis_url, f"{namespace}2", lease_ms=LEASE_MS)) as other:
        same = post(b"a", jobs=[(HOME, "")])
        append(store, batch(same))

        assert (other.pending("q"), other.queues(), other.logs()) == (0, [], [])
        assert Worker(other).take() == []
        assert append(other, batch(same))[0].duplicate is False
        assert bodies(Worker(store).take()) == [b"ea"]


def test_ids_are_the_only_keys_that_come_and_go(server: Server, store: RedisStore, namespace: str) -> None:
    """What is finished leaves nothing behind but its id, and that has an expiry."""
    worker = Worker(store)
    append(store, batch(post(jobs=[(HOME, "a"), (HOME, "")])))
    enqueue(store, b"1", b"2", key="a")
    for _ in range(2):
        for one in worker.take():
            worker.settle(one, "retry", notes=b"notes")
        worker.beat(held=[])
    worker.take()
    worker.beat(lease_ms=1, received=0)
    assert wait_until(lambda: Worker(store, "w2").beat().recovered, "a lease to run out") == 2
    worker.drain()
    for name in ("w1", "w2"):
        store.leave(name)
    while store.wait(["q|h", "$due"], 0).rang:
        pass

    with server.client() as client:
        left = {
            key.decode().removeprefix(f"callboard:{{{namespace}}}:"): client.pttl(key) for key in client.scan_iter()
        }

    ids = {name: left.pop(name) for name in list(left) if name.startswith(("seen:", "sent:"))}
    assert len(ids) == 3
    assert all(0 < cast("int", ttl_ms) <= 60_000 for ttl_ms in ids.values())
    assert cast("int", left.pop("log:main")) > 0
    assert set(left) == {"meta", "logs", "top:main", "pending"}


def test_a_workers_own_ring_ends_by_itself(server: Server, store: RedisStore, namespace: str) -> None:
    store.poke("@gone")
    store.poke("q|h")

    with server.client() as client:
        ttl_s = [client.ttl(f"callboard:{{{namespace}}}:wake:{name}") for name in ("@gone", "q|h")]

    assert 0 < cast("int", ttl_s[0]) <= 60
    assert ttl_s[1] == -1


def test_a_long_wait_is_made_of_shorter_ones(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "LONGEST_WAIT_S", 0.02)
    start = time.perf_counter()

    assert store.wait(["q|h"], 0.2).rang is None
    assert time.perf_counter() - start >= 0.19

    ring = threading.Timer(0.1, store.poke, ["q|h"])
    ring.start()
    assert store.wait(["q|h"], 10).rang == "q|h"
    ring.join()


def test_the_scripts_run_on_a_cluster(start_server: Callable[..., Server], namespace: str) -> None:
    """One node that owns every slot: it refuses a script that touches another slot than its declared key's."""
    with socket.socket() as probe:  # by default a node's second port is its first + 10,000, and that may be taken
        probe.bind(("127.0.0.1", 0))
        cluster_port = probe.getsockname()[1]
    server = start_server(cluster_enabled="yes", cluster_port=cluster_port)
    with server.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the cluster to be up")
    for n, check in enumerate([*LOG_CHECKS, *QUEUE_CHECKS]):
        if any(
            word in getattr(check, "__name__", "") for word in ("flush", "dead", "retry", "cap", "stale", "leaving")
        ):
            with opened(RedisStore(server.url, f"{namespace}.{n}", lease_ms=LEASE_MS)) as store:
                check(store)


async def test_a_frame_is_what_the_wire_page_says(server: Server, store: RedisStore, namespace: str) -> None:
    """``epoch.seq token prev topics``, a newline, the body: read here without our own decoder."""
    door = store.on_loop()
    with server.client() as client, client.pubsub() as listener:
        listener.subscribe(f"callboard:{{{namespace}}}:live:main")
        assert listener.get_message(timeout=5) is not None
        first, second = post(b"one\ntwo\x00"), post(b"")
        append(store, batch(first, second, epoch="abc"))
        await door.announce("main", "x", [Whisper("agent:a agent:b", b"live")])
        heard = [wait_until(lambda: listener.get_message(timeout=1), "a frame")["data"] for _ in range(3)]
    await door.close()

    assert heard == [
        b"abc.1 %s 0 global\none\ntwo\x00" % first.token.encode(),
        b"abc.2 %s %s global\n" % (second.token.encode(), first.token.encode()),
        b"abc.2 %s ~ agent:a agent:b\nlive" % second.token.encode(),
    ]


# -- what a server's absence, and its forgetting, must not cost ----------------------------------------------------------


@pytest.mark.parametrize(
    ("silent_ms", "recovered"), [(2 * CALM_LEASE_MS, 0), (0, 1)], ids=["server away", "worker silent"]
)
def test_time_in_which_nobody_could_beat_ends_no_lease(
    server: Server, store: RedisStore, namespace: str, silent_ms: int, recovered: int
) -> None:
    alive, sweeping = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", key="a")
    held = alive.take_one()
    alive.beat([held])
    sweeping.beat()
    prefix = f"callboard:{{{namespace}}}:"
    with server.client() as client:  # as if two leases had passed since the worker's beat, and since anybody's
        client.zincrby(f"{prefix}workers", -2 * CALM_LEASE_MS, alive.name)
        client.hincrby(f"{prefix}meta", "b", -silent_ms)
        client.hincrby(f"{prefix}born", sweeping.name, -silent_ms)

    beat = sweeping.beat()

    assert beat.recovered == recovered
    assert alive.settle(held) == (not recovered)


@pytest.mark.parametrize("others", ["all are dead", "one was there"])
def test_to_a_newcomer_a_silence_is_no_outage_unless_somebody_was_there(
    server: Server, store: RedisStore, namespace: str, others: str
) -> None:
    """The only worker is killed and started again some seconds later: its jobs wait for no second lease."""
    witness = others == "one was there"
    silent, newcomer = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", key="a")
    held = silent.take_one()
    silent.beat([held])
    prefix = f"callboard:{{{namespace}}}:"
    with server.client() as client:
        client.zincrby(f"{prefix}workers", -2 * CALM_LEASE_MS, silent.name)
        client.hincrby(f"{prefix}meta", "b", -2 * CALM_LEASE_MS)
        client.hincrby(f"{prefix}born", silent.name, -3 * CALM_LEASE_MS)

    first = newcomer.beat()
    if witness:
        silent.beat([held])
    second = newcomer.beat()

    assert (first.recovered, second.recovered) == (0, 0 if witness else 1)
    assert silent.settle(held) == witness


class Then(list[bytes]):
    """Replies that were lost, and what happens on the server as one is, before the connection breaks."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def append(self, reply: bytes) -> None:
        super().append(reply)
        self._act()


@pytest.mark.parametrize("name", ["append", "pieces", "enqueue"])
def test_what_may_have_arrived_is_not_called_refused_by_a_server_that_forgot_its_scripts(
    start_server: Callable[..., Server], namespace: str, name: str
) -> None:
    server = start_server()
    with server.client() as client, Proxy(server.port) as proxy:

        def forget_and_fill_up() -> None:
            client.script_flush()
            client.config_set("maxmemory", 1)

        store = RedisStore(f"redis://127.0.0.1:{proxy.port}/0", namespace, lease_ms=LEASE_MS)
        bus = Bus(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace, deadline_s=0.2)
        bus.publish_sync(Noted(n=0))
        enqueue(store, b"warm")
        queued = partial(store.enqueue, Job("again", Route("q", "h", 1), "", b"job", ""), 60_000)
        many = [Publication(Noted(n=n), id=f"again {n}") for n in range(2 * PIECE)]
        published = partial(bus.publish_many_sync, many if name == "pieces" else many[:1])
        act = queued if name == "enqueue" else published
        drop = Drop(calling("append" if name == "pieces" else name), lost=Then(forget_and_fill_up))
        proxy.arm(drop)

        with pytest.raises(BusUnavailable) as told:
            act()

        client.config_set("maxmemory", 0)
        assert drop.hits == 1
        assert told.value.outcome == "unknown"
        if name == "enqueue":
            assert act() is False
        else:
            assert published()[0].duplicate
        bus.close_sync()
        store.close()


def test_a_large_publish_many_keeps_its_order_while_scripts_are_forgotten(server: Server, namespace: str) -> None:
    bus, other = Bus(server.url, namespace=namespace), Bus(server.url, namespace=namespace)
    ended = threading.Event()

    def forget() -> int:
        flushes = 0
        with server.client() as client:
            while not ended.is_set():
                client.script_flush()
                other.publish_sync({"type": "test.other"}, log="other")  # which loads the script again
                flushes += 1
        return flushes

    with ThreadPoolExecutor(1) as threads:
        flushing = threads.submit(forget)
        orders = []
        for _ in range(25):
            receipts = bus.publish_many_sync([Publication({"type": "test.n", "n": n}) for n in range(1200)])
            orders.append([receipt.position.seq for receipt in receipts])
        ended.set()
    bus.close_sync()
    other.close_sync()

    assert flushing.result() > 10
    assert all(order == list(range(order[0], order[0] + 1200)) for order in orders)


def test_closing_ends_a_rest_on_a_server_that_hangs(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server()
    store = RedisStore(server.url, namespace, lease_ms=LEASE_MS)
    store.open()
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        resting = pool.submit(store.wait, ["q|h"], 5.0)
        wait_until(lambda: client.info("clients")["blocked_clients"] == 1, "it to rest")
        server.freeze()
        store.close()

        with pytest.raises(BusUnavailable):
            resting.result(1)
        server.thaw()
