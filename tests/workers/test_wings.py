"""An idle worker has one thread stand by, which the store hands the next job; whatever becomes of that thread, no job is stranded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue

import dramatiq
import pytest
from dramatiq.threading import raise_thread_exception

from bus import Bus, BusUnavailable, Event
from bus.clock import Clock
from bus.store.base import Cues, Exchange, Job, Route, Settlement, Take, Taken
from bus.store.memory import MemoryStore
from tests.servers import Server
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App
from workers.broker.bell import Bell
from workers.broker.books import Books
from workers.broker.keeper import Keeper
from workers.broker.staff import Staff
from workers.broker.wings import Wings


class Called(Event, type="test.called_on", version=1):
    agent_id: str = "a1"
    n: int = 0


# -- a worker on Redis -------------------------------------------------------------------------------------------------


@pytest.fixture
def url(redis_url: str) -> str:
    return redis_url


class Stagehand:
    """Looks at who stands by, from outside."""

    def __init__(self, server: Server, namespace: str) -> None:
        self._prefix = f"callboard:{{{namespace}}}:"
        self.client = server.client()

    def standby(self) -> list[str]:
        """The workers that stand by."""
        return [str(name) for name in self.client.hkeys(f"{self._prefix}standby")]

    def channels(self) -> int:
        """On how many of this namespace's channels a thread hears."""
        return len(self.client.pubsub_channels(f"{self._prefix}cue:*"))

    def wait_for_one(self) -> None:
        wait_until(lambda: len(self.standby()) == 1, "a thread that stands by")


@pytest.fixture
def stagehand(server: Server, namespace: str) -> Iterator[Stagehand]:
    looking = Stagehand(server, namespace)
    yield looking
    looking.client.close()


def test_jobs_of_an_idle_worker_are_begun_by_the_thread_that_stands_by(
    app: App, bus: Bus, stagehand: Stagehand
) -> None:
    handled: list[tuple[int, str]] = []

    @app.on(Called, key="agent_id")
    def handler(event: Called) -> None:
        handled.append((event.n, threading.current_thread().name))

    with working(app), heard_on_the_channel(stagehand) as heard:
        for n in range(5):
            stagehand.wait_for_one()
            bus.publish_sync(Called(n=n))
            wait_until(lambda: len(handled) == n + 1, "the handler")  # noqa: B023
            wait_until(lambda: bus.store.pending("default") == 0, "its settling")
        wait_until(lambda: len(heard()) == 5, "the announcements")

    assert [n for n, _ in handled] == list(range(5))
    assert (stagehand.channels(), stagehand.standby()) == (0, []), "it hears nothing any more"


class heard_on_the_channel:  # noqa: N801 - as contextlib's are
    """What is handed over, as one more that hears it."""

    def __init__(self, stagehand: Stagehand) -> None:
        self._subscription = stagehand.client.pubsub(ignore_subscribe_messages=True)
        self._pattern = f"{stagehand._prefix}cue:*"  # noqa: SLF001 - one room
        self._heard: list[bytes] = []

    def __enter__(self) -> Callable[[], list[bytes]]:
        self._subscription.psubscribe(self._pattern)
        self._subscription.get_message(timeout=1)
        return self._hear

    def __exit__(self, *_: object) -> None:
        self._subscription.close()

    def _hear(self) -> list[bytes]:
        while message := self._subscription.get_message():
            self._heard.append(message["data"])
        return self._heard


def test_async_handlers_and_actors_are_handed_their_jobs_too(app: App, bus: Bus, stagehand: Stagehand) -> None:
    done: list[str] = []

    @app.on(Called)
    async def handler(event: Called) -> None:
        done.append(f"async {event.n}")

    @dramatiq.actor(broker=app.broker)
    def actor(n: int) -> None:
        done.append(f"actor {n}")

    with working(app, threads=1), heard_on_the_channel(stagehand) as heard:
        for n in range(2):
            stagehand.wait_for_one()
            bus.publish_sync(Called(n=n))
            wait_until(lambda: len(done) == 2 * n + 1, "the handler")  # noqa: B023
            wait_until(lambda: bus.store.pending("default") == 0, "its settling")
            stagehand.wait_for_one()
            actor.send(n)
            wait_until(lambda: len(done) == 2 * n + 2, "the actor")  # noqa: B023
            wait_until(lambda: bus.store.pending("default") == 0, "its settling")
        wait_until(lambda: len(heard()) == 4, "the announcements")

    assert done == ["async 0", "actor 0", "async 1", "actor 1"]


def test_a_single_thread_that_stands_by_is_called_to_other_work(app: App, bus: Bus, stagehand: Stagehand) -> None:
    done: list[int] = []

    @app.on(Called)
    def handler(event: Called) -> None:
        done.append(event.n)

    with working(app, threads=1):
        stagehand.wait_for_one()
        bus.publish_sync(Called(n=1), delay=0.05)  # what becomes due is brought by the bell

        wait_until(lambda: done == [1], "the handler")


def test_where_the_link_is_cut_jobs_take_the_usual_way_and_a_thread_stands_by_again(
    app: App, bus: Bus, stagehand: Stagehand
) -> None:
    done: list[int] = []

    @app.on(Called)
    def handler(event: Called) -> None:
        done.append(event.n)

    with working(app):
        for n in range(3):
            stagehand.wait_for_one()
            assert stagehand.client.client_kill_filter(_type="pubsub") == 1
            bus.publish_sync(Called(n=n))
            wait_until(lambda: done == list(range(n + 1)), "the handler")  # noqa: B023
            bus.publish_sync(Called(n=-1), topics=[])
            wait_until(lambda: stagehand.channels() == 1, "another link", timeout=15)


@pytest.mark.slow
def test_what_is_handed_to_a_paused_worker_goes_back(app: App, bus: Bus, stagehand: Stagehand) -> None:
    done: list[int] = []

    @app.on(Called)
    def handler(event: Called) -> None:
        done.append(event.n)

    with working(app) as worker:
        stagehand.wait_for_one()
        for thread in worker.workers:
            thread.pause()
        for thread in worker.workers:
            thread.paused_event.wait(5)
        bus.publish_sync(Called(n=1))

        wait_until(lambda: stagehand.standby() == [], "a beat that tells of it")
        for thread in worker.workers:
            thread.resume()
        wait_until(lambda: done == [1], "the handler", timeout=15)


def test_while_the_thread_that_stood_by_is_busy_after_its_job_another_one_stands_by(
    app: App, bus: Bus, stagehand: Stagehand
) -> None:
    """The server hands the next job over as soon as the first is settled; the others would look up after a minute only."""
    goes_on, done = threading.Event(), Queue[int]()

    class BusyAfterwards(dramatiq.Middleware):
        def after_ack(self, *_: object) -> None:
            assert goes_on.wait(30)

    app.broker.add_middleware(BusyAfterwards())

    @app.on(Called)
    def handler(event: Called) -> None:
        done.put(event.n)

    worker = dramatiq.Worker(app.broker, worker_timeout=60_000, worker_threads=3)
    worker.start()
    try:
        for n in range(3):
            stagehand.wait_for_one()
            bus.publish_sync(Called(n=n))
            assert done.get(timeout=5) == n
            wait_until(lambda: bus.store.pending("default") == 0, "its settling")
            if n < 2:
                wait_until(lambda: app.broker.lease.wings._waits, "another thread to stand by")  # noqa: SLF001 - as below
    finally:
        goes_on.set()
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        while stopping.is_alive():
            worker.work_queue.muster()  # type: ignore[attr-defined] # or they would sleep on for that minute
            app.broker.lease.wings.call()
            stopping.join(0.05)


# -- the wings by themselves -------------------------------------------------------------------------------------------


class Line:
    """Cues that a test gives."""

    def __init__(self) -> None:
        self.said: Queue[Taken | Exception | None] = Queue()
        self.closed = False

    def hear(self, timeout_s: float | None) -> Taken | None:
        try:
            said = self.said.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(said, Exception):
            raise said
        return said

    def call(self) -> None:
        self.said.put(None)

    def close(self) -> None:
        self.closed = True
        self.said.put(BusUnavailable("closed"))


class Consumer:
    """Keeps what it is brought, or raises."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.breaks: BaseException | None = None

    def waits(self) -> list[object]:
        return []

    def bring(self, taken: Sequence[Taken]) -> None:
        if self.breaks is not None:
            raise self.breaks
        self.brought += [one.job for one in taken]


class Wing:
    """Wings with a thread in them, and what stands around."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store = MemoryStore(Clock(), lease_ms=60_000)
        self.lines: list[Line] = []
        self.away = self.none = False
        self.asked = 0
        self.as_it_opens: Callable[[], None] = lambda: None
        monkeypatch.setattr(store, "cues", self._cues)
        monkeypatch.setattr(store, "exchange", self._exchange)
        self.settled: list[Settlement] = []
        self.books = Books(lambda: store, "w1", Staff(), 100)
        self.books.rooms.threads.enter("q", 16, lambda: True)
        self.bell = Bell(self.books, Staff(), threading.Event())
        self.consumer = Consumer()
        self.bell.serve("q", self.consumer)  # type: ignore[arg-type]
        self.wings = Wings(self.books, self.bell, 60_000)
        self.now_s = 1_000.0
        monkeypatch.setattr("workers.broker.wings.time", self)

    def monotonic(self) -> float:
        return self.now_s

    def _cues(self, _: str) -> Cues | None:
        self.asked += 1
        if self.away:
            raise BusUnavailable("away")
        if self.none:
            return None
        self.as_it_opens()
        self.lines.append(Line())
        return self.lines[-1]

    def _exchange(self, _: str, settlements: Sequence[Settlement], *__: object) -> Exchange:
        self.settled += settlements
        return Exchange([True] * len(settlements), [])

    def renew(self) -> int:
        with self.books.changed:
            return self.wings.renew()

    def give(self, job: str, ticket: int, queue: str = "q") -> None:
        self.lines[-1].said.put(Taken(job, ticket, Route(queue, "h", 1), "", b"", b"", 0))

    def stand(self) -> threading.Thread:
        """A thread that stands by until nobody can any more."""

        def wait() -> None:
            while self.wings.wait(10):
                pass

        thread = threading.Thread(target=wait, name="one who stands by")
        thread.start()
        wait_until(lambda: self.wings._waits, "it to stand by")  # noqa: SLF001 - there is no other door to it
        return thread


@pytest.fixture
def wing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    made = Wing(monkeypatch)
    made.wings.open()
    thread = made.stand()
    yield made
    made.wings.close()
    thread.join(5)
    assert not thread.is_alive()


def test_a_process_stands_by_under_a_ticket_that_is_open_for_two_beats(wing: Wing) -> None:
    first = wing.renew()
    assert first > 0
    assert wing.renew() == first, "beats may follow each other closely"

    tickets = [first]
    for _ in range(2):
        wing.now_s += 1
        tickets.append(wing.renew())

    assert wing.books.statement().unanswered == tickets[1:]
    wing.give("lost", tickets[0])
    wing.give("late", tickets[1])
    wing.give("just so", tickets[2])
    wait_until(lambda: len(wing.consumer.brought) == 2, "what is ours")
    assert wing.consumer.brought == ["late", "just so"]
    assert wing.books.statement().held == [("late", tickets[1]), ("just so", tickets[2])]


def test_threads_wait_elsewhere_while_others_are_at_work_or_the_worker_is_quiet(wing: Wing) -> None:
    ticket = wing.renew()
    wing.give("1", ticket)
    wait_until(lambda: wing.consumer.brought == ["1"], "the job")

    assert (wing.renew(), wing.wings.open_to) == (ticket, False), "the store knows that it holds something"
    wing.books.settle("q", Settlement("1", ticket, "ack"))
    assert (wing.renew(), wing.wings.open_to) == (ticket, True)
    wing.books.quiet = True
    assert (wing.renew(), wing.wings.open_to) == (0, False)
    assert wing.books.statement().unanswered == []


def test_what_comes_to_a_quiet_worker_or_for_a_queue_that_has_ended_goes_back(wing: Wing) -> None:
    ticket = wing.renew()
    wing.give("1", ticket, queue="ended")
    wait_until(lambda: len(wing.settled) == 1, "it to go back")
    wing.books.quiet = True
    wing.give("2", ticket)
    wait_until(lambda: len(wing.settled) == 2, "it to go back")

    assert [(one.job, one.verdict) for one in wing.settled] == [("1", "back"), ("2", "back")]
    assert (wing.consumer.brought, wing.books.idle) == ([], True)


def test_nobody_stands_by_where_no_thread_waits(wing: Wing) -> None:
    wing.renew()
    wing.wings.close()
    wait_until(lambda: not wing.wings._waits, "the thread to leave")  # noqa: SLF001 - as above

    assert (wing.lines[0].closed, wing.renew()) == (True, 0)
    assert wing.books.statement().unanswered == []
    wing.wings.open()
    assert len(wing.lines) == 2
    assert wing.wings.open_to


def test_a_link_that_breaks_is_made_anew_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wing = Wing(monkeypatch)
    wing.away = True
    wing.wings.open()
    wing.away = False
    wing.wings.open()
    assert (wing.lines, wing.wings.open_to, wing.wings.wait(0)) == ([], False, False)

    wing.now_s += 5
    wing.wings.open()
    wing.wings.open()

    assert len(wing.lines) == 1
    wing.lines[0].said.put(BusUnavailable("broke"))
    assert not wing.wings.wait(5)
    assert wing.lines[0].closed


def test_a_link_that_comes_after_the_end_is_closed_and_keeps_no_other_from_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wing = Wing(monkeypatch)
    wing.as_it_opens = wing.wings.close

    wing.wings.open()
    assert (wing.lines[0].closed, wing.wings.open_to) == (True, False)
    wing.as_it_opens = lambda: None
    wing.wings.open()

    assert (wing.lines[1].closed, wing.wings.open_to) == (False, True)
    wing.wings.close()


def test_where_nobody_can_stand_by_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wing = Wing(monkeypatch)
    wing.as_it_opens = lambda: None
    wing.none = True
    for _ in range(3):
        wing.wings.open()
        wing.now_s += 60

    assert wing.asked == 1
    wing.wings.close()
    wing.wings.open()
    assert wing.asked == 2, "another worker of this process asks for itself"


def test_a_process_that_was_frozen_begins_nothing_that_may_be_another_ones_by_now(wing: Wing) -> None:
    ticket = wing.renew()
    wing.now_s += 61
    assert wing.renew() > ticket, "the keeper woke up first"
    wing.give("1", ticket)
    wait_until(wing.lines[0].said.empty, "it to be heard")
    wing.lines[0].call()
    wait_until(wing.lines[0].said.empty, "the next look")

    assert (wing.consumer.brought, wing.books.statement().held) == ([], [])


class Struck(BaseException):
    """What no thread expects."""


@pytest.mark.parametrize("place", ["rooms.fill", "rooms.admit", "_hold", "receive_one"])
def test_wherever_a_thread_is_struck_as_it_brings_a_job_the_books_are_right_afterwards(
    wing: Wing, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """After that step, or before it: as an exception that a time limit raises in a thread."""
    for before in (True, False):
        owner = wing.books.rooms if place.startswith("rooms") else wing.books
        name = place.rpartition(".")[2]
        act = getattr(owner, name)

        def struck(*args: object, before: bool = before, act: Callable[..., object] = act, **more: object) -> object:
            if not before:
                act(*args, **more)
            raise Struck

        ticket = wing.renew()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, struck)
            with pytest.raises(Struck):
                wing.bell.bring(Taken("1", ticket, Route("q", "h", 1), "", b"", b"", 0))

        assert wing.books.idle, "a place is taken for ever"
        wing.books.exchange()
        assert all((one.job, one.verdict) == ("1", "back") for one in wing.settled)
        assert wing.books.statement().held == [], "it is named as held, and so nobody gets it back"


def test_what_a_thread_was_bringing_as_it_was_struck_goes_back(wing: Wing) -> None:
    ticket = wing.renew()
    wing.consumer.breaks = Struck()
    thread = next(each for each in threading.enumerate() if each.name == "one who stands by")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        wing.give("1", ticket)
        thread.join(5)

    assert wing.books.idle
    wing.books.exchange()
    assert [(one.job, one.verdict) for one in wing.settled] == [("1", "back")]
    assert wing.renew() == 0


def test_strikes_whenever_they_come_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is brought, goes back, or was never ours: then the ticket that is closed tells the store."""
    wing = Wing(monkeypatch)
    wing.wings.open()
    for number in range(200):
        job, over = f"job {number}", threading.Event()

        def wait(over: threading.Event = over) -> None:
            try:
                while not over.is_set():
                    wing.wings.wait(0.0005)
            except Struck:
                pass

        thread = threading.Thread(target=wait, name="one who stands by")
        thread.start()
        wait_until(lambda: wing.wings._waits, "it to stand by")  # noqa: SLF001 - as above
        wing.now_s += 1
        ticket = wing.renew() or wing.books.open_ticket()
        wing.give(job, ticket)
        for _ in range(100 * (number % 20)):
            pass  # so that it is struck now here, now there
        raise_thread_exception(thread.ident, Struck)
        thread.join(5)
        over.set()
        with wing.books.changed:
            wing.wings.renew()
            held = [one for one, _ in wing.books.statement().held]
        back = [one.job for one in wing.settled + wing.books._settlements]  # noqa: SLF001 - there is no other door to it
        assert [held, wing.consumer.brought, back].count([]) == 3 or job in held + back
        assert (job in held) == (job in wing.consumer.brought and job not in back)
        if job in held:
            wing.books.settle("q", Settlement(job, ticket, "ack"))
        wing.books.exchange()
        while not wing.lines[-1].said.empty():
            wing.lines[-1].said.get()
        wing.consumer.brought.clear()
        wing.settled.clear()
    wing.wings.close()


def test_where_something_was_lost_on_its_way_the_link_is_made_anew(wing: Wing) -> None:
    """Perhaps nobody hears there any more: the server counts who is subscribed, not who listens."""
    with wing.books.changed:
        lost = wing.books.open_ticket()
        wing.books.close_ticket(lost)
    wing.store.enqueue(Job("id", Route("q", "h", 1), "", b"", ""), 60_000)
    taken = MemoryStore.exchange(wing.store, "w1", [], [Take(lost, "q", ("h",), 1)]).taken
    assert [one.job for one in taken] == ["1"]
    ending, due = threading.Event(), threading.Event()
    keeper = threading.Thread(target=Keeper(wing.books, wing.bell, wing.wings, 60_000, due).keep, args=(ending,))
    keeper.start()

    wait_until(lambda: wing.lines[-1].closed, "the link's end")
    ending.set()
    due.set()
    keeper.join(5)
    wing.now_s += 10
    wing.wings.open()
    assert len(wing.lines) == 2


def test_somebody_is_called_as_soon_as_the_link_is_open_unless_one_waits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wing, called = Wing(monkeypatch), list[str]()
    wing.wings.reserve = lambda: called.append("come")

    wing.wings.open()
    thread = wing.stand()
    wing.wings.fill()
    wing.wings.close()
    thread.join(5)
    wing.wings.fill()

    assert called == ["come"]


def test_a_ticket_that_is_closed_as_its_job_is_brought_brings_nothing(wing: Wing) -> None:
    with wing.books.changed:
        ticket = wing.books.open_ticket()
        wing.books.close_ticket(ticket)

    wing.bell.bring(Taken("1", ticket, Route("q", "h", 1), "", b"", b"", 0))

    assert (wing.consumer.brought, wing.books.statement().held, wing.books.idle) == ([], [], True)
