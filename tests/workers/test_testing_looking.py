"""What the kit lets a test see: what was published, what was handled, what is heard live; and how its failures tell."""

from __future__ import annotations

import re

import dramatiq
import pytest

from bus import Bus, Event, Gap
from workers import App, Context
from workers.kit import Kit

pytestmark = pytest.mark.callboard("memory", "redis")

app = App(Bus("memory://"))
bus = app.bus


class Posted(Event, type="look.posted", version=1):
    agent_id: str
    text: str


class Approved(Event, type="look.approved", version=1):
    agent_id: str


@app.on(Posted, topics="agent:**", key="agent_id")
async def moderate(event: Posted, ctx: Context) -> None:
    if event.text == "rude":
        raise ValueError("rude")
    await ctx.publish(Approved(agent_id=event.agent_id), topics=[f"agent:{event.agent_id}"])


@dramatiq.actor(broker=app.broker)
def count(n: int) -> None: ...


@pytest.fixture
def callboard_app() -> App:
    return app


def post(text: str, agent_id: str = "ada") -> Posted:
    bus.publish_sync(event := Posted(agent_id=agent_id, text=text), topics=[f"agent:{agent_id}"])
    return event


def test_what_was_published_is_told_by_type_in_order(callboard: Kit) -> None:
    posts = [post("one"), post("two", "bob")]
    bus.publish_sync({"type": "look.unknown", "n": 1})
    bus.publish_sync(Approved(agent_id="eve"), log="run:1")
    callboard.drain_sync()

    assert callboard.published(Posted) == posts
    assert {event.agent_id for event in callboard.published(Approved)} == {"ada", "bob"}
    assert callboard.published("look.unknown") == [{"n": 1}]
    assert len(callboard.published()) == 5
    assert callboard.published(Approved, log="run:1") == [Approved(agent_id="eve")]
    assert [envelope.topics for envelope in callboard.envelopes(Posted)] == [("agent:ada",), ("agent:bob",)]


def test_each_test_begins_in_an_empty_world(callboard: Kit) -> None:
    assert callboard.published() == []
    assert callboard.ran == []
    assert bus.store.census().counts == []


def test_what_a_handler_has_done_is_asked_in_many_ways(callboard: Kit) -> None:
    event = post("hello")
    receipt = bus.publish_sync(Posted(agent_id="bob", text="hi"), topics=["agent:bob"])
    count.send(1)
    callboard.drain_sync()

    assert callboard.assert_handled(moderate, event, times=1).attempt == 1
    assert callboard.assert_handled(moderate, receipt).event == Posted(agent_id="bob", text="hi")
    callboard.assert_handled(moderate, receipt.id)
    callboard.assert_handled(moderate, {"agent_id": "bob", "text": "hi"})
    callboard.assert_handled(moderate, {"type": "look.posted", "agent_id": "bob", "text": "hi"})
    callboard.assert_handled(f"{__name__}.moderate", times=2)
    callboard.assert_handled(count, times=1)


def failure(kit: Kit, *args: object, **kwargs: object) -> str:
    with pytest.raises(AssertionError) as raised:
        kit.assert_handled(*args, **kwargs)  # type: ignore[arg-type]
    return re.sub(r"id [0-9a-f-]{36}", "id ...", str(raised.value))


def test_a_failure_tells_what_the_handler_did_instead(callboard: Kit) -> None:
    post("hello")
    post("rude", "bob")
    callboard.drain_sync(raise_errors=False)
    post("later", "bob")

    assert re.sub(
        r"again in [\d.]+ s", "again in ... s", failure(callboard, moderate, Posted(agent_id="b", text="x"))
    ) == (
        f"{__name__}.moderate has not done Posted(agent_id='b', text='x')\n"
        "  it ran 2 time(s):\n"
        "    attempt 1 on Posted(agent_id='ada', text='hello') (id ...): done\n"
        "    attempt 1 on Posted(agent_id='bob', text='rude') (id ...): retry, ValueError: rude, again in ... s\n"
        "  waiting on queue 'default': 1 to be run (drain() does), 0 not due yet, 1 for a retry (travel() to them)"
    )


def test_a_failure_tells_what_may_be_wrong_where_nothing_ran_or_waits(callboard: Kit) -> None:
    bus.publish_sync(Posted(agent_id="ada", text="hello"), topics=["global"])
    callboard.drain_sync()

    assert failure(callboard, moderate).splitlines() == [
        f"{__name__}.moderate has not done anything",
        "  it ran 0 time(s)",
        (
            "  nothing waits for it: was the handler bound (app.bind(), or the fixture callboard) before the event was "
            "published, and do its types and topics match?"
        ),
    ]


def test_a_failure_tells_how_often_it_was_done(callboard: Kit) -> None:
    post("hello")
    callboard.drain_sync()

    assert failure(callboard, moderate, times=2).startswith(
        f"{__name__}.moderate has not done anything 2 times but 1 time(s)"
    )


def test_a_handler_that_is_none_is_named(callboard: Kit) -> None:
    assert failure(callboard, post) == (f"this app has no handler 'post' (it has: count, {__name__}.moderate)")


async def test_a_recorder_hears_what_listeners_hear(callboard: Kit) -> None:
    async with bus, callboard.recorder("agent:**") as heard:
        event = Posted(agent_id="ada", text="hello")
        await bus.publish(event, topics=["global", "agent:ada"])
        await bus.publish(Approved(agent_id="nobody"), topics=["global"])
        await callboard.drain()

        assert await heard.first(Approved) == Approved(agent_id="ada")
        assert await heard.first("look.posted") == event
        await heard.until(lambda events: len(events) == 2)

    assert heard.events == [event, Approved(agent_id="ada")]
    assert not any(isinstance(item, Gap) for item in heard.items)


async def test_a_recorder_that_waits_in_vain_tells_what_it_heard(callboard: Kit) -> None:
    async with bus, callboard.recorder("agent:**") as heard:
        with pytest.raises(AssertionError, match=r"an event of type Approved was not heard within 0.05 s; nothing was"):
            await heard.first(Approved, timeout_s=0.05)
        await bus.publish(Posted(agent_id="ada", text="hello"), topics=["agent:ada"])
        await heard.first(Posted)
        with pytest.raises(AssertionError) as raised:
            await heard.until(lambda events: len(events) > 1, "a second post", timeout_s=0.05)

    assert str(raised.value).splitlines() == [
        "a second post was not heard within 0.05 s; heard on agent:** were 1, the last of them:",
        "  look.posted on agent:ada: Posted(agent_id='ada', text='hello')",
    ]


def test_that_a_handler_has_not_run_is_not_asked_with_a_count(app: App) -> None:
    @app.on(Posted)
    def answer(event: Posted) -> None: ...

    with pytest.raises(ValueError, match=r"callboard\.ran"):
        app.testing.assert_handled(answer, times=0)
