"""What a process takes: its share of one room for all queues, and nothing that a dead thread holds."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import pytest
from dramatiq.middleware import Middleware

from bus import Bus, Event
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App
from workers.broker.room import AHEAD_S, Room, Rooms


class Asked(Event, type="test.asked", version=1):
    n: int


def never() -> bool:
    return False


def always() -> bool:
    return True


def test_queues_that_hope_share_what_is_free_and_the_last_served_is_last() -> None:
    room = Room()
    for queue in ("a", "b", "c"):
        room.enter(queue, 8, always)

    assert [room.share(queue) for queue in ("a", "b", "c")] == [2, 2, 0]
    room.serve("a")
    assert [room.share(queue) for queue in ("b", "c", "a")] == [2, 2, 0]
    for _ in range(4):
        room.fill("b")
    assert [room.share(queue) for queue in ("a", "b", "c")] == [0, 0, 0]
    room.free("b")
    assert [room.share(queue) for queue in ("b", "c", "a")] == [1, 0, 0]
    room.leave("b")
    assert room.share("c") == 1


def test_a_queue_without_hope_leaves_its_share_to_others() -> None:
    room = Room()
    room.enter("idle", 8, never)
    room.enter("busy", 8, always)

    assert (room.share("busy"), room.share("idle")) == (4, 2)


@pytest.mark.parametrize("size", [None, 8], ids=["follows the pace", "of one size"])
def test_a_jammed_room_has_no_place_until_something_is_settled(size: int | None) -> None:
    room = Room(size)
    room.enter("a", 8, always)
    room.fill("a")
    assert room.soon

    room.jammed = True
    assert (room.share("a"), room.soon) == (0, False)

    room.free("a")
    assert room.soon


class Named(NamedTuple):
    """What a room asks of its staff: async handlers are called so here, and limited ones say how many."""

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        return (f"sync of {queue}", f"async of {queue}")

    def is_async(self, handler: str) -> bool:
        return handler.startswith("async")

    def limit_of(self, handler: str) -> int | None:
        return int(handler.rpartition(" ")[2]) if "limited to" in handler else None


def rooms_for(*queues: str, prefetch: int = 8, concurrency: int = 100) -> Rooms:
    rooms = Rooms(Named(), concurrency)
    for queue in queues:
        rooms.threads.enter(queue, prefetch, always)
        rooms.loop.enter(queue, prefetch, always)
    return rooms


def asked(rooms: Rooms, queue: str, *handlers: str) -> dict[str, int]:
    """What would be taken, by handler (or handlers, where they share)."""
    return {" & ".join(wish.handlers): wish.limit for wish in rooms.wishes(queue, handlers)}


def test_a_worker_set_apart_has_no_room_until_it_holds_nothing_and_then_asks_for_suspects_alone() -> None:
    rooms = rooms_for("a", "b")
    rooms.fill(rooms.loop, "b", "async of b")
    rooms.apart_for = "a|async of a"

    assert (asked(rooms, "a", "sync of a"), asked(rooms, "b", "sync of b")) == ({}, {})
    assert rooms.wishes_soon("a", ["sync of a"]) == []
    rooms.free(rooms.loop, "b", "async of b")
    assert asked(rooms, "a", "sync of a") == {"async of a": 100}
    assert asked(rooms, "b", "sync of b") == {}
    rooms.leave("a")
    assert asked(rooms, "b", "sync of b") == {"sync of b": 4}


def test_threads_and_loop_take_nothing_from_each_other() -> None:
    rooms = rooms_for("a")
    both = ("sync of a", "async of a")

    assert asked(rooms, "a", *both) == {"sync of a": 4, "async of a": 100}
    for _ in range(4):
        rooms.fill(rooms.threads, "a", "sync of a")
    assert asked(rooms, "a", *both) == {"async of a": 100}
    assert [rooms.admit(handler) for handler in both] == [None, rooms.loop]
    for _ in range(100):
        rooms.fill(rooms.loop, "a", "async of a")
    rooms.free(rooms.threads, "a", "sync of a")
    assert asked(rooms, "a", *both) == {"sync of a": 1}


def test_a_handler_at_its_limit_is_not_asked_for_and_others_are() -> None:
    rooms = rooms_for("a")
    limited, free = "async limited to 2", "async of a"

    (wish,) = rooms.wishes("a", (limited, free))
    assert (wish.handlers, wish.limit, wish.most) == ((limited, free), 100, (2, 100))
    rooms.promise([wish])
    assert (rooms.wishes("a", (limited, free)), rooms.admit(limited)) == ([], None)
    rooms.promise([wish], kept=True)
    for _ in range(2):
        rooms.fill(rooms.loop, "a", limited)
    assert asked(rooms, "a", limited, free) == {free: 98}
    assert (rooms.admit(limited), rooms.admit(free)) == (None, rooms.loop)
    rooms.free(rooms.loop, "a", limited)
    assert asked(rooms, "a", limited) == {limited: 1}


def test_two_queues_never_have_more_on_the_loop_than_it_has_places() -> None:
    rooms = rooms_for("a", "b", concurrency=10)

    first = rooms.wishes("a", ["async of a"])
    rooms.serve(first)
    rooms.promise(first)
    second = rooms.wishes("b", ["async of b"])
    rooms.serve(second)
    rooms.promise(second)
    third = rooms.wishes("a", ["async of a"])

    assert first
    assert sum(wish.limit for wish in first + second + third) <= 10


def test_quick_work_is_fetched_ahead() -> None:
    room = Room()
    room.enter("a", 8, always)
    deadline = threading.Event()
    for _ in range(20):
        for _ in range(100):
            room.fill("a")
            room.free("a")
        deadline.wait(0.01)
        room.measure()

    assert room.ahead > 2000 * AHEAD_S
    for _ in range(room.ahead):
        room.fill("a")
    assert (room.share("a"), room.soon) == (0, True)


def test_a_prefetch_of_one_is_one() -> None:
    room = Room()
    room.enter("a", 1, always)

    assert room.ahead == 1


def test_a_prefetch_that_was_chosen_is_held_to() -> None:
    room = Room()
    room.enter("chosen", 3, never, exact=True)
    room.enter("usual", 16, never)

    assert (room.share("chosen"), room.share("usual")) == (3, 8)
    for _ in range(3):
        room.fill("chosen")
    assert (room.share("chosen"), room.share("usual")) == (0, 5)
    room.leave("chosen")
    room.enter("chosen", 4, never, exact=True)
    assert room.share("chosen") == 1


def test_a_process_whose_threads_are_busy_leaves_other_queues_to_others(bus: Bus) -> None:
    busy, free = App(bus), App(bus)
    release = threading.Event()
    started: list[int] = []
    handled: list[tuple[str, int]] = []

    @busy.on(Asked, topics="slow", queue="slow", name="slow")
    def slow(event: Asked) -> None:
        started.append(event.n)
        release.wait(20)

    @busy.on(Asked, topics="quick", queue="quick", name="quick")
    def quick(event: Asked) -> None:
        handled.append(("busy", event.n))

    @free.on(Asked, topics="quick", queue="quick", name="quick")
    def quick_too(event: Asked) -> None:
        handled.append(("free", event.n))

    with working(busy, threads=2):
        for n in range(2):
            bus.publish_sync(Asked(n=n), topics=["slow"])
        wait_until(lambda: len(started) == 2, "both threads to be busy")
        with working(free, threads=2):
            for n in range(30):
                bus.publish_sync(Asked(n=n), topics=["quick"])
                wait_until(lambda n=n: len(handled) == n + 1, "the process with free threads to take it")  # type: ignore[misc]
        release.set()
        busy.broker.join("slow", timeout=5000)
        bus.publish_sync(Asked(n=30), topics=["quick"])
        wait_until(lambda: len(handled) == 31, "the process to hear of the other queue again")

    assert handled == [*(("free", n) for n in range(30)), ("busy", 30)]


def test_no_queue_starves_beside_a_full_one(bus: Bus) -> None:
    app = App(bus)
    order: list[str] = []

    @app.on(Asked, topics="many", queue="many")
    def many(event: Asked) -> None:
        order.append("many")

    @app.on(Asked, topics="few", queue="few")
    def few(event: Asked) -> None:
        order.append("few")

    app.bind()
    for n in range(400):
        bus.publish_sync(Asked(n=n), topics=["many"] if n < 390 else ["few"])
    with working(app, threads=1):
        for queue in ("few", "many"):
            app.broker.join(queue, timeout=20_000)

    assert len(order) == 400
    assert max(at for at, queue in enumerate(order) if queue == "few") < 300


class Dies(Middleware):
    """Ends the thread before it can settle its first job, as an interrupt that comes late would."""

    done = False

    def before_ack(self, *_: Any) -> None:
        if not self.done:
            self.done = True
            raise SystemExit


class Stumbles(Middleware):
    """Has the first settling fail, so that the thread goes on to other work without it."""

    done = False

    def before_ack(self, *about: Any) -> None:
        if not self.done:
            self.done = True
            about[-1].settlement = lambda: 1 / 0


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
@pytest.mark.parametrize("fault", [Dies, Stumbles])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_thread_or_a_coroutine_left_unsettled_is_handed_back(
    bus: Bus, fault: type[Middleware], kind: str
) -> None:
    app = App(bus)
    done: list[int] = []

    def on_thread(event: Asked) -> None:
        done.append(event.n)

    async def on_loop(event: Asked) -> None:
        done.append(event.n)

    app.on(Asked, name="handler")(on_thread if kind == "thread" else on_loop)
    app.broker.add_middleware(fault())
    with working(app, threads=2):
        bus.publish_sync(Asked(n=0))
        wait_until(lambda: done, "the first job to run")
        for n in range(1, 20):
            bus.publish_sync(Asked(n=n))
        wait_until(lambda: done.count(0) == 2, "the job that was not settled to run again", timeout=10)
        app.broker.join("default", timeout=5000)

    assert sorted(done) == [0, *range(20)]


def test_a_worker_that_stops_says_so_at_once(bus: Bus, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    beat = bus.store.beat

    def listening(*args: Any, **kwargs: Any) -> Any:
        told.append(kwargs["stopping"])
        return beat(*args, **kwargs)

    @app.on(Asked)
    def handler(event: Asked) -> None:
        """Never called."""

    monkeypatch.setattr(bus.store, "beat", listening)
    with working(app):
        wait_until(lambda: told, "a beat")
        assert told[-1] is False
        app.broker.lease.be_quiet()
        wait_until(lambda: told[-1], "a beat that says so")


def test_what_the_bell_took_when_it_stumbled_is_handed_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(bus)
    done: list[int] = []
    dropped: list[int] = []

    @app.on(Asked)
    def handler(event: Asked) -> None:
        done.append(event.n)

    store, wait = bus.store, bus.store.wait

    def stumbling(*args: Any) -> Any:
        woken = wait(*args)
        if woken.taken and not dropped:
            dropped.append(len(woken.taken))
            raise ValueError("a surprise on the bell's thread")
        return woken

    monkeypatch.setattr(store, "wait", stumbling)
    with working(app, threads=2):
        for n in range(10):
            bus.publish_sync(Asked(n=n))
            wait_until(lambda n=n: n in done, "the job to run", timeout=10)  # type: ignore[misc]

    assert dropped == [1]
    assert done == list(range(10))
