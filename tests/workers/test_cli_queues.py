from __future__ import annotations

import json
import threading
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from bus import Bus, Event
from tests.waiting import wait_until
from tests.workers.commands import callboard, error_of
from tests.workers.running import working
from workers import App, Context
from workers.doctor import examine

Run = Callable[..., CompletedProcess[str]]


class Order(Event, type="test.order", version=1):
    agent_id: str
    n: int


@pytest.fixture
def queues(redis_url: str, namespace: str) -> Run:
    def run(*args: str) -> CompletedProcess[str]:
        return callboard("queues", *args, env={"BUS_URL": redis_url, "BUS_NAMESPACE": namespace})

    return run


def test_the_table_says_what_the_work_waits_for(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    begun, release = threading.Event(), threading.Event()

    @app.on(Order, key="agent_id", name="orders", min_backoff=60_000, max_backoff=60_000)
    def orders(event: Order, ctx: Context) -> None:
        if event.agent_id == "retried":
            raise RuntimeError("in a minute")
        begun.set()
        release.wait(20)

    @app.on("test.never", name="idle", queue="other")
    def idle(event: object) -> None: ...

    app.bind()
    bus.publish_sync(Order(agent_id="a", n=0), delay=3600)
    with working(app, threads=2):
        for n in range(3):
            bus.publish_sync(Order(agent_id="flying", n=n))
        bus.publish_sync(Order(agent_id="retried", n=0))
        assert begun.wait(5)
        wait_until(lambda: bus.store.census().counts[0].held == 1, "the retry to be held")
        facts = [json.loads(line) for line in queues("--json").stdout.splitlines()]
        table = queues().stdout
        bus.store.pause("default")
        release.set()
    bus.close_sync()

    (orders_facts, idle_facts) = facts
    (holder,) = orders_facts.pop("in_flight").items()
    assert holder[1] == 1
    assert orders_facts == {
        "queue": "default",
        "handler": "orders",
        "unfinished": 5,
        "ready": 0,
        "in_lanes": 2,
        "delayed": 1,
        "retrying": 1,
        "suspects": 0,
        "oldest_s": None,
        "consumers": 1,
        "bound": True,
        "paused": False,
        "paused_as": None,
        "orphaned": False,
    }
    assert (idle_facts["handler"], idle_facts["unfinished"], idle_facts["consumers"]) == ("idle", 0, 1)
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["default", "orders"], ["other", "idle"]]


@pytest.mark.parametrize("name", ["default", "orders"], ids=["queue", "handler"])
def test_a_pause_holds_all_workers_at_once_and_a_resume_lets_them_go_on(
    queues: Run, redis_url: str, namespace: str, name: str
) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    handled: list[int] = []

    @app.on(Order, key="agent_id", name="orders")
    def orders(event: Order) -> None:
        handled.append(event.n)

    with working(app):
        assert queues("pause", name).stderr == f"paused {name}\n"
        bus.publish_sync(Order(agent_id="a", n=1))
        (fact,) = [json.loads(line) for line in queues("--json").stdout.splitlines()]
        assert (fact["paused"], fact["paused_as"], fact["ready"], handled) == (True, name, 1, [])
        remark = "queue paused" if name == "default" else "paused"
        assert queues().stdout.splitlines()[1].endswith(f"  {remark}")
        assert 0 <= fact["oldest_s"] < 10
        assert queues("resume", name).stderr == f"resumed {name}\n"
        wait_until(lambda: handled == [1], "the resumed work")
    bus.close_sync()

    assert queues("resume", name).stderr == f"{name} was not paused\n"


def test_who_resumes_a_handler_of_a_paused_queue_is_told_what_to_resume(
    queues: Run, redis_url: str, namespace: str
) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    app.on(Order, name="orders")(lambda _: None)
    app.bind()
    bus.close_sync()
    queues("pause", "default")

    told = queues("resume", "orders")

    assert told.stderr == "orders was not paused\nits queue is paused: callboard queues resume default\n"
    assert json.loads(queues("resume", "orders", "--json").stdout) == {
        "name": "orders",
        "paused": True,
        "changed": False,
    }
    queues("pause", "orders")
    assert json.loads(queues("--json").stdout)["paused_as"] == "default"
    queues("resume", "default")
    assert json.loads(queues("--json").stdout)["paused_as"] == "orders"


def test_a_table_in_a_pipe_is_whole(redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    name = "a.handler.of.a.package.with.a.long.name.that.alone.fills.most.of.a.line"
    app.on(Order, name=name, queue="a-queue-with-a-name-as-long-as-they-are-at-times")(lambda _: None)
    app.bind()
    bus.close_sync()

    shown = callboard("queues", env={"BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "COLUMNS": ""}).stdout

    header, row = shown.splitlines()

    assert header.split() == ["queue", "handler", "workers"]
    assert row.split() == ["a-queue-with-a-name-as-long-as-they-are-at-times", name, "none", "nobody", "serves", "it"]


def test_a_held_lane_says_what_it_waits_for(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, key="agent_id", name="orders", min_backoff=60_000, max_backoff=60_000)
    def orders(event: Order) -> None:
        raise KeyError("secret of the order")

    assert queues("held").stderr == "no lane waits for a retry\n"
    with working(app):
        for n in range(3):
            bus.publish_sync(Order(agent_id="a 1", n=n))
        wait_until(bus.store.retrying, "the lane to wait for its retry")
    (fact,) = [json.loads(line) for line in queues("held", "--json").stdout.splitlines()]
    table = queues("held").stdout
    bus.close_sync()

    assert 20 < fact.pop("due_in_s") <= 60
    assert fact.pop("job") in table
    assert fact == {
        "queue": "default",
        "handler": "orders",
        "key": "a 1",
        "what": "test.order",
        "attempts": 1,
        "error": "KeyError",
        "behind": 2,
    }
    assert "secret" not in table


def test_a_binding_that_nobody_serves_is_told_and_can_be_forgotten(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="orders")
    def orders(event: Order) -> None: ...

    app.bind()
    bus.publish_sync(Order(agent_id="a", n=1))
    told = queues()
    with working(app):
        app.broker.join("default", timeout=5000)
        wait_until(lambda: bus.store.census().serving, "the worker to be known")
        assert "1 worker(s) serve 'orders'" in error_of(queues("forget", "orders"), 1)
        assert "nobody serves it" not in queues().stdout
    queues("pause", "orders")
    bus.publish_sync(Order(agent_id="a", n=2))
    forgot = queues("forget", "orders").stderr.splitlines()
    bus.publish_sync(Order(agent_id="a", n=3))
    again = queues("forget", "orders").stderr
    (fact,) = [json.loads(line) for line in queues("--json").stdout.splitlines()]
    bus.close_sync()

    assert "nobody serves it" in told.stdout
    assert "callboard queues forget orders" in told.stderr
    assert forgot[0] == "forgot orders"
    assert forgot[1].startswith("1 unfinished job(s)")
    assert again.startswith("orders is not bound")
    assert (fact["unfinished"], fact["bound"], fact["orphaned"]) == (1, False, True)


def test_bindings_that_nobody_serves_are_told_in_one_line(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)
    for n in range(7):

        @app.on(Order, name=f"shop.h{n}")
        def handler(event: Order) -> None: ...

    app.bind()
    bus.close_sync()
    _, told = queues().stderr.splitlines()

    assert told.startswith("7 handlers: events become work for them, and no worker serves them. ")
    assert "callboard queues forget HANDLER" in told
    assert told.endswith("(shop.h0, shop.h1, shop.h2, shop.h3, shop.h4 and 2 more)")


def test_an_unknown_name_is_one_clear_line(queues: Run, redis_url: str, namespace: str) -> None:
    assert "no queue or handler 'nowhere' (there are none yet)" in error_of(queues("pause", "nowhere"), 2)

    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="shop.orders", queue="mail")
    def orders(event: Order) -> None: ...

    app.bind()
    bus.close_sync()

    assert "no queue or handler 'mial'; did you mean 'mail'?" in error_of(queues("pause", "mial"), 2)
    assert "no handler 'shop.order'; did you mean 'shop.orders'?" in error_of(queues("forget", "shop.order"), 2)
    assert "no queue or handler 'nowhere' (there are: mail, shop.orders)" in error_of(
        queues("drop", "nowhere", "--yes"), 2
    )


def test_what_a_command_did_can_be_had_as_json(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="orders")
    def orders(event: Order) -> None: ...

    app.bind()
    bus.publish_sync(Order(agent_id="a", n=0))
    bus.close_sync()

    did = [
        json.loads(queues(*command, "--json").stdout)
        for command in (("pause", "orders"), ("pause", "orders"), ("resume", "orders"), ("forget", "orders"))
    ]

    assert did == [
        {"name": "orders", "paused": True, "changed": True},
        {"name": "orders", "paused": True, "changed": False},
        {"name": "orders", "paused": False, "changed": True},
        {"handler": "orders", "forgotten": True, "unfinished": 1},
    ]


def test_the_work_of_a_queue_is_dropped_for_good_by_who_says_so(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="orders", key="agent_id")
    def orders(event: Order) -> None: ...

    @app.on(Order, name="other", queue="other")
    def other(event: Order) -> None: ...

    app.bind()
    for n in range(3):
        bus.publish_sync(Order(agent_id="a", n=n))
    bus.publish_sync(Order(agent_id="a", n=3), delay=60)

    refused = error_of(queues("drop", "default"), 2)
    kept = bus.store.pending("default")
    dropped = queues("drop", "default", "--yes", "--json")
    again = queues("drop", "default", "--yes")
    left = bus.store.pending("default"), bus.store.pending("other"), bus.store.dead_count()
    bus.close_sync()

    assert "4 unfinished job(s) of queue 'default' would be gone for good: add --yes" in refused
    assert kept == 4
    assert json.loads(dropped.stdout) == {"name": "default", "dropped": 4}
    assert again.stderr == "dropped 0 unfinished job(s) of default\n"
    assert left == (0, 4, 0)


def test_what_is_left_of_a_handler_that_is_gone_can_be_dropped(queues: Run, redis_url: str, namespace: str) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="__main__.orders", key="agent_id")
    def orders(event: Order) -> None: ...

    @app.on(Order, name="shop.other")
    def other(event: Order) -> None: ...

    app.bind()
    for n in range(3):
        bus.publish_sync(Order(agent_id="a", n=n))
    queues("forget", "shop.other")
    script = queues().stderr
    forgot = queues("forget", "__main__.orders").stderr
    told = queues().stderr
    refused = error_of(queues("drop", "__main__.orders"), 2)
    dropped = queues("drop", "__main__.orders", "--yes").stderr
    left = queues().stderr, bus.store.pending("default")
    bus.close_sync()

    assert "__main__.orders: events become work for it, and no 'callboard worker' can serve it" in script
    assert "work waits for what nobody serves and no event is bound to (shop.other)" in script
    assert "'callboard queues drop __main__.orders --yes' drops them" in forgot
    assert "no event is bound to (__main__.orders, shop.other). " in told
    assert "callboard queues drop HANDLER --yes" in told
    assert "3 unfinished job(s) of handler '__main__.orders' would be gone for good: add --yes" in refused
    assert dropped == "dropped 3 unfinished job(s) of __main__.orders\n"
    assert "(shop.other)" in left[0]
    assert left[1] == 3


@pytest.mark.parametrize("name", ["default", "shop.orders"])
def test_a_pause_outlives_what_was_paused_and_is_told_and_can_be_undone(
    queues: Run, redis_url: str, namespace: str, name: str
) -> None:
    bus = Bus(redis_url, namespace=namespace)
    app = App(bus)

    @app.on(Order, name="shop.orders")
    def orders(event: Order) -> None: ...

    app.bind()
    queues("pause", name)
    queues("forget", "shop.orders")
    told = queues().stderr
    checked = [finding for finding in examine(bus) if finding.check == "paused"]
    resumed = queues("resume", name).stderr
    after = queues().stderr
    bus.close_sync()

    assert (
        f"{name} is paused, though nothing is bound to it and no work of it waits: callboard queues resume {name}"
        in told
    )
    assert [(one.verdict, one.what) for one in checked] == [("warning", name)]
    assert resumed == f"resumed {name}\n"
    assert "paused" not in after


def test_memory_has_no_queues_to_look_at_from_outside() -> None:
    assert "in memory" in error_of(callboard("queues"), 2)
