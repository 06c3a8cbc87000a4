"""The bytes between us and a server: whatever comes, in whatever pieces."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from dramatiq.threading import raise_thread_exception
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse, NoScriptError, OutOfMemoryError, ResponseError

from bus.store.redis.lines import Lines, Turns
from bus.store.redis.wire import Wire, pack
from tests.waiting import wait_until


class Connection:
    """As redis-py's, already connected."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.closed = False

    def connect(self) -> None: ...

    def disconnect(self) -> None:
        self.closed = True
        self._sock.close()


class Veiled(socket.socket):
    """A socket of another kind, as TLS has: whether something has come is not the kernel's to say."""


@contextmanager
def connected(timeout_s: float = 5) -> Iterator[tuple[Wire, Connection, socket.socket]]:
    near, far = socket.socketpair()
    near.settimeout(timeout_s)
    connection = Connection(near)
    try:
        yield Wire(connection), connection, far
    finally:
        near.close()
        far.close()


def encoded(answer: Any) -> bytes:
    match answer:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % answer
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(answer), answer)
        case _:
            return b"*%d\r\n" % len(answer) + b"".join(map(encoded, answer))


ANSWERS = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40), lambda inner: st.lists(inner, max_size=5)
)


@given(answers=st.lists(ANSWERS, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_answers_are_read_in_whatever_pieces_they_come(answers: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(encoded, answers))
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    with connected() as (wire, _, far):

        def trickle() -> None:
            for start, end in pairwise(places):
                far.sendall(data[start:end])

        sender = threading.Thread(target=trickle)
        sender.start()
        found = wire.ask([("PING",)] * len(answers))
        sender.join()

    assert found == answers


def test_a_large_answer_and_a_large_command_are_one_piece() -> None:
    large = bytes(range(256)) * 20_000
    with connected() as (wire, _, far):
        received = bytearray()

        def serve() -> None:
            wanted = len(pack([("SET", "key", large)]))
            while len(received) < wanted:
                received.extend(far.recv(1 << 20))
            far.sendall(encoded(large))

        server = threading.Thread(target=serve)
        server.start()
        assert wire.ask([("SET", "key", large)]) == [large]
        server.join()
        far.sendall(b"+OK\r\n*-1\r\n")
        assert wire.ask([(), ()]) == [b"OK", None]

    assert received == pack([("SET", "key", large)])


def test_commands_travel_as_arrays_of_texts() -> None:
    assert pack([("SET", "k\u00e9y", 12), (b"\r\n\x00",)]) == (
        b"*3\r\n$3\r\nSET\r\n$4\r\nk\xc3\xa9y\r\n$2\r\n12\r\n*1\r\n$3\r\n\r\n\x00\r\n"
    )


def test_a_socket_that_cannot_be_looked_at_is_read_as_well() -> None:
    near, far = socket.socketpair()
    with near, far, Veiled(fileno=near.detach()) as veiled:
        far.sendall(b"$2\r\nhi\r\n:1\r\n")

        assert Wire(Connection(veiled)).ask([("A",), ("B",)]) == [b"hi", 1]


def test_a_late_answer_is_waited_for_asleep() -> None:
    with connected(timeout_s=0.5) as (wire, _, _far):
        began = time.thread_time()
        with pytest.raises(TimeoutError):
            wire.ask([("A",)])
        busy_s = time.thread_time() - began

    assert busy_s < 0.1


@pytest.mark.parametrize("others", [0, 1])
def test_who_asks_alone_looks_out_for_the_answer_and_beside_others_it_sleeps(
    monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr("bus.store.redis.pipe.LOOK_S", 0.2)
    monkeypatch.setattr("bus.store.redis.pipe.WARM_S", 1e9)
    (near, far), (ours, silent) = socket.socketpair(), socket.socketpair()
    ours.settimeout(0.3)
    connections = [Connection(near)] * others + [Connection(ours)]
    lines = Lines(iter(connections).__next__, most=4, patience_s=5)
    with near, far, ours, silent:
        asking = [threading.Thread(target=lines.ask, args=([("A",)],)) for _ in range(others)]
        for thread in asking:
            thread.start()
            assert far.recv(100)  # it waits for its answer now
        began = time.thread_time()
        with pytest.raises(TimeoutError):
            lines.ask([("B",)])
        busy_s = time.thread_time() - began
        far.sendall(b"$2\r\nhi\r\n")
        for thread in asking:
            thread.join(5)
        lines.close()

    assert (busy_s > 0.02) is (others == 0)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-NOSCRIPT No matching script.\r\n", NoScriptError),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", OutOfMemoryError),
        (b"-ERR unknown command\r\n", ResponseError),
        (b"-\r\n", ResponseError),
    ],
)
def test_an_error_is_an_answer_like_any_other(line: bytes, kind: type[Exception]) -> None:
    with connected() as (wire, connection, far):
        far.sendall(line + b":1\r\n")
        error, one = wire.ask([("A",), ("B",)])

    assert type(error) is kind
    assert str(error) == line[1:-2].decode()
    assert (one, connection.closed) == (1, False)


def test_a_connection_that_ends_inside_an_answer_is_lost() -> None:
    with connected() as (wire, connection, far):
        far.sendall(b"*2\r\n$4\r\nab")
        far.close()
        with pytest.raises(LostConnection):
            wire.ask([("A",)])

    assert connection.closed


def test_a_server_that_says_nothing_in_time_leaves_no_half_read_connection() -> None:
    with connected(timeout_s=0.01) as (wire, connection, far):
        far.sendall(b"*2\r\n:1\r\n")
        with pytest.raises(TimeoutError):
            wire.ask([("A",)])

    assert connection.closed


@pytest.mark.parametrize("line", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*many\r\n", b"$\r\n"])
def test_what_is_no_redis_server_is_told_so(line: bytes) -> None:
    with connected() as (wire, connection, far):
        far.sendall(line)
        with pytest.raises(InvalidResponse):
            wire.ask([("A",)])

    assert connection.closed


@pytest.mark.parametrize("patience_s", [0.0, 0.0002, 5.0])
def test_nobody_waits_for_a_turn_for_longer_than_it_has_patience_and_none_is_lost(patience_s: float) -> None:
    """With the shortest patience, many give up at the very moment at which a turn becomes free."""
    turns, lock = Turns(3), threading.Lock()
    inside: list[int] = []
    most: list[int] = []
    had: list[bool] = []

    def work(me: int) -> None:
        for _ in range(300):
            came = turns.take(patience_s)
            if came:
                inside.append(me)
                most.append(len(inside))
                inside.remove(me)
                turns.give_back()
            with lock:
                had.append(came)

    threads = [threading.Thread(target=work, args=(n,), name=f"taker {n}") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert (len(had), len(turns.free), len(turns.line)) == (2_400, 3, 0)
    assert max(most) <= 3
    assert patience_s < 1 or all(had)


def test_who_finds_no_turn_is_told_so_after_its_patience_and_served_when_one_is_free() -> None:
    turns = Turns(1)
    assert turns.take(0)
    began = time.perf_counter()
    assert not turns.take(0.02)
    assert time.perf_counter() - began >= 0.02

    came: list[bool] = []
    waiting = [threading.Thread(target=lambda: came.append(turns.take(10)), name=f"taker {n}") for n in range(3)]
    for thread in waiting:
        thread.start()
    for n in range(3):
        turns.give_back()
        wait_until(lambda n=n: len(came) == n + 1, "one of them to be served")  # type: ignore[misc]
    for thread in waiting:
        thread.join(10)

    assert came == [True, True, True]
    assert not turns.take(0)


def test_a_turn_that_becomes_free_before_one_stands_in_line_is_not_missed() -> None:
    turns = Turns(1)

    class Line(deque[Any]):
        def append(self, one: Any) -> None:
            turns.free.append(None)  # its holder saw nobody in line
            super().append(one)

    turns.line = Line()
    assert turns.take(0)

    began = time.perf_counter()
    assert turns.take(5)
    assert time.perf_counter() - began < 1
    assert (len(turns.free), len(turns.line)) == (0, 0)


def test_who_waits_for_a_connection_has_it_as_soon_as_it_is_free() -> None:
    (near, far) = socket.socketpair()
    lines = Lines(iter([Connection(near)]).__next__, most=1, patience_s=5)
    with near, far, ThreadPoolExecutor(2) as pool:
        first = pool.submit(lines.ask, [("A",)])
        assert b"A" in far.recv(100)
        second = pool.submit(lines.ask, [("B",)])
        wait_until(lambda: len(lines._turns.line) == 1, "the second to wait")  # noqa: SLF001 - to know that it waits
        began = time.perf_counter()
        far.sendall(b"+one\r\n")
        assert b"B" in far.recv(100)
        far.sendall(b"+two\r\n")

        assert (first.result(5), second.result(5)) == ([b"one"], [b"two"])
        assert time.perf_counter() - began < 2
        lines.close()


def test_a_thread_that_is_struck_while_it_waits_takes_no_turn_along() -> None:
    """As by a time limit."""

    class Struck(BaseException):
        pass

    def wait() -> None:
        with suppress(Struck):
            if turns.take(10):
                turns.give_back()

    turns = Turns(1)
    assert turns.take(0)
    for number in range(50):
        threads = [threading.Thread(target=wait, name=f"taker {number} {n}") for n in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(turns.line) == 3, "all to wait")
        if number % 2:
            turns.give_back()
        raise_thread_exception(threads[0].ident, Struck)
        if not number % 2:
            turns.give_back()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads), "somebody waits beside a free turn"
        assert (len(turns.free), len(turns.line)) == (1, 0)
        assert turns.take(0)


def test_who_is_struck_as_it_stands_in_line_leaves_nothing_there() -> None:
    turns = Turns(1)

    class Line(deque[Any]):
        def append(self, one: Any) -> None:
            super().append(one)
            raise KeyboardInterrupt

    turns.line = Line()
    assert turns.take(0)

    with pytest.raises(KeyboardInterrupt):
        turns.take(5)
    turns.give_back()

    assert (len(turns.free), len(turns.line)) == (1, 0)


def test_who_gives_back_and_takes_again_at_once_is_not_always_ahead() -> None:
    turns, ending = Turns(2), threading.Event()

    def work() -> None:
        while not ending.is_set():
            assert turns.take(10)
            turns.give_back()

    greedy = [threading.Thread(target=work, name=f"greedy {n}") for n in range(6)]
    for thread in greedy:
        thread.start()
    try:
        for _ in range(200):
            assert turns.take(5), "it had no turn for 5 s beside others that had thousands"
            turns.give_back()
    finally:
        ending.set()
        for thread in greedy:
            thread.join(10)
