"""The queue between a worker's consumers and its threads: nothing is lost, and nobody waits beside an item."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from types import FrameType
from typing import Any, NamedTuple

import pytest
from dramatiq.threading import raise_thread_exception

from tests.waiting import wait_until
from workers.loop.work_queue import WorkQueue

MANY = 2_000


class Item(NamedTuple):
    """As Dramatiq's: ordered by its priority."""

    priority: int
    message: Any


class Loop:
    """Runs what is said to be for it, or rather keeps it."""

    def __init__(self) -> None:
        self.begun: list[Any] = []

    def is_for(self, message: Any) -> bool:
        return bool(message == "async")

    def begin(self, message: Any) -> None:
        self.begun.append(message)


class Door:
    """Where a thread stands by, and is handed what a test gives it."""

    def __init__(self, *, open_to: bool = True) -> None:
        self.open_to = open_to
        self.waits = 0
        self.gate = threading.Event()
        self.gate.set()
        self.queue: WorkQueue | None = None
        self._given: Queue[Item | None] = Queue()

    def wait(self, timeout_s: float | None) -> bool:
        if not self.open_to:
            return False
        self.waits += 1
        try:
            self.gate.wait(10)
            item = self._given.get(timeout=timeout_s)
        except Empty:
            return True
        finally:
            self.waits -= 1
        if item is not None and self.queue is not None:
            self.queue.put(item)
        return True

    def give(self, item: Item) -> None:
        self._given.put(item)

    def call(self) -> None:
        self._given.put(None)

    def close(self) -> None:
        self.open_to = False
        self.call()


def with_door(door: Door, loop: Loop | None = None) -> WorkQueue:
    door.queue = WorkQueue(loop or Loop(), door)
    return door.queue


@pytest.fixture(params=[True, False], ids=["one stands by", "nobody stands by"])
def queue(request: pytest.FixtureRequest) -> WorkQueue:
    return with_door(Door(open_to=request.param))


@contextmanager
def getting(queue: WorkQueue, got: list[Any], threads: int, timeout_s: float) -> Iterator[None]:
    """Threads that get items, as a worker's do: each time for so long, until the end."""
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            try:
                item = queue.get(timeout=timeout_s)
            except Empty:
                continue
            got.append(item)
            queue.task_done()

    running = [threading.Thread(target=work, name=f"getter {n}") for n in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in running:
            deadline = time.monotonic() + 10
            while thread.is_alive() and time.monotonic() < deadline:
                queue.muster()  # or it would wait for its time
                thread.join(0.05)


def test_what_waits_comes_by_its_priority(queue: WorkQueue) -> None:
    for priority in (2, 0, 1):
        queue.put(Item(priority, None))

    assert (queue.qsize(), queue.unfinished_tasks) == (3, 3)
    assert [queue.get().priority for _ in range(3)] == [0, 1, 2]
    assert (queue.qsize(), queue.unfinished_tasks) == (0, 3)


def test_who_waits_elsewhere_comes_to_stand_by_when_mustered() -> None:
    door = Door(open_to=False)
    queue, got = with_door(door), list[Any]()
    with getting(queue, got, threads=2, timeout_s=60):
        wait_until(lambda: len(queue._waiting) == 2, "both to wait")  # noqa: SLF001 - there is no other door to it
        door.open_to = True
        queue.muster()
        wait_until(lambda: door.waits == 1, "one to stand by")
        queue.muster()  # for nobody: there is one
        door.give(Item(0, "first"))
        wait_until(lambda: got == [Item(0, "first")], "it to be served")
        wait_until(lambda: door.waits == 1, "one to stand by again")
        assert len(queue._waiting) == 1  # noqa: SLF001 - as above
        queue.put(Item(0, "second"))
        wait_until(lambda: len(got) == 2, "the other one to be served")
        door.close()


def test_what_runs_elsewhere_reaches_no_thread_and_counts_all_the_same() -> None:
    loop = Loop()
    queue = with_door(Door(), loop)

    queue.put(Item(0, "async"))

    assert (loop.begun, queue.qsize(), queue.unfinished_tasks) == (["async"], 0, 1)
    with pytest.raises(Empty):
        queue.get_nowait()


def test_an_empty_one_says_so(queue: WorkQueue) -> None:
    with pytest.raises(Empty):
        queue.get_nowait()
    begun = time.perf_counter()
    with pytest.raises(Empty):
        queue.get(timeout=0.02)
    assert time.perf_counter() - begun >= 0.02

    queue.put(Item(0, "later"))
    assert queue.get(timeout=0) == Item(0, "later"), "it went to somebody who does not wait any more"


def test_a_thread_that_waits_for_ever_is_woken(queue: WorkQueue) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()), name="getter")
    thread.start()

    queue.put(Item(0, "one"))
    thread.join(10)

    assert got == [Item(0, "one")]
    assert queue.qsize() == 0


def test_a_thread_that_is_ended_while_it_waits_takes_no_item_along(queue: WorkQueue) -> None:
    """As by a time limit that strikes when its job has just ended."""

    class Struck(BaseException):
        pass

    got: list[Any] = []

    def wait() -> None:
        try:
            while True:
                try:
                    got.append(queue.get(timeout=0.0005))
                except Empty:
                    continue
        except Struck:
            pass

    for number in range(100):
        thread = threading.Thread(target=wait, name=f"doomed {number}")
        thread.start()
        if number % 2:
            queue.put(Item(0, number))
        raise_thread_exception(thread.ident, Struck)
        thread.join(10)
        assert not thread.is_alive()
        queue.put(Item(1, number))
        while queue.qsize():
            got.append(queue.get(timeout=0))
        assert Item(1, number) in got, "it was handed to who had gone"


@pytest.mark.parametrize("moment", ["c_call", "c_return"])
def test_a_thread_that_is_struck_as_it_takes_an_item_leaves_it_where_it_was(queue: WorkQueue, moment: str) -> None:
    class Struck(BaseException):
        pass

    def strike(frame: FrameType, event: str, function: object) -> None:
        if event == moment and frame.f_code is WorkQueue.get.__code__ and "popleft" in repr(function):
            raise Struck

    for number in range(3):
        queue.put(Item(0, number))
    sys.setprofile(strike)
    try:
        with pytest.raises(Struck):
            queue.get()
    finally:
        sys.setprofile(None)

    assert [queue.get(timeout=0).message for _ in range(3)] == [0, 1, 2]


def test_a_wait_cannot_end_before_it_begins(queue: WorkQueue) -> None:
    with pytest.raises(ValueError, match="timeout"):
        queue.get(timeout=-1)


@pytest.mark.parametrize("timeout_s", [0.0, 0.00005, 0.05])
def test_no_item_is_lost_or_comes_twice_whenever_a_wait_ends(queue: WorkQueue, timeout_s: float) -> None:
    """With the shortest waits, many end at the very moment at which an item comes."""
    got: list[Any] = []
    with getting(queue, got, 6, timeout_s):
        for number in range(MANY):
            queue.put(Item(0, number))
            if number % 10 == 0:
                queue.join()  # so that all of them wait again
        queue.join()

    assert Counter(item.message for item in got) == Counter(range(MANY))
    assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)


# -- the one that stands by --------------------------------------------------------------------------------------------


@contextmanager
def threads_that_wait(queue: WorkQueue, door: Door, many: int, got: dict[str, Any]) -> Iterator[None]:
    """The first of them stands by. Each gets one item, by its thread's name."""

    def work() -> None:
        while True:
            try:
                got[threading.current_thread().name] = queue.get(timeout=10).message
            except Empty:
                continue  # it was called for nothing
            return

    threads = [threading.Thread(target=work, name=f"getter {n}") for n in range(many)]
    already = door.waits + len(queue._waiting)  # noqa: SLF001 - there is no other door to it
    for n, thread in enumerate(threads):
        thread.start()
        wait_until(lambda: door.waits + len(queue._waiting) > already + n, "it waits")  # noqa: B023, SLF001 - there is no other door to it
    yield
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_what_is_handed_to_the_one_that_stands_by_is_its_own_whoever_else_waits() -> None:
    door, got = Door(), dict[str, Any]()
    queue = with_door(door)

    with threads_that_wait(queue, door, 3, got):
        door.give(Item(0, "handed over"))
        wait_until(lambda: len(got) == 1, "one has an item")
        assert got == {"getter 0": "handed over"}
        queue.put(Item(0, "a"))
        queue.put(Item(0, "b"))

    assert queue.unfinished_tasks == 3


def test_the_one_that_stands_by_is_left_there_while_another_waits() -> None:
    door, got = Door(), dict[str, Any]()
    queue = with_door(door)

    with threads_that_wait(queue, door, 2, got):
        queue.put(Item(0, "first"))
        wait_until(lambda: len(got) == 1, "one has an item")
        assert got == {"getter 1": "first"}
        assert door.waits == 1
        queue.put(Item(0, "second"))

    assert got["getter 0"] == "second"


def test_the_call_is_heard_by_the_one_that_is_served_though_it_was_not_listening_yet() -> None:
    door, got = Door(), dict[str, Any]()
    queue = with_door(door)
    door.gate.clear()

    with threads_that_wait(queue, door, 1, got):
        queue.put(Item(0, "first"))
        with threads_that_wait(queue, door, 1, other := dict[str, Any]()):
            assert door.waits == 1, "the call could be taken for that one's"
            door.gate.set()
            wait_until(lambda: got == {"getter 0": "first"}, "it to come back")
            queue.put(Item(0, "second"))

    assert other == {"getter 0": "second"}


def test_what_runs_elsewhere_leaves_the_one_that_stands_by_where_it_is() -> None:
    door, got, loop = Door(), dict[str, Any](), Loop()
    queue = with_door(door, loop)

    with threads_that_wait(queue, door, 1, got):
        door.give(Item(0, "async"))
        wait_until(lambda: loop.begun == ["async"], "it runs")
        door.give(Item(0, "sync"))

    assert got == {"getter 0": "sync"}


def test_where_nobody_can_stand_by_any_more_the_thread_waits_as_the_others_do() -> None:
    door, got = Door(), dict[str, Any]()
    queue = with_door(door)

    with threads_that_wait(queue, door, 1, got):
        door.close()
        wait_until(lambda: door.waits == 0, "it waits elsewhere")
        assert got == {}
        queue.put(Item(0, "late"))

    assert got == {"getter 0": "late"}


def test_who_has_gone_makes_room_for_another_to_stand_by() -> None:
    door = Door()
    queue = with_door(door)

    for _ in range(2):
        with pytest.raises(Empty):
            queue.get(timeout=0.001)
    got: dict[str, Any] = {}
    with threads_that_wait(queue, door, 1, got):
        assert door.waits == 1
        door.give(Item(0, "handed over"))

    assert got == {"getter 0": "handed over"}


def test_of_one_priority_the_first_to_come_is_the_first_to_be_served(queue: WorkQueue) -> None:
    for number in range(20):
        queue.put(Item(number % 2, number))

    assert [queue.get().message for _ in range(20)] == [*range(0, 20, 2), *range(1, 20, 2)]
