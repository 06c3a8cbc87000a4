"""The books of a worker process, by themselves."""

from __future__ import annotations

import threading

from bus.clock import Clock
from bus.store.base import Exchange, Route, Settlement, Taken
from bus.store.memory import MemoryStore
from workers.broker.books import Books
from workers.broker.staff import Staff


class Thread:
    """Works on one job after the other."""

    def is_alive(self) -> bool:
        return True


def books_that_hold(*jobs: tuple[str, int]) -> Books:
    """Each job with the ticket of its take."""
    store = MemoryStore(Clock(), lease_ms=60_000)
    books = Books(lambda: store, "w1", Staff(), 100)
    books.rooms.threads.enter("q", 16, lambda: True)
    receive(books, *jobs)
    return books


def receive(books: Books, *jobs: tuple[str, int]) -> None:
    with books.lock:
        books.receive(Exchange([], [Taken(job, ticket, Route("q", "h", 1), "", b"", b"", 0) for job, ticket in jobs]))


def test_a_job_that_came_back_while_its_handler_runs_is_here_twice_until_that_begins_another() -> None:
    books, thread, other = books_that_hold(("1", 1), ("2", 2)), Thread(), Thread()
    assert books.begin("1", 1, thread)

    receive(books, ("1", 3))

    assert books.statement().held == [("1", 3), ("2", 2), ("1", 1)]
    assert books.rooms.load("q") == 3
    assert not books.begin("1", 1, other), "that take's job is not ours any more"
    assert books.begin("2", 2, thread), "who worked on it works on something else"
    assert books.statement().held == [("1", 3), ("2", 2)]
    assert books.rooms.load("q") == 2


def test_nothing_is_left_of_jobs_that_are_settled() -> None:
    books, thread = books_that_hold(("1", 1), ("2", 1)), Thread()

    for job in ("1", "2"):
        assert not books.idle
        assert books.begin(job, 1, thread)
        assert books.running() == 1
        books.settle("q", Settlement(job, 1, "ack"))

    assert (books.idle, books.running(), books.unsettled) == (True, 0, 2)
    assert books.statement().held == [("1", 1), ("2", 1)], "told by a beat as long as their settling is not answered"
    books.exchange()
    assert (books.statement().held, len(books)) == ([], 0)


def test_what_is_handed_back_is_not_begun() -> None:
    books = books_that_hold(("1", 1), ("2", 1))

    with books.lock:
        books.hand_back([("1", 1)])

    assert not books.begin("1", 1, Thread())
    assert books.begin("2", 1, Thread())


def test_who_waits_for_a_change_is_told_at_once_of_what_goes_back_as_the_books_are_mended() -> None:
    books, waits, told = books_that_hold(("1", 1)), threading.Event(), []

    def wait() -> None:
        with books.changed:
            waits.set()
            told.append(books.changed.wait(5))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(5)
    books.mend("1")  # not before it waits: the lock is its own until then
    thread.join(10)

    assert told == [True]
    assert books.unsettled == 1
