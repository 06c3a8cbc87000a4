"""An event's job as a Dramatiq message: what it holds while its handler waits, and what it can still tell then."""

from __future__ import annotations

import asyncio
import copy
import pickle
import tracemalloc
from contextlib import suppress
from typing import Any

import dramatiq
import pytest
from dramatiq import Message

from bus import Bus, Event, Publication, codec
from bus.clock import Clock
from bus.store.base import Route, Taken
from tests.waiting import NeverHappened, wait_until
from tests.workers.running import working
from workers import App, Context
from workers.broker.message import EVENT, MESSAGE, LaneMessage, open_job

STATES = pytest.mark.parametrize("forgotten", [0, 1, 2], ids=["both", "the bytes", "the bytes, asked twice"])


class Waited(Event, type="test.message.waited", version=1):
    agent_id: str
    text: str


def body(event: Waited | None = None) -> bytes:
    event = event or Waited(agent_id="a1", text="hi")
    *_, written = codec.write(event, ("a",), None, id="e1", source="/a", now_ms=1_784_275_200_125)
    return written


def taken(what: bytes) -> Taken:
    return Taken("j1", 7, Route("default", "handler", 1), "", what, b"", 0)


def of_event(forgotten: int = 0) -> LaneMessage:
    message = open_job(taken(EVENT + body()), Clock())
    for _ in range(forgotten):
        message.take_envelope()
    return message


@STATES
def test_whatever_is_held_the_message_is_what_it_was(forgotten: int) -> None:
    message = of_event(forgotten)

    assert message.envelope == codec.decode(body())
    assert message.args == (body().decode(),)
    assert (message.kwargs, message.options, message.queue_name, message.actor_name) == ({}, {}, "default", "handler")
    assert (message.message_id, message.message_timestamp) == ("e1", 1_784_275_200_125)
    assert (message.job, message.ticket, message.route) == ("j1", 7, Route("default", "handler", 1))


@STATES
def test_whatever_is_held_it_is_a_dramatiq_message(forgotten: int) -> None:
    message = of_event(forgotten)._message  # noqa: SLF001 - what it stands for

    plain = Message.decode(message.encode())

    assert plain.asdict() == message.asdict() == of_event().asdict()
    assert plain.args == (body().decode(),)
    assert message.copy(options={"x": 1}).asdict() == plain.asdict() | {"options": {"x": 1}}
    for other in (pickle.loads(pickle.dumps(message)), copy.copy(message), copy.deepcopy(message), message.copy()):  # noqa: S301
        assert other == message
        assert repr(other) == repr(message)


def test_who_sets_other_arguments_has_them_called_with(bus: Bus, app: App) -> None:
    called: list[tuple[int, str]] = []

    class Sets(dramatiq.Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:  # noqa: ARG002 - a hook
            message.args = (message.args[0] + 1,)
            message.kwargs["word"] += "!"

    @dramatiq.actor(broker=app.broker)
    def plain(n: int, word: str) -> None:
        called.append((n, word))

    app.broker.add_middleware(Sets())
    plain.send(1, word="hi")
    with working(app):
        app.broker.join("default", timeout=10_000)

    assert called == [(2, "hi!")]


def test_its_keyword_arguments_are_its_own() -> None:
    first, second = of_event(), of_event()

    first.kwargs["x"] = 1

    assert (first.kwargs, second.kwargs) == ({"x": 1}, {})


@STATES
def test_a_function_is_called_with_the_text(forgotten: int) -> None:
    message = of_event(forgotten)

    assert message.called(lambda *given: given) == (body().decode(),)


def test_a_plain_message_is_called_with_all_its_arguments() -> None:
    plain: Message[Any] = Message("default", "handler", (1, 2), {"three": 3}, {})
    message = open_job(taken(MESSAGE + plain.encode()), Clock())
    message.take_envelope()

    assert message.called(lambda *given, **named: (given, named)) == ((1, 2), {"three": 3})
    assert (message.envelope, message.is_event, of_event().is_event) == (None, False, True)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_does_to_its_data_is_not_told_on(bus: Bus, app: App, kind: str) -> None:
    told: list[Any] = []

    @dramatiq.actor(broker=app.broker)
    def failed(message: dict[str, Any], error: dict[str, str]) -> None:
        told.append(codec.decode(message["args"][0].encode()).data)

    def change(event: dict[str, Any], ctx: Context) -> None:
        event["n"] += 1
        event["more"] = object()
        raise RuntimeError("now it fails")

    async def change_async(event: dict[str, Any], ctx: Context) -> None:
        change(event, ctx)

    app.on("test.message.untyped", max_retries=0, on_failure="failed", name="change")(
        change if kind == "sync" else change_async
    )
    app.bind()
    bus.publish_sync({"type": "test.message.untyped", "n": 1})
    with working(app):
        wait_until(lambda: told, "the callback")

    assert told == [{"n": 1}]


class Hall:
    """Where handlers wait until a test lets them go. Counts who is there."""

    def __init__(self) -> None:
        self.there = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.there += 1
        await self._over.wait()

    def let_go(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._over.set)


@pytest.mark.parametrize(("signature", "most"), [("event", 4_600), ("event, ctx", 5_700)])
def test_a_handler_that_waits_holds_little(redis_url: str, namespace: str, signature: str, most: int) -> None:
    app, hall = App(Bus(redis_url, namespace=namespace), concurrency=1_000), Hall()

    async def plain(event: Waited) -> None:
        await hall.wait()

    async def in_context(event: Waited, ctx: Context) -> None:
        assert ctx.envelope.id
        await hall.wait()

    app.on(Waited)(plain if signature == "event" else in_context)
    app.bind()

    def have_wait(many: int) -> None:
        there = hall.there
        publish(app.bus, many)
        wait_until(lambda: hall.there == there + many, "all wait", timeout=20)

    def held() -> int:
        return tracemalloc.get_traced_memory()[0]

    with working(app):
        tracemalloc.start()
        try:
            have_wait(200)
            few = held()
            have_wait(600)
            with suppress(NeverHappened):  # their way there may hold something for a moment still
                wait_until(lambda: held() - few < 600 * most, "what each holds to be little")
            each = (held() - few) / 600
        finally:
            tracemalloc.stop()
            hall.let_go()
    app.bus.close_sync()

    assert each < most, f"a handler that waits holds {each:.0f} bytes"


def publish(bus: Bus, many: int) -> None:
    events = [Waited(agent_id=f"agent-{number % 100:03}", text="x" * 150) for number in range(many)]
    bus.publish_many_sync([Publication(event) for event in events])
