from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from bus import Bus, Delivery, Event, Publication
from bus.store.base import Job, Route
from tests.servers import Server
from tests.waiting import wait_until
from tests.workers.running import run_program, working
from workers import App, Context, InvalidHandler, Progress

QUICK: dict[str, Any] = {"min_backoff": 5, "max_backoff": 20}


class Posted(Event, type="test.posted", version=1):
    agent_id: str
    text: str


class Approved(Event, type="test.approved", version=1):
    text: str


def post(bus: Bus, text: str, agent_id: str = "a1", **options: Any) -> str:
    return bus.publish_sync(Posted(agent_id=agent_id, text=text), topics=[f"agent:{agent_id}"], **options).id


def test_an_event_reaches_sync_and_async_handlers_typed(app: App, bus: Bus) -> None:
    heard: list[tuple[str, Event]] = []

    @app.on(Posted, topics="agent:**")
    def on_thread(event: Posted, ctx: Context) -> None:
        heard.append((threading.current_thread().name, event))

    @app.on(Posted, topics="agent:**")
    async def on_loop(event: Posted, ctx: Context) -> None:
        heard.append((threading.current_thread().name, event))

    with working(app):
        post(bus, "hi")
        app.broker.join("default", timeout=5000)

    assert [event for _, event in heard] == [Posted(agent_id="a1", text="hi")] * 2
    assert "callboard loop" in {name for name, _ in heard}


def test_only_matching_types_and_topics_become_work(app: App, bus: Bus) -> None:
    heard: list[str] = []

    @app.on(Posted, topics=["agent:a1", "ops:*"])
    def handler(event: Posted) -> None:
        heard.append(event.text)

    app.bind()
    receipts = [
        bus.publish_sync(Posted(agent_id="a1", text="yes"), topics=["agent:a1", "ops:1", "other"]),
        bus.publish_sync(Posted(agent_id="a1", text="other topic"), topics=["agent:a2"]),
        bus.publish_sync(Posted(agent_id="a1", text="no topic"), topics=[]),
        bus.publish_sync(Approved(text="other type"), topics=["agent:a1"]),
    ]
    with working(app):
        app.broker.join("default", timeout=5000)

    assert [receipt.jobs for receipt in receipts] == [1, 0, 0, 0]
    assert heard == ["yes"]


def test_one_agents_events_are_handled_in_order_retries_included(app: App, bus: Bus) -> None:
    handled: list[tuple[str, str, int]] = []

    @app.on(Posted, topics="agent:**", key="agent_id", **QUICK)
    async def handler(event: Posted, ctx: Context) -> None:
        if event.text == "2" and ctx.attempt < 3:
            raise RuntimeError("not yet")
        handled.append((event.agent_id, event.text, ctx.attempt))

    with working(app, threads=8):
        for n in range(10):
            for agent in ("a1", "a2", "a3"):
                post(bus, str(n), agent)
        app.broker.join("default", timeout=10_000)

    for agent in ("a1", "a2", "a3"):
        mine = [(text, attempt) for who, text, attempt in handled if who == agent]
        assert mine == [(str(n), 3 if n == 2 else 1) for n in range(10)]


def test_a_publish_key_names_the_lane_for_every_handler(app: App, bus: Bus) -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    @app.on(Posted, topics="agent:**", key="agent_id")
    def handler(event: Posted) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1

    app.bind()
    for n in range(50):
        post(bus, str(n), agent_id=f"a{n}", key="one lane")
    with working(app, threads=8):
        app.broker.join("default", timeout=10_000)

    assert most == [1]


def test_what_a_handler_publishes_says_what_caused_it(app: App, bus: Bus) -> None:
    chain: list[Any] = []

    @app.on(Posted, topics="agent:**")
    async def first(event: Posted, ctx: Context) -> None:
        chain.append(ctx.envelope)
        await ctx.publish(Approved(text=event.text))

    @app.on(Approved)
    def second(event: Approved, ctx: Context) -> None:
        chain.append(ctx.envelope)
        ctx.publish_sync({"type": "test.done"})

    @app.on("test.done")
    def third(event: dict[str, Any], ctx: Context) -> None:
        chain.append(ctx.envelope)

    with working(app):
        post(bus, "hi")
        app.broker.join("default", timeout=5000)

    root, approved, done = chain
    assert (root.causationid, root.correlationid) == (None, None)
    assert (approved.causationid, approved.correlationid) == (root.id, root.id)
    assert (done.causationid, done.correlationid) == (approved.id, root.id)


def test_a_thread_does_not_remember_the_cause_of_its_last_job(app: App, bus: Bus) -> None:
    envelopes: list[Any] = []

    @app.on(Posted, topics="agent:**")
    def handler(event: Posted, ctx: Context) -> None:
        bus.publish_sync(Approved(text="caused"))

    @dramatiq.actor(broker=app.broker)
    def plain() -> None:
        bus.publish_sync(Approved(text="by a plain task"))

    @app.on(Approved)
    def note(event: Approved, ctx: Context) -> None:
        envelopes.append((event.text, ctx.envelope.causationid))

    with working(app, threads=1):
        cause = post(bus, "hi")
        app.broker.join("default", timeout=5000)
        plain.send()
        app.broker.join("default", timeout=5000)

    assert envelopes == [("caused", cause), ("by a plain task", None)]


async def test_progress_is_heard_live_in_order_and_leaves_no_trace(app: App, bus: Bus) -> None:
    @app.on(Posted, topics="agent:**")
    async def on_loop(event: Posted, ctx: Context) -> None:
        for n in range(200):
            ctx.progress({"step": n})

    @app.on(Posted, topics="agent:**")
    def on_thread(event: Posted, ctx: Context) -> None:
        for n in range(200):
            ctx.progress({"step": n})

    heard: dict[str, list[int]] = {}
    async with bus, bus.listen("agent:a1") as listener:
        with working(app):
            await bus.publish(Posted(agent_id="a1", text="hi"), topics=["agent:a1"])
            while sum(map(len, heard.values())) < 400:
                item = await anext(listener)
                assert isinstance(item, Delivery)
                if isinstance(item.event, Progress):
                    heard.setdefault(item.event.handler, []).append(item.event.data["step"])
        kept = [item async for item in bus.history()]

    assert list(heard.values()) == [list(range(200))] * 2
    assert len(kept) == 1


def test_a_failing_handler_ends_in_the_dead_letters_with_every_attempt(app: App, bus: Bus) -> None:
    @app.on(Posted, topics="agent:**", max_retries=2, name="failing", **QUICK)
    def handler(event: Posted) -> None:
        raise ValueError(f"cannot read {len(event.text)} letters")

    with working(app):
        post(bus, "hello")
        app.broker.join("default", timeout=10_000, fail_fast=False)
        (dead,) = bus.store.dead()

    assert (dead.reason, dead.route.handler) == ("dead", "failing")
    assert dead.notes.count(b"cannot read 5 letters") >= 3
    assert b"ValueError" in dead.notes
    assert b"hello" in dead.body


def test_undecodable_bytes_go_to_the_dead_letters_and_hold_up_nobody(app: App, bus: Bus) -> None:
    handled: list[str] = []

    @app.on(Posted, topics="agent:**", name="reader")
    def handler(event: Posted) -> None:
        handled.append(event.text)

    app.bind()
    for body in (b"e\xff\x00", b"m{", b"?", b""):
        bus.store.enqueue(Job(body.hex() or "none", Route("default", "reader", 1), "", body), 1000)
    post(bus, "good")
    with working(app):
        app.broker.join("default", timeout=5000, fail_fast=False)

    assert handled == ["good"]
    assert bus.store.dead_count() == 4


def test_a_newer_version_of_an_event_is_left_for_a_newer_worker(app: App, bus: Bus, namespace: str) -> None:
    handled: list[Any] = []
    type_name = f"test.{namespace}"  # types live as long as the process

    @dramatiq.actor(broker=app.broker, queue_name="told")
    def failed(*what: Any) -> None:
        handled.append(what)

    @app.on(type_name, name="versioned", topics="**", on_failure="failed")
    def handler(event: Any) -> None:
        handled.append(event)

    class Old(Event, type=type_name, version=1):
        text: str

    app.bind()
    envelope = bus.publish_sync(Old(text="old"))
    assert envelope.jobs == 1
    newer = (
        f'{{"specversion":"1.0","id":"x1","type":"{type_name}","source":"/t","time":"2026-01-01T00:00:00.000Z",'
        f'"dataschema":"urn:callboard:{type_name}:2","data":{{"words":["new"]}}}}'
    )
    bus.store.enqueue(Job("x1", Route("default", "versioned", 1), "", b"e" + newer.encode()), 1000)
    with working(app):
        wait_until(lambda: len(handled) == 1, "the old version to be handled")
        wait_until(lambda: any(one.delayed + one.held for one in bus.store.census().counts), "the newer one to be left")

        class New(Event, type=type_name, version=2):
            words: list[str]

        wait_until(lambda: len(handled) == 2, "the newer one to be handled once its version is known", timeout=10)

    assert handled == [Old(text="old"), New(words=["new"])], "nobody is told of a failure either"
    assert bus.store.dead_count() == 0


def test_data_that_its_version_refuses_goes_to_the_dead_letters_without_retries(app: App, bus: Bus) -> None:
    @app.on(Posted, name="strict")
    def handler(event: Posted) -> None:
        raise AssertionError("never called")

    broken = (
        b'{"specversion":"1.0","id":"x1","type":"test.posted","source":"/t","time":"2026-01-01T00:00:00.000Z",'
        b'"dataschema":"urn:callboard:test.posted:1","data":{"agent_id":"a1"}}'
    )
    bus.usable()
    bus.store.enqueue(Job("x1", Route("default", "strict", 1), "", b"e" + broken), 1000)
    with working(app):
        app.broker.join("default", timeout=5000, fail_fast=False)

    (dead,) = bus.store.dead()
    assert b"Unreadable" in dead.notes


def test_a_delay_holds_the_jobs_and_not_the_announcement(app: App, bus: Bus) -> None:
    handled: list[str] = []

    @app.on(Posted, topics="agent:**")
    def handler(event: Posted) -> None:
        handled.append(event.text)

    with working(app):
        bus.publish_sync(Posted(agent_id="a1", text="later"), topics=["agent:a1"], delay=0.4)
        post(bus, "now")
        wait_until(lambda: handled == ["now"], "the prompt one")
        wait_until(lambda: handled == ["now", "later"], "the delayed one")


def test_the_same_event_is_work_once(app: App, bus: Bus) -> None:
    handled: list[str] = []

    @app.on(Posted, topics="agent:**")
    def handler(event: Posted) -> None:
        handled.append(event.text)

    with working(app):
        for _ in range(5):
            post(bus, "hi", id="one")
        bus.publish_many_sync([Publication(Posted(agent_id="a1", text="hi"), ["agent:a1"], id="one")] * 3)
        app.broker.join("default", timeout=5000)

    assert handled == ["hi"]


def test_plain_actors_work_with_send_and_delays(app: App, bus: Bus) -> None:
    done: list[tuple[str, int]] = []

    @dramatiq.actor(broker=app.broker)
    def plain(x: int) -> None:
        done.append(("plain", x))

    @dramatiq.actor(broker=app.broker)
    async def on_loop(x: int) -> None:
        done.append(("async", x))

    with working(app):
        plain.send(1)
        on_loop.send(2)
        plain.send_with_options(args=(3,), delay=100)
        app.broker.join("default", timeout=5000)

    assert sorted(done) == [("async", 2), ("plain", 1), ("plain", 3)]
    assert done[-1] == ("plain", 3)


def test_a_retry_of_a_plain_actor_keeps_its_count(app: App, bus: Bus) -> None:
    attempts: list[int] = []

    @dramatiq.actor(broker=app.broker, max_retries=3, **QUICK)
    def flaky() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise RuntimeError("again")

    with working(app):
        flaky.send()
        app.broker.join("default", timeout=5000)

    assert len(attempts) == 3


def test_memory_mode_has_a_stub_broker_and_redis_mode_has_not(app: App, mode: str) -> None:
    assert isinstance(app.broker, dramatiq.Broker)
    assert isinstance(app.broker, StubBroker) == (mode == "memory")


def test_work_goes_on_after_a_worker_was_stopped_and_started_again(app: App, bus: Bus) -> None:
    handled: list[str] = []

    @app.on(Posted, topics="agent:**", key="agent_id")
    def handler(event: Posted) -> None:
        handled.append(event.text)

    for n in range(5):
        post(bus, f"before {n}")  # nobody has bound yet: not work
        with working(app):
            post(bus, str(n))
            app.broker.join("default", timeout=5000)
        post(bus, f"{n}, while nobody works")
    with working(app):
        app.broker.join("default", timeout=5000)

    expected = ["0"]
    for n in range(1, 5):
        expected += [f"{n - 1}, while nobody works", f"before {n}", str(n)]
    assert handled == [*expected, "4, while nobody works"]


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda app: app.on()(print), "name the events"),
        (lambda app: app.on(Event)(lambda _: None), "has no type="),
        (lambda app: app.on(Posted, key="agent")(lambda _: None), "has no field 'agent'"),
        (lambda app: app.on(Posted, topics="a::b")(lambda _: None), "segment is empty"),
        (lambda app: app.on(Posted, topics="$worker:**")(lambda _: None), "another character"),
        (lambda app: app.on(Posted, queue="no queue")(lambda _: None), "queue"),
        (lambda app: app.on(Posted, priority="urgent")(lambda _: None), "'high', 'normal' or 'low'"),
        (lambda app: app.on(Posted, name="a|b")(lambda _: None), "name has"),
        (lambda app: app.on(Posted, retries=3)(lambda _: None), "retries"),
        (lambda app: app.on(Posted, max_retry=3)(lambda _: None), "no option max_retry=; did you mean 'max_retries'"),
        (lambda app: app.on(Posted, queue_name="q")(lambda _: None), "write queue= for queue_name="),
        (lambda app: app.on(Posted, max_retries="3")(lambda _: None), "max_retries= of"),
        (lambda app: app.on(Posted, max_retries=-1)(lambda _: None), "a whole number from 0 up"),
        (lambda app: app.on(Posted, min_backoff="1s")(lambda _: None), "min_backoff= of"),
        (lambda app: app.on(Posted, max_backoff=-1)(lambda _: None), "a number of milliseconds from 0 up"),
        (lambda app: app.on(Posted, time_limit="5s")(lambda _: None), "time_limit= of"),
        (lambda app: app.on(Posted, time_limit=0)(lambda _: None), "a number of milliseconds above 0"),
        (lambda app: app.on(Posted, time_limit=None)(lambda _: None), "a number of milliseconds above 0"),
        (lambda app: app.on(Posted, min_backoff=None)(lambda _: None), "min_backoff= of"),
        (lambda app: app.on(Posted, retry_when=3)(lambda _: None), "retry_when= of"),
        (lambda app: app.on(lambda _: None), "name the events"),
        (lambda app: app.on(Posted)(lambda: None), "(event, ctx)"),
        (lambda app: [app.on(Posted, name="twice")(lambda _: None) for _ in range(2)], "already"),
    ],
    ids=[
        "no types",
        "abstract",
        "key",
        "topics",
        "own topics",
        "queue",
        "priority",
        "name",
        "option",
        "near option",
        "dramatiq's name",
        "retries as text",
        "retries below 0",
        "backoff as text",
        "backoff below 0",
        "limit as text",
        "limit of 0",
        "no limit",
        "no backoff",
        "retry when",
        "no parentheses",
        "signature",
        "twice",
    ],
)
def test_a_handler_that_cannot_work_is_refused_where_it_is_declared(declare: Any, said: str) -> None:
    app = App(Bus("memory://"))

    with pytest.raises(InvalidHandler) as refused:
        declare(app)

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": None},
        {"max_retries": 0, "min_backoff": 0, "max_backoff": 0},
        {"time_limit": float("inf"), "max_age": 1},
        {"min_backoff": 5_000, "max_backoff": 100},
        {"max_age": None, "retry_when": None},
    ],
    ids=str,
)
def test_options_may_be_what_dramatiq_takes(options: dict[str, Any]) -> None:
    app = App(Bus("memory://"))

    app.on(Posted, name="handler", **options)(lambda _: None)

    assert app.broker.get_actor("handler").options.items() >= options.items()


def test_a_handler_can_be_called_as_the_plain_function_it_is(app: App) -> None:
    @app.on(Posted)
    def handler(event: Posted) -> str:
        return event.text

    assert handler(Posted(agent_id="a1", text="hi")) == "hi"


PUBLISHER = """
import sys
from bus import Bus
bus = Bus(sys.argv[1], namespace=sys.argv[2])
for n in range(20):
    bus.publish_sync({"type": "test.posted", "agent_id": "a1", "text": str(n)}, topics=["agent:a1"])
bus.close_sync()
assert not any(name == "workers" or name.startswith(("workers.", "dramatiq")) for name in sys.modules)
"""


def test_a_publisher_that_imports_no_handler_gets_its_events_handled(redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    handled: list[str] = []

    @app.on(Posted, topics="agent:**", key="agent_id")
    def handler(event: Posted) -> None:
        handled.append(event.text)

    app.bind()
    run_program(PUBLISHER, redis_url, namespace)
    with working(app):
        app.broker.join("default", timeout=5000)
    bus.close_sync()

    assert handled == [str(n) for n in range(20)]


def test_in_a_rolling_deploy_the_old_workers_leave_the_new_handlers_jobs_alone(redis_url: str, namespace: str) -> None:
    buses = [Bus(redis_url, namespace=namespace) for _ in range(2)]
    old, new = (App(bus) for bus in buses)
    handled: list[tuple[str, str]] = []

    @old.on(Posted, topics="agent:**", name="first", key="agent_id")
    def first_in_old(event: Posted) -> None:
        handled.append(("old", event.text))

    @new.on(Posted, topics="agent:**", name="second", key="agent_id")
    def second_in_new(event: Posted) -> None:
        handled.append(("new", event.text))

    with working(old):
        post(buses[0], "before")
        old.broker.join("default", timeout=5000)
        new.bind()
        post(buses[0], "after")
        wait_until(lambda: ("old", "after") in handled, "the old handler to go on")
        wait_until(lambda: buses[0].store.pending("default") == 1, "the new handler's job to wait")
        assert handled == [("old", "before"), ("old", "after")]
        with working(new):
            new.broker.join("default", timeout=5000)
    for bus in buses:
        bus.close_sync()

    assert handled == [("old", "before"), ("old", "after"), ("new", "after")]
    assert buses[0].store.dead_count() == 0
    buses[0].store.close()


@pytest.mark.parametrize("stated", ["1", None])
def test_an_older_or_unstated_version_is_read_by_the_model_that_the_handler_knows(
    app: App, bus: Bus, namespace: str, stated: str | None
) -> None:
    type_name = f"test.{namespace}"
    handled: list[Event] = []

    class Newest(Event, type=type_name, version=3):
        text: str
        mood: str = "calm"

    @app.on(Newest, name="reader")
    def handler(event: Newest) -> None:
        handled.append(event)

    schema = f'"dataschema":"urn:callboard:{type_name}:{stated}",' if stated else ""
    older = (
        f'{{"specversion":"1.0","id":"x1","type":"{type_name}","source":"/t","time":"2026-01-01T00:00:00.000Z",'
        f'{schema}"data":{{"text":"old"}}}}'
    )
    bus.usable()
    bus.store.enqueue(Job("x1", Route("default", "reader", 1), "", b"e" + older.encode()), 1000)
    with working(app):
        app.broker.join("default", timeout=5000)

    assert handled == [Newest(text="old")]


@pytest.mark.parametrize("order", ["strict", "loose"])
def test_later_events_of_a_lane_wait_for_a_retry_or_pass_it_as_the_handler_says(
    app: App, bus: Bus, order: Literal["strict", "loose"]
) -> None:
    handled: list[str] = []

    @app.on(Posted, topics="agent:**", key="agent_id", order=order, min_backoff=100, max_backoff=200)
    def handler(event: Posted, ctx: Context) -> None:
        if event.text == "0" and ctx.attempt == 1:
            raise RuntimeError("not yet")
        handled.append(event.text)

    app.bind()
    for n in range(4):
        post(bus, str(n))
    with working(app):
        app.broker.join("default", timeout=10_000)

    assert handled == (["0", "1", "2", "3"] if order == "strict" else ["1", "2", "3", "0"])


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even my text")


def test_a_failure_that_cannot_be_judged_ends_in_the_dead_letters_and_is_never_taken_for_success(
    app: App, bus: Bus
) -> None:
    def judge(retries: int, error: BaseException) -> bool:
        raise AttributeError("a retry_when of the app that fails itself")

    @app.on(Posted, topics="agent:**", name="textless", max_retries=0)
    def textless(event: Posted) -> None:
        raise Nasty

    @app.on(Posted, topics="agent:**", name="unjudged", retry_when=judge)
    def unjudged(event: Posted) -> None:
        raise ValueError("no")

    app.bind()
    post(bus, "hi")
    with working(app):
        app.broker.join("default", timeout=5000, fail_fast=False)

    assert {dead.route.handler for dead in bus.store.dead()} == {"textless", "unjudged"}


def test_an_event_as_large_as_the_bus_allows_is_handled_and_heard(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace, max_bytes=4 << 20)
    app = App(bus)
    handled: list[int] = []

    @app.on(Posted, topics="agent:**")
    def handler(event: Posted) -> None:
        handled.append(len(event.text))

    app.bind()
    post(bus, "x" * (2 << 20))
    with working(app):
        app.broker.join("default", timeout=5000)
    bus.close_sync()

    assert handled == [2 << 20]


def test_no_version_of_the_bindings_comes_twice_even_after_the_server_lost_its_data(
    start_server: Callable[..., Server], namespace: str
) -> None:
    server = start_server()
    publisher, old, new = (Bus(server.url, namespace=namespace) for _ in range(3))
    for bus, name in ((old, "old"), (new, "new")):
        app = App(bus)
        app.on(Posted, name=name)(lambda _: None)
        if name == "new":
            with server.client() as client:
                client.flushall()
        app.bind()
        receipt = publisher.publish_sync(Posted(agent_id="a1", text="hi"))
        assert receipt.jobs == 1
        (count,) = publisher.store.census().counts
        assert count.handler == name
    for bus in (publisher, old, new):
        bus.close_sync()
