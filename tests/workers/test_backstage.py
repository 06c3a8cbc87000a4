"""The threads of hooks, over stops that do not wait for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until
from workers.loop.backstage import THREADS, Backstage


@pytest.fixture
def backstage() -> Iterator[Backstage]:
    backstage = Backstage()
    yield backstage
    backstage.close(5)


def hooks() -> int:
    return sum(thread.name.startswith("callboard hooks") for thread in threading.enumerate())


def test_what_is_submitted_while_it_is_closed_waits_for_the_next_start(backstage: Backstage) -> None:
    done = threading.Event()
    backstage.start()
    backstage.close(5)

    backstage.submit(done.set)

    assert (hooks(), done.is_set()) == (0, False)
    backstage.start()
    assert done.wait(5)


def test_hooks_that_hang_over_a_stop_take_no_thread_of_the_next_start(backstage: Backstage) -> None:
    hung, over = threading.Semaphore(0), threading.Event()

    def hang() -> None:
        hung.release()
        over.wait(20)

    backstage.start()
    for _ in range(THREADS):
        backstage.submit(hang)
        assert hung.acquire(timeout=5)
    backstage.close(0)
    backstage.start()
    together = threading.Barrier(THREADS)
    met: list[int] = []

    for _ in range(THREADS):
        backstage.submit(lambda: met.append(together.wait(5)))

    wait_until(lambda: len(met) == THREADS, "as many threads as ever")
    over.set()
    wait_until(lambda: hooks() == THREADS, "those that hung to end")
    backstage.close(5)
    assert hooks() == 0
