"""The broker as Dramatiq's own: what users of ``StubBroker`` and ``RedisBroker`` lean on, in both modes."""

from __future__ import annotations

import gc
import logging
import queue
import weakref

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.common import current_millis
from dramatiq.errors import ActorNotFound, DecodeError
from dramatiq.middleware import AgeLimit, Middleware

from bus import Bus
from tests.waiting import wait_until
from tests.workers.running import working
from workers import App


def test_a_queue_is_looked_at_filled_and_emptied_as_a_queue(app: App) -> None:
    done: list[int] = []

    @dramatiq.actor(broker=app.broker)
    def note(n: int) -> None:
        done.append(n)

    sent = [note.send(n) for n in range(3)]
    view = app.broker.queues["default"]
    assert (view.qsize(), view.unfinished_tasks, view.empty()) == (3, 3, False)
    assert Message.decode(view.get(timeout=1)) == sent[0]
    view.put(note.message(9).encode())
    for wrong, error in ((b"no message", DecodeError), (note.message(1).copy(queue_name="x").encode(), ValueError)):
        with pytest.raises(error):
            view.put(wrong)
    with working(app):
        view.join()

    assert sorted(done) == [1, 2, 9]
    assert view.empty()
    with pytest.raises(queue.Empty):
        view.get_nowait()


def test_middleware_that_is_added_or_taken_away_late_is_asked_from_then_on(app: App) -> None:
    seen: list[int] = []

    class Late(Middleware):
        def before_enqueue(self, broker: dramatiq.Broker, message: Message[None], delay: int | None) -> None:  # noqa: ARG002 - a hook
            seen.append(message.args[0])

    @dramatiq.actor(broker=app.broker)
    def note(n: int) -> None: ...

    late = Late()
    note.send(1)
    app.broker.add_middleware(late)
    note.send(2)
    app.broker.middleware.remove(late)
    note.send(3)

    assert seen == [2]


def test_a_middleware_that_goes_while_it_is_found_out_who_is_asked_is_not_asked_again(app: App) -> None:
    seen: list[str] = []

    class Goes(Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:  # noqa: ARG002 - a hook
            seen.append("asked")

    class Elsewhere(Middleware):
        """What another thread does in that very moment."""

        @property
        def goes_last(self) -> bool:
            if goes in app.broker.middleware:
                app.broker.middleware.remove(goes)
                ask()
            return False

        def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None: ...

    @dramatiq.actor(broker=app.broker)
    def note() -> None: ...

    def ask() -> list[str]:
        seen.clear()
        app.broker.emit_before("process_message", dramatiq.MessageProxy(note.message()))
        return seen

    goes = Goes()
    app.broker.add_middleware(goes)
    app.broker.add_middleware(Elsewhere())
    ask()

    assert ask() == []


def test_jobs_in_flight_are_unfinished_and_no_longer_in_the_queue(app: App) -> None:
    seen: list[tuple[int, int]] = []

    @dramatiq.actor(broker=app.broker)
    def look() -> None:
        view = app.broker.queues["default"]
        seen.append((view.qsize(), view.unfinished_tasks))

    look.send()
    with working(app):
        app.broker.join("default", timeout=5000)

    assert seen == [(0, 1)]


@pytest.mark.parametrize("eta", [None, "not-a-number"])
def test_a_message_with_an_eta_that_is_none_runs_at_once(
    app: App, eta: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    @dramatiq.actor(broker=app.broker)
    def note() -> None:
        done.append("done")

    app.broker.queues["default"].put(note.message_with_options(eta=eta).encode())
    with working(app):
        app.broker.join("default", timeout=5000)

    assert done == ["done"]
    assert ("Invalid eta value" in caplog.text) == (eta is not None)


@pytest.mark.parametrize(("where", "index"), [("before", 0), ("after", 1)])
def test_a_middleware_is_added_beside_the_first_one_that_dramatiq_has(app: App, where: str, index: int) -> None:
    class Mine(Middleware):
        pass

    mine = Mine()
    app.broker.add_middleware(mine, **{where: AgeLimit})

    assert app.broker.middleware[index] is mine


def test_what_an_actor_throws_on_purpose_is_told_quietly_and_not_tried_again(
    app: App, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    @dramatiq.actor(broker=app.broker, throws=KeyError)
    def refuse() -> None:
        tried.append(1)
        raise KeyError("on purpose")

    with caplog.at_level(logging.INFO), working(app):
        refuse.send()
        app.broker.join("default", timeout=5000, fail_fast=False)
        (dead,) = bus.store.dead()

    assert tried == [1]
    assert b"on purpose" in dead.notes
    assert "Aborting message" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_what_died_here_is_in_sight_and_raised_by_a_join(app: App) -> None:
    @dramatiq.actor(broker=app.broker, max_retries=0)
    def fail(n: int) -> None:
        raise ZeroDivisionError(f"number {n}")

    with working(app):
        sent = fail.send(1)
        with pytest.raises(ZeroDivisionError, match="number 1"):
            app.broker.join("default", timeout=5000)
        assert [message.message_id for message in app.broker.dead_letters] == [sent.message_id]
        app.broker.join("default", timeout=5000, fail_fast=False)
        app.broker.flush_all()
        app.broker.join("default", timeout=5000)
        app.broker.fail_fast_default = False
        for n in range(150):
            fail.send(n)
        app.broker.join("default", timeout=5000)

    assert len(app.broker.dead_letters) == (150 if app.bus.mode == "memory" else 100)


def test_a_process_that_only_works_keeps_no_exception_alive(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # records keep exceptions too
    raised: list[weakref.ref[BaseException]] = []

    class Failure(Exception):
        def __init__(self) -> None:
            raised.append(weakref.ref(self))

    @dramatiq.actor(broker=app.broker, max_retries=1, min_backoff=1, max_backoff=1)
    def fail() -> None:
        raise Failure

    gc.disable()
    try:
        with working(app, threads=1):
            app.broker.owns_process = True  # as a command line has it
            fail.send()
            app.broker.join("default", timeout=5000)
            wait_until(lambda: [one() for one in raised] == [None, None], "both exceptions to be gone")
    finally:
        gc.enable()

    assert app.broker.dead_letters == []


def test_a_prefetch_that_was_chosen_is_what_a_worker_takes_ahead(app: App) -> None:
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=4)
    worker.queue_prefetch = 5
    done: list[int] = []

    @dramatiq.actor(broker=app.broker)
    def note(n: int) -> None:
        done.append(n)

    worker.start()
    try:
        for thread in worker.workers:
            thread.pause()
        wait_until(lambda: all(thread.paused_event.is_set() for thread in worker.workers), "the threads to pause")
        for n in range(15):
            note.send(n)
        wait_until(lambda: worker.work_queue.qsize() == 5, "five jobs to be taken")
        # On Redis one more was handed to a thread that stood by until the pause: the next beats tell that nobody heard it.
        wait_until(lambda: app.broker.queues["default"].qsize() == 10, "the others to be left", timeout=10)
        worker.resume()
        app.broker.join("default", timeout=5000)
    finally:
        worker.stop()

    assert sorted(done) == list(range(15))


def test_a_message_for_an_actor_that_nobody_knows_waits_on_redis_and_is_buried_in_memory(app: App) -> None:
    message: Message[None] = Message(queue_name="some", actor_name="nobody", args=(), kwargs={}, options={})
    app.broker.declare_queue("some")
    known: list[int] = []

    with working(app):
        app.broker.enqueue(message)
        if app.bus.mode == "memory":
            with pytest.raises(ActorNotFound, match="nobody"):
                app.broker.join("some", timeout=5000)
            assert app.broker.dead_letters == [message]
        else:

            @dramatiq.actor(broker=app.broker, queue_name="some", actor_name="nobody")
            def known_at_last() -> None:
                known.append(1)

            app.broker.join("some", timeout=5000)
            assert known == [1]


def test_a_message_with_an_eta_waits_for_it_in_the_store(app: App, bus: Bus) -> None:
    done_at: list[int] = []

    @dramatiq.actor(broker=app.broker)
    def note() -> None:
        done_at.append(current_millis())

    eta = current_millis() + 300
    app.broker.enqueue(note.message_with_options(eta=eta))
    (count,) = bus.store.census().counts
    with working(app):
        app.broker.join("default", timeout=5000)

    assert (count.delayed, count.ready) == (1, 0)
    assert done_at[0] >= eta
