"""What workers tell under ``$worker:``: each kind, its fields, and what telling never does."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware, SkipMessage

from bus import Bus, BusUnavailable, Delivery, Event, Publication, SyncListener, codec
from bus.store.base import Job, Route, Store, Take, Taken
from tests.monitor import monitored
from tests.servers import Server
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App, Context, teller
from workers.middleware import Telling
from workers.notices import (
    JobDead,
    JobFailed,
    JobHandedBack,
    JobNotice,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobSucceeded,
    Notice,
    WorkerBooted,
    WorkerQuiet,
    WorkerStopped,
)
from workers.teller import Form

SECRET = "hunter2"
KINDS = [
    WorkerBooted,
    WorkerQuiet,
    WorkerStopped,
    JobStarted,
    JobSucceeded,
    JobFailed,
    JobRetried,
    JobDead,
    JobHandedBack,
    JobSkipped,
]
QUICK: dict[str, Any] = {"min_backoff": 2, "max_backoff": 10}


class Told(Event, type="test.told", version=1):
    text: str = SECRET


def hear(listener: SyncListener, until: type[Notice] = WorkerStopped) -> list[Delivery]:
    """What is told, up to the first of a kind."""
    heard: list[Delivery] = []
    while not heard or not isinstance(heard[-1].event, until):
        item = listener.get(10)
        assert isinstance(item, Delivery), f"after {heard} came {item}"
        heard.append(item)
    return heard


def jobs(heard: list[Delivery]) -> list[JobNotice]:
    return [item.event for item in heard if isinstance(item.event, JobNotice)]


def run(app: App, act: Callable[[], Any]) -> list[Delivery]:
    """All that one worker tells, from its boot to its end; meanwhile something is done, and the work that it makes."""
    with app.bus.listen_sync("$worker:**") as listener:
        with working(app):
            act()
            app.broker.join("default", timeout=10_000, fail_fast=False)
        return hear(listener)


def kinds(heard: list[Delivery]) -> list[str]:
    return [item.envelope.type.removeprefix("$worker.") for item in heard]


# What is told.


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_worker_and_a_job_that_succeeds(app: App, *, is_async: bool) -> None:
    if is_async:

        @app.on(Told, name="shop.handler")
        async def handler(event: Told) -> None:
            await asyncio.sleep(0.03)
    else:

        @app.on(Told, name="shop.handler")
        def handler_on_a_thread(event: Told) -> None:
            threading.Event().wait(0.03)

    heard = run(app, lambda: app.bus.publish_sync(Told(), id="one"))

    assert kinds(heard) == ["booted", "started", "succeeded", "quiet", "stopped"]
    booted, started, succeeded, quiet, stopped = (item.event for item in heard)
    worker = app.broker.lease.worker
    job: dict[str, Any] = {
        "worker": worker,
        "handler": "shop.handler",
        "queue": "default",
        "event_id": "one",
        "attempt": 1,
    }
    assert isinstance(booted, WorkerBooted)
    assert booted.boot_ms > 0
    assert isinstance(started, JobStarted)
    assert started.waited_ms is not None
    assert started == JobStarted(**job, waited_ms=started.waited_ms)
    assert 0 <= started.waited_ms < 10_000
    assert isinstance(succeeded, JobSucceeded)
    assert succeeded == JobSucceeded(**job, duration_ms=succeeded.duration_ms)
    assert 29 <= succeeded.duration_ms < 5_000
    assert quiet == WorkerQuiet(worker=worker, running=0)
    assert isinstance(stopped, WorkerStopped)
    assert stopped.stop_ms > 0
    assert [item.envelope.topics for item in heard[:2]] == [(f"$worker:{worker}",), (f"$worker:{worker}:shop.handler",)]
    assert all(item.ephemeral for item in heard)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_job_that_fails_and_ends_in_the_dead_letters(app: App, *, is_async: bool) -> None:
    if is_async:

        @app.on(Told, name="fails", max_retries=1, **QUICK)
        async def fails(event: Told) -> None:
            raise ValueError(event.text)
    else:

        @app.on(Told, name="fails", max_retries=1, **QUICK)
        def fails_on_a_thread(event: Told) -> None:
            raise ValueError(event.text)

    heard = run(app, lambda: app.bus.publish_sync(Told(), id="one"))

    told = jobs(heard)
    assert kinds(heard)[1:-2] == ["started", "failed", "retried", "started", "failed", "dead"]
    assert [one.attempt for one in told] == [1, 1, 1, 2, 2, 2]
    assert {(one.handler, one.event_id) for one in told} == {("fails", "one")}
    assert [one.error for one in told if isinstance(one, JobFailed | JobDead)] == ["ValueError"] * 3
    assert [one.waited_ms is None for one in told if isinstance(one, JobStarted)] == [False, True]
    assert all(one.duration_ms >= 0 for one in told if isinstance(one, JobFailed))
    (retried,) = (one for one in told if isinstance(one, JobRetried))
    assert 1 <= retried.retry_in_ms <= 10


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_plain_actors_too(app: App, *, is_async: bool) -> None:
    if is_async:

        @dramatiq.actor(broker=app.broker, actor_name="plain", max_retries=0)
        async def plain(text: str) -> None:
            raise KeyError(text)
    else:

        @dramatiq.actor(broker=app.broker, actor_name="plain", max_retries=0)
        def plain(text: str) -> None:
            raise KeyError(text)

    sent: list[dramatiq.Message[Any]] = []
    heard = run(app, lambda: sent.append(plain.send(SECRET)))

    assert kinds(heard)[1:-2] == ["started", "failed", "dead"]
    assert {(one.handler, one.event_id, one.attempt) for one in jobs(heard)} == {("plain", sent[0].message_id, 1)}


def test_the_time_of_a_coroutine_is_its_own_whatever_hooks_take(app: App) -> None:
    class Slow(Middleware):
        def after_process_message(self, *_: Any, **__: Any) -> None:
            threading.Event().wait(0.3)

    @app.on(Told)
    async def handler(event: Told) -> None: ...

    app.broker.add_middleware(Slow())
    heard = run(app, lambda: app.bus.publish_sync(Told()))

    succeeded = jobs(heard)[-1]
    assert isinstance(succeeded, JobSucceeded)
    assert 0 < succeeded.duration_ms < 250


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("wish", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_was_started_ends_though_a_hook_of_the_app_asks_for_an_exit(
    app: App, wish: type[BaseException], *, is_async: bool
) -> None:
    class Exits(Middleware):
        def after_process_message(self, *_: Any, **__: Any) -> None:
            raise wish

    if is_async:

        @app.on(Told)
        async def handler(event: Told) -> None: ...
    else:

        @app.on(Told)
        def handler_on_a_thread(event: Told) -> None: ...

    app.broker.add_middleware(Exits())
    heard = run(app, lambda: [app.bus.publish_sync(Told()) for _ in range(8)])  # more than a worker has threads

    assert sorted(kinds(heard)[1:-2]) == ["started"] * 8 + ["succeeded"] * 8


def test_what_is_too_old_is_dead_without_having_been_started(app: App) -> None:
    @dramatiq.actor(broker=app.broker, max_age=1)
    def old() -> None: ...

    message = old.message()
    heard = run(app, lambda: app.broker.enqueue(message.copy(message_timestamp=message.message_timestamp - 60_000)))

    (dead,) = jobs(heard)
    assert isinstance(dead, JobDead)
    assert dead.error == "SkipMessage"


def test_what_cannot_be_read_is_dead_without_having_been_started(app: App) -> None:
    @dramatiq.actor(broker=app.broker)
    def plain() -> None: ...

    job = Job("unreadable", Route("default", "plain", 1), "", b"m{")
    heard = run(app, lambda: app.bus.store.enqueue(job, 60_000))

    (dead,) = jobs(heard)
    assert isinstance(dead, JobDead)
    assert (dead.handler, dead.queue, dead.event_id, dead.error) == ("plain", "default", "", "Undecodable")


def test_what_nobody_knows_is_dead_without_having_been_started(app: App) -> None:
    if app.bus.mode != "memory":
        pytest.skip("on a server it waits for a worker that knows it")
    app.broker.declare_queue("default")
    message: dramatiq.Message[None] = dramatiq.Message("default", "nobody", (), {}, {})

    heard = run(app, lambda: app.broker.enqueue(message))

    (dead,) = jobs(heard)
    assert isinstance(dead, JobDead)
    assert (dead.handler, dead.event_id, dead.error) == ("nobody", message.message_id, "ActorNotFound")


def test_what_has_killed_its_workers_is_told_by_the_one_that_finds_it(app: App) -> None:
    store, handlers = app.bus.open_sync().store, ("deadly",)
    app.broker.declare_queue("default")
    message: dramatiq.Message[None] = dramatiq.Message("default", "deadly", (), {}, {})
    store.enqueue(Job("deadly", Route("default", "deadly", 1), "", b"m" + message.encode()), 60_000)

    def take(life: int) -> list[Taken]:
        store.beat("sweeper", 60_000, 0, (), 99)
        return store.exchange(f"doomed-{life}", (), [Take(1, "default", handlers, 1)]).taken

    for life in range(5):
        (taken,) = wait_until(lambda life=life: take(life), "it to be had")  # type: ignore[misc]
        store.beat(f"doomed-{life}", 1, 1, ((taken.job, taken.ticket),), 99)
    heard = run(app, lambda: wait_until(store.dead_count, "it to be buried"))
    store.leave("sweeper")
    app.bus.close_sync()

    (dead,) = jobs(heard)
    assert isinstance(dead, JobDead)
    assert (dead.handler, dead.event_id, dead.attempt, dead.error) == ("deadly", message.message_id, 1, "poison")


@pytest.mark.parametrize("place", ["first", "last"])
def test_what_a_middleware_skips(app: App, place: str) -> None:
    class Skipping(Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:  # noqa: ARG002 - the hook's signature
            raise SkipMessage("not today")

    @dramatiq.actor(broker=app.broker)
    def skipped() -> None: ...

    if place == "first":
        app.broker.add_middleware(Skipping(), before=type(app.broker.middleware[0]))
    else:
        app.broker.add_middleware(Skipping())
    heard = run(app, skipped.send)

    assert [type(one) for one in jobs(heard)] == [JobSkipped]


def test_a_job_that_is_cut_short_by_the_worker_s_end_is_handed_back(app: App) -> None:
    running = threading.Event()

    @app.on(Told)
    async def endless(event: Told) -> None:
        running.set()
        await asyncio.Event().wait()

    with app.bus.listen_sync("$worker:**") as listener:
        worker = dramatiq.Worker(app.broker, worker_timeout=50)
        worker.start()
        app.bus.publish_sync(Told())
        assert running.wait(10)
        worker.stop(timeout=100)
        heard = hear(listener)

    assert kinds(heard) == ["booted", "started", "quiet", "handed_back", "stopped"]
    assert isinstance(heard[2].event, WorkerQuiet)
    assert heard[2].event.running == 1
    assert isinstance(heard[3].event, JobHandedBack)
    assert heard[3].event.duration_ms > 0


def test_a_boot_that_fails_is_no_boot(app: App) -> None:
    @app.lifespan
    async def broken() -> AsyncIterator[None]:
        if app.bus.mode:
            raise OSError("no")
        yield

    with app.bus.listen_sync("$worker:**") as listener:
        with pytest.raises(Exception, match="could not start"), working(app):
            pass

        assert listener.get(0.2) is None


def test_a_worker_that_starts_anew_tells_anew(app: App) -> None:
    app.broker.declare_queue("default")

    assert [kinds(run(app, lambda: None)) for _ in range(2)] == [["booted", "quiet", "stopped"]] * 2


# What listeners choose.


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_is_encoded_as_events_are(kind: type[Notice]) -> None:
    values = {"str": 'a "word"', "int": 7, "float": 1.5, "int | None": None, "str | None": None}
    fields: dict[str, Any] = {name: values[str(each)] for name, each in kind.__annotations__.items()}
    if issubclass(kind, JobNotice):
        fields = {"handler": "shop.handler", "queue": "default", "event_id": "é1", "attempt": 2, **fields}

    told = Form(kind, "/shop", "$worker:w1:shop.handler").filled(1_900_000_000_123, {"worker": "w1", **fields})

    envelope = codec.decode(told)
    assert codec.read(envelope) == kind(worker="w1", **fields)
    assert codec.encode(envelope) == told
    assert (envelope.source, envelope.topics) == ("/shop", ("$worker:w1:shop.handler",))
    assert envelope.time_ms == 1_900_000_000_123


def test_one_worker_one_handler_or_all(app: App) -> None:
    for name in ("mine", "unfit:for/a/topic", "o" * 250):

        @app.on(Told, name=name)
        def handler(event: Told) -> None: ...

    worker = app.broker.lease.worker
    patterns = ["$worker:*:mine", "$worker:*:unfit~for~a~topic", f"$worker:*:{'o' * 120}", f"$worker:{worker}"]
    listeners = [app.bus.listen_sync(pattern) for pattern in patterns]
    with listeners[0] as mine, listeners[1] as unfit, listeners[2] as long, listeners[3] as alone:
        run(app, lambda: app.bus.publish_sync(Told()))
        heard = [hear(each, until=JobSucceeded) for each in (mine, unfit, long)]

        assert [{one.handler for one in jobs(each)} for each in heard] == [
            {"mine"},
            {"unfit:for/a/topic"},
            {"o" * 250},
        ]
        assert kinds(hear(alone)) == ["booted", "quiet", "stopped"]


def test_nobody_else_hears_it(app: App) -> None:
    @app.on(Told)
    def handler(event: Told) -> None: ...

    with app.bus.listen_sync("**") as everything:
        run(app, lambda: app.bus.publish_sync(Told()))
        item = everything.get(10)

        assert isinstance(item, Delivery)
        assert isinstance(item.event, Told)
        assert everything.get(0.1) is None
    assert app.bus.store.logs() == ["main"]


# What is never told, and what telling never does.


def test_neither_payloads_nor_the_words_of_an_error_are_told(app: App) -> None:
    @app.on(Told, key="text", max_retries=1, **QUICK)
    def handler(event: Told, ctx: Context) -> None:
        raise RuntimeError(f"no {event.text}")

    heard = run(app, lambda: app.bus.publish_sync(Told(), topics=["global", f"agent:{SECRET}"]))

    assert "dead" in kinds(heard)
    assert SECRET not in json.dumps([item.envelope.model_dump(mode="json") for item in heard])


def test_nothing_is_told_where_it_is_switched_off(bus: Bus) -> None:
    app = App(bus, tell=False)
    assert not [each for each in app.broker.middleware if isinstance(each, Telling)]

    @app.on(Told)
    def handler(event: Told) -> None: ...

    with bus.listen_sync("$worker:**") as listener, counted(bus.store) as announced:
        with working(app):
            bus.publish_sync(Told())
            app.broker.join("default", timeout=10_000)
            assert not [thread for thread in threading.enumerate() if thread.name == "callboard teller"]

        assert listener.get(0.2) is None
        assert announced == []


@contextmanager
def counted(store: Store) -> Iterator[list[int]]:
    """How many were told in each call that tells them."""
    sizes: list[int] = []
    announce = store.announce

    def count(log: str, epoch: str, whispers: Any) -> Any:
        sizes.append(len(whispers))
        return announce(log, epoch, whispers)

    store.announce = count  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        del store.announce


def test_where_nobody_listens_next_to_nothing_is_sent(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller, "DEAF_S", 3600)

    @app.on(Told)
    def handler(event: Told) -> None: ...

    with counted(app.bus.store) as announced, working(app):
        wait_until(lambda: not app.runtime.teller.listening, "the teller to notice that nobody listens")
        for _ in range(300):
            app.bus.publish_sync(Told())
        app.broker.join("default", timeout=30_000)

        assert announced == [1]


def test_to_find_out_whether_somebody_listens_one_word_is_enough(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller, "DEAF_S", 0.01)
    sent: list[int] = []
    announce = app.bus.store.announce

    def slow_announce(log: str, epoch: str, whispers: Any) -> Any:
        sent.append(len(whispers))
        threading.Event().wait(0.05)
        return announce(log, epoch, whispers)

    @app.on(Told)
    def handler(event: Told) -> None: ...

    app.bus.store.announce = slow_announce  # type: ignore[method-assign]

    def tried() -> bool:
        app.bus.publish_sync(Told())
        return len(sent) > 2  # the first ones were said before it was known that nobody listens

    with working(app):
        wait_until(tried, "the teller to try")
        app.broker.join("default", timeout=30_000)
    vars(app.bus.store).pop("announce", None)

    assert set(sent[1:]) == {1}


def test_who_listens_already_hears_all_of_what_happens_after_a_silence(app: App) -> None:
    @app.on(Told)
    def handler(event: Told) -> None: ...

    with working(app):
        wait_until(lambda: not app.runtime.teller.listening, "the teller to notice that nobody listens")
        with app.bus.listen_sync("$worker:**") as listener:
            wait_until(lambda: app.runtime.teller.listening, "the teller to be ready to try again")
            app.bus.publish_many_sync([Publication(Told()) for _ in range(20)])
            app.broker.join("default", timeout=30_000)
            heard = Counter[str]()
            while heard["$worker.succeeded"] < 20 and (item := listener.get(5)) is not None:
                assert isinstance(item, Delivery)
                heard[item.envelope.type] += 1

    assert heard == {"$worker.started": 20, "$worker.succeeded": 20}


def test_the_server_hears_of_it_about_once_a_second(server: Server, redis_url: str, namespace: str) -> None:
    app = App(Bus(redis_url, namespace=namespace))

    @dramatiq.actor(broker=app.broker)
    def plain() -> None: ...

    with working(app):
        wait_until(lambda: not app.runtime.teller.listening, "the teller to notice that nobody listens")
        with monitored(server) as heard:
            began = time.monotonic()
            for _ in range(500):
                plain.send()
            app.broker.join("default", timeout=30_000)
            took_s = time.monotonic() - began
    app.bus.close_sync()

    # Each try tells what was said by then: with two notices a job that would be a thousand.
    told = [one for one in heard if one.command.startswith("PUBLISH ") and ":live:" in one.command]
    assert len(told) <= 4 * (took_s + 1)


def test_who_comes_later_hears_within_about_a_second(app: App) -> None:
    @app.on(Told)
    def handler(event: Told) -> None: ...

    with working(app):
        wait_until(lambda: not app.runtime.teller.listening, "the teller to notice that nobody listens")
        with app.bus.listen_sync("$worker:**") as listener:
            began = time.monotonic()
            while listener.get(0.02) is None:
                app.bus.publish_sync(Told())
                assert time.monotonic() - began < 5, "nothing was told"


def test_a_notice_that_cannot_travel_costs_the_others_nothing(app: App) -> None:
    @dramatiq.actor(broker=app.broker, max_retries=0)
    def plain() -> None: ...

    def act() -> None:
        app.broker.enqueue(plain.message().copy(message_id="\ud800"))
        plain.send()

    assert kinds(run(app, act)) == ["booted", "started", "succeeded", "quiet", "stopped"]


@pytest.mark.parametrize("failure", [BusUnavailable("away"), RuntimeError("a defect")])
def test_a_teller_that_cannot_tell_harms_no_job(app: App, failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    @app.on(Told)
    def handler(event: Told) -> None:
        done.set()

    def announce(*_: Any) -> Any:
        raise failure

    app.bus.usable()
    app.bus.store.announce = announce  # type: ignore[assignment, method-assign]
    with working(app):
        app.bus.publish_sync(Told())
        assert done.wait(10)
        app.broker.join("default", timeout=10_000)
    del app.bus.store.announce

    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")] == []


def test_a_teller_that_hangs_holds_nobody_up(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers go on, and so does the stop of the worker; what cannot be told any more is lost, oldest first."""
    monkeypatch.setattr(teller, "END_S", 0.05)
    hanging, released, done = threading.Event(), threading.Event(), []

    @app.on(Told)
    def handler(event: Told) -> None:
        done.append(1)

    def announce(*_: Any) -> Any:
        hanging.set()
        released.wait(30)
        raise BusUnavailable("away")

    app.bus.usable()
    app.bus.store.announce = announce  # type: ignore[assignment, method-assign]
    with working(app):
        assert hanging.wait(10)
        for _ in range(50):
            app.bus.publish_sync(Told())
        app.broker.join("default", timeout=10_000)
        assert len(done) == 50
    assert [thread.name for thread in threading.enumerate() if thread.name == "callboard teller"]
    released.set()
    wait_until(
        lambda: all(thread.name != "callboard teller" for thread in threading.enumerate()), "the teller's thread to end"
    )
    del app.bus.store.announce
