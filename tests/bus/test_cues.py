"""A worker that stands by on Redis is handed the next new job by the call that queues it.

In memory nobody stands by (a ring is as quick there), so these are no checks of the contract: what is queued, taken and settled
has the same promises either way, and the contract suite holds them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from dramatiq.threading import raise_thread_exception

from bus import BusUnavailable
from bus.clock import Clock
from bus.store.base import Cues, Route, Store, Taken
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.store.redis.cues import cues
from bus.testing.servers import Server
from bus.testing.store_checks import CALM_LEASE_MS, NEVER, Worker, append, batch, bodies, enqueue, post, until
from tests.waiting import wait_until

SOON_S = 5.0
NOTHING_S = 0.05
"""How long a test waits for what must not come."""


class Idle(Worker):
    """A worker that serves ``q|h``, and says when it stands by."""

    serves = ("q|h",)

    def __init__(self, store: RedisStore, name: str = "w1") -> None:
        super().__init__(store, name)
        cues = store.cues(name)
        assert cues is not None
        self.cues: Cues = cues

    def stand_by(self, *held: Taken, unanswered: tuple[int, ...] = ()) -> int:
        """At a beat. Returns the ticket."""
        self.tickets += 1
        named = [(one.job, one.ticket) for one in held]
        open_ones = [self.tickets, *unanswered]
        self.store.beat(
            self.name,
            CALM_LEASE_MS,
            self.tickets,
            named,
            1_000,
            serves=self.serves,
            unanswered=open_ones,
            standby=self.tickets,
        )
        return self.tickets

    def hear(self) -> Taken:
        """The job that it must have been handed."""
        one = until(lambda: self.cues.hear(0.1), "a job that is handed over")
        assert one is not None
        return one

    def hears_nothing(self) -> bool:
        """Whether there is none."""
        return self.cues.hear(NOTHING_S) is None


@pytest.fixture
def store(redis_url: str, namespace: str) -> Iterator[RedisStore]:
    opened = RedisStore(redis_url, namespace, lease_ms=CALM_LEASE_MS)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def idle(store: RedisStore) -> Iterator[Callable[..., Idle]]:
    """Make workers that can stand by."""
    with ExitStack() as stack:

        def make(name: str = "w1") -> Idle:
            worker = Idle(store, name)
            stack.callback(worker.cues.close)
            return worker

        yield make


def ready(store: RedisStore) -> list[bytes]:
    """What is there for another worker to take."""
    return bodies(Worker(store, "other").take())


def until_nobody_listens(server: Server, store: RedisStore) -> None:
    """A server sees that a connection has ended only when it comes to look at it."""
    with server.client() as client:
        wait_until(lambda: client.pubsub_channels(f"{store.prefix}*") == [], "the server to see that nobody listens")


def test_a_new_job_is_handed_to_a_worker_that_stands_by(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker = idle()
    ticket = worker.stand_by()

    enqueue(store, b"1", key="a|b", priority=2)

    one = worker.hear()
    assert one == Taken(one.job, ticket, Route("q", "h", 2), "a|b", b"1", b"", 0)
    assert store.census().counts[0].in_flight == {"w1": 1}
    assert ready(store) == []
    assert worker.settle(one), "it holds what it was handed"
    assert store.pending("q") == 0


def test_an_event_is_handed_over_by_its_publish(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker = idle()
    worker.stand_by()

    append(store, batch(post(b"\x00\nbody|1\r\n", jobs=[(Route("q", "h", 1), "k"), (Route("q", "elsewhere", 1), "k")])))

    one = worker.hear()
    assert (one.body, one.key, one.route.handler) == (b"e\x00\nbody|1\r\n", "k", "h")
    assert bodies(Worker(store, "w2").take(handlers=("elsewhere",))) == [one.body]


@pytest.mark.parametrize("key", ["a\nb", "\n", "line\r\nend|1|2", "|", "äöü\x00", "7|"])
def test_keys_of_any_kind_arrive_as_they_are(store: RedisStore, idle: Callable[..., Idle], key: str) -> None:
    worker = idle()
    worker.stand_by()

    enqueue(store, b"|\nbody", key=key)

    one = worker.hear()
    assert (one.key, one.body) == (key, b"|\nbody")
    assert worker.settle(one)


def test_what_is_published_again_is_handed_over_once(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker = idle()
    once = post(b"1", jobs=[(Route("q", "h", 1), "")])
    worker.stand_by()
    append(store, batch(once))
    worker.settle(worker.hear())
    worker.stand_by()

    assert append(store, batch(once))[0].duplicate

    assert worker.hears_nothing()
    assert ready(store) == []


def test_only_the_first_of_many_is_handed_over_and_the_rest_is_ready_in_order(
    store: RedisStore, idle: Callable[..., Idle]
) -> None:
    worker = idle()
    worker.stand_by()

    append(store, batch(*(post(b"%d" % n, jobs=[(Route("q", "h", 1), "")]) for n in range(4))))

    assert worker.hear().body == b"e0"
    assert worker.hears_nothing()
    assert ready(store) == [b"e1", b"e2", b"e3"]


def test_a_lane_goes_on_only_when_what_was_handed_over_is_settled(store: RedisStore, idle: Callable[..., Idle]) -> None:
    first, second = idle(), idle("w2")
    first.stand_by()
    enqueue(store, b"1", key="a")
    second.stand_by()

    enqueue(store, b"2", key="a")

    assert second.hears_nothing()
    assert ready(store) == []
    assert first.settle(first.hear())
    assert ready(store) == [b"2"]


def test_each_worker_that_stands_by_is_handed_one(store: RedisStore, idle: Callable[..., Idle]) -> None:
    workers = [idle(f"w{n}") for n in range(3)]  # so many are looked at
    for worker in workers:
        worker.stand_by()

    enqueue(store, *(b"%d" % n for n in range(4)))

    assert sorted(worker.hear().body for worker in workers) == [b"0", b"1", b"2"]
    assert ready(store) == [b"3"]


# -- where nothing is handed over --------------------------------------------------------------------------------------


def paused_queue(store: RedisStore, _: Idle) -> None:
    store.pause("q")


def paused_handler(store: RedisStore, _: Idle) -> None:
    store.pause("q|h")


def left(store: RedisStore, worker: Idle) -> None:
    store.leave(worker.name)


def does_not_stand_by_any_more(_: RedisStore, worker: Idle) -> None:
    worker.beat()


def stops(_: RedisStore, worker: Idle) -> None:
    worker.beat(stopping=True)


@pytest.mark.parametrize("change", [paused_queue, paused_handler, left, does_not_stand_by_any_more, stops])
def test_nothing_is_handed_over(
    store: RedisStore, idle: Callable[..., Idle], change: Callable[[RedisStore, Idle], None]
) -> None:
    worker = idle()
    worker.stand_by()
    change(store, worker)

    enqueue(store, b"1")

    for name in ("q", "q|h"):
        store.resume(name)
    assert ready(store) == [b"1"]
    assert worker.hears_nothing()


def test_nothing_is_handed_to_a_worker_that_has_hung_up(
    store: RedisStore, idle: Callable[..., Idle], server: Server
) -> None:
    worker = idle()
    worker.stand_by()
    worker.cues.close()
    until_nobody_listens(server, store)

    enqueue(store, b"1")

    assert ready(store) == [b"1"]


def test_nothing_is_handed_over_past_what_is_ready(store: RedisStore, idle: Callable[..., Idle]) -> None:
    enqueue(store, b"1", priority=2)
    worker = idle()
    worker.stand_by()

    enqueue(store, b"2", priority=0)

    assert worker.hears_nothing()
    assert ready(store) == [b"2", b"1"]


def test_nothing_is_handed_over_that_is_not_due_or_that_the_worker_does_not_serve(
    store: RedisStore, idle: Callable[..., Idle]
) -> None:
    worker = idle()
    worker.stand_by()

    enqueue(store, b"1", due=NEVER)
    for queue, handler in (("q", "h2"), ("q2", "h"), ("q", ".*"), ("q|h", "")):
        enqueue(store, b"1", queue=queue, handler=handler)

    assert worker.hears_nothing()
    enqueue(store, b"2")
    assert worker.hear().body == b"2", "it stands by still"


def test_nothing_is_handed_over_while_there_are_suspects(store: RedisStore, idle: Callable[..., Idle]) -> None:
    enqueue(store, b"suspect", handler="other")
    for _ in range(2):
        doomed = Worker(store, "doomed")
        doomed.beat(lease_ms=1)
        doomed.take(handlers=("other",))
        until(lambda: Worker(store, "w9").beat().recovered, "a lease that ran out")
    worker = idle()
    worker.stand_by()

    enqueue(store, b"1")

    assert worker.hears_nothing()
    assert ready(store) == [b"1"]


def test_nothing_is_handed_to_a_worker_beside_a_suspect_that_may_run_still(
    store: RedisStore, idle: Callable[..., Idle]
) -> None:
    enqueue(store, b"suspect")
    for _ in range(4):
        doomed = Worker(store, "doomed")
        doomed.beat(lease_ms=1)
        store.exchange("doomed", (), [doomed.wish()._replace(idle=True)])
        until(lambda: Worker(store, "w9").beat().recovered, "a lease that ran out")
    worker = idle()
    worker.beat()
    answer = store.exchange("w1", (), [worker.wish()._replace(idle=True)])
    assert answer.apart == "q|h"
    worker.stand_by(*answer.taken)
    store.flush("q")  # strikes it out of the books, and not out of the worker's hands

    enqueue(store, b"1")

    assert worker.hears_nothing()


def test_a_batch_looks_once_for_a_worker_that_stands_by(store: RedisStore, server: Server) -> None:
    with server.client() as client:
        client.config_resetstat()
        append(store, batch(*(post(b"1", jobs=[(Route("q", "h", 1), "")]) for _ in range(10))))

        assert client.info("commandstats")["cmdstat_hrandfield"]["calls"] == 1


@pytest.mark.parametrize("way", ["exchange", "wait", "beat"])
def test_a_worker_that_holds_something_is_handed_nothing_until_that_is_settled(
    store: RedisStore, idle: Callable[..., Idle], way: str
) -> None:
    worker = idle()
    enqueue(store, b"1")
    if way != "beat":
        worker.stand_by()
    if way == "wait":
        (held,) = store.wait(["q|h"], 0, worker.name, [worker.wish()]).taken
    else:
        held = worker.take_one()
    if way == "beat":
        worker.stand_by(held)

    enqueue(store, b"2")
    assert worker.hears_nothing()
    assert ready(store) == [b"2"]

    worker.settle(held)
    enqueue(store, b"3")
    assert (worker.hear().body, ready(store)) == (b"3", [])


# -- what is lost on its way -------------------------------------------------------------------------------------------


def test_what_was_handed_over_and_not_heard_goes_back_when_its_ticket_is_closed(
    store: RedisStore, idle: Callable[..., Idle]
) -> None:
    worker = idle()
    ticket = worker.stand_by()
    enqueue(store, b"1", key="a")
    enqueue(store, b"2", key="a")

    worker.stand_by(unanswered=(ticket,))
    assert ready(store) == [], "its ticket is open: it may be heard yet"
    worker.beat()

    assert ready(store) == [b"1"], "it is the head of its lane still"


def test_what_a_worker_was_handed_that_died_runs_again(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker, other = idle(), Worker(store, "w2")
    worker.tickets = 1
    other.beat()
    store.beat(worker.name, 1, 1, (), 9, serves=worker.serves, unanswered=(1,), standby=1)
    enqueue(store, b"1", key="a")
    worker.hear()

    until(lambda: other.beat().recovered == 1, "a lease that ran out")

    (again,) = other.take()
    assert (again.body, again.lost) == (b"1", 1)
    enqueue(store, b"2")
    assert worker.hears_nothing(), "it stands by no longer, for it is dead"


# -- the link ----------------------------------------------------------------------------------------------------------


def test_a_large_job_is_heard_whole(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker, large = idle(), bytes(range(256)) * 4_096
    worker.stand_by()

    enqueue(store, large)

    assert worker.hear().body == large


def test_two_that_came_together_are_heard_one_after_the_other(store: RedisStore, idle: Callable[..., Idle]) -> None:
    worker = idle()
    for body in (b"1", b"2"):
        ticket = worker.stand_by()
        enqueue(store, body)
        worker.stand_by(unanswered=(ticket,))
        store.flush("q")  # so that it holds nothing, and may stand by again
        worker.stand_by(unanswered=(ticket,))

    assert [worker.hear().body for _ in range(2)] == [b"1", b"2"]


def test_a_call_ends_a_wait(idle: Callable[..., Idle]) -> None:
    worker, heard = idle(), list[Taken | None]()
    for timeout_s in (None, 60.0):
        thread = threading.Thread(target=lambda t=timeout_s: heard.append(worker.cues.hear(t)), name="hearer")
        thread.start()
        worker.cues.call()
        thread.join(SOON_S)
        assert not thread.is_alive()

    assert heard == [None, None]


def test_calls_beyond_counting_block_nobody(idle: Callable[..., Idle]) -> None:
    worker = idle()
    for _ in range(70_000):  # more than a pipe takes
        worker.cues.call()

    assert worker.cues.hear(60) is None


def test_closing_ends_a_wait_and_is_safe_twice(idle: Callable[..., Idle]) -> None:
    worker, ends = idle(), list[str]()

    def hear() -> None:
        try:
            while True:
                worker.cues.hear(60)
        except BusUnavailable as error:
            ends.append(str(error))

    thread = threading.Thread(target=hear, name="hearer")
    thread.start()
    worker.cues.close()
    worker.cues.close()
    thread.join(SOON_S)

    assert ends == ["the worker's channel is closed"]
    worker.cues.call()
    with pytest.raises(BusUnavailable, match="closed"):
        worker.cues.hear(0)


def test_a_server_that_hangs_up_is_told(store: RedisStore, idle: Callable[..., Idle], server: Server) -> None:
    worker = idle()
    worker.stand_by()
    with server.client() as client:
        assert client.client_kill_filter(_type="pubsub") == 1
    until_nobody_listens(server, store)

    enqueue(store, b"1")

    assert ready(store) == [b"1"], "nobody hears, so it takes the usual way"
    with server.client() as client:
        assert client.hkeys(f"{store.prefix}standby") == [], "who does not hear is looked at again and again"
    with pytest.raises(BusUnavailable, match="broke"):
        worker.cues.hear(SOON_S)


def test_whatever_else_is_said_there_ends_it_with_a_clear_error(
    store: RedisStore, idle: Callable[..., Idle], server: Server
) -> None:
    for said in (b"x", b"1|2|3|q|h|many|", b"\xff|1|1|q|h|0|", b"1|1|one|q|h|0|"):
        worker = idle()
        worker.cues.hear(0)
        with server.client() as client:
            assert client.publish(f"{store.prefix}cue:w1", said) >= 1
        for _ in range(2):
            with pytest.raises(BusUnavailable, match="broke"):
                worker.cues.hear(SOON_S)
        worker.cues.close()


def test_a_thread_that_is_struck_as_it_hears_leaves_nothing_that_could_be_misread(
    store: RedisStore, idle: Callable[..., Idle]
) -> None:
    class Struck(BaseException):
        pass

    worker = idle()
    ends: list[str] = []
    hears = threading.Event()

    def hear() -> None:
        try:
            while True:
                hears.set()
                worker.cues.hear(0.001)
        except Struck:
            ends.append("struck")

    thread = threading.Thread(target=hear, name="hearer")
    thread.start()
    assert hears.wait(SOON_S)
    raise_thread_exception(thread.ident, Struck)
    thread.join(SOON_S)

    assert ends == ["struck"]
    try:
        assert worker.cues.hear(0) is None
    except BusUnavailable as error:
        assert "broke" in str(error)


def test_a_thread_that_was_struck_inside_leaves_it_broken(
    idle: Callable[..., Idle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears next might read on in the midst of what that thread had begun to."""
    worker = idle()

    def strike(_: object) -> list[tuple[int, int]]:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(worker.cues, "_poll", strike)
        with pytest.raises(SystemExit):
            worker.cues.hear(SOON_S)

    with pytest.raises(BusUnavailable, match="broke"):
        worker.cues.hear(0)


def test_over_tls_nobody_stands_by() -> None:
    assert cues(redis.SSLConnection(host="localhost", port=1), "channel") is None


def test_a_server_that_is_away_has_no_cues(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server()
    store = RedisStore(server.url, namespace, lease_ms=CALM_LEASE_MS)
    server.stop()

    with pytest.raises(BusUnavailable):
        store.cues("w1")
    store.close()


def test_in_memory_nobody_stands_by() -> None:
    store: Store = MemoryStore(Clock(), lease_ms=CALM_LEASE_MS)

    assert store.cues("w1") is None
    worker = Worker(store)
    store.beat("w1", CALM_LEASE_MS, 1, (), 5, serves=("q|h",), standby=1)
    enqueue(store, b"1")
    assert bodies(worker.take()) == [b"1"]
