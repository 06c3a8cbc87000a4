"""Hooks before publishing: every door, every event, once, in order; and what is refused leaves no trace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from bus import (
    Bus,
    BusError,
    Delivery,
    Event,
    HookFailed,
    InvalidEvent,
    InvalidSettings,
    InvalidTopic,
    Publication,
    Receipt,
    Refused,
)
from tests.faults.proxy import Drop, Proxy, calling
from tests.servers import Server
from tests.workers.running import working
from workers import App, Context


class Note(Event, type="hooks.note"):
    agent_id: str
    text: str = ""


def doors(bus: Bus, event: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every way of publishing one event."""
    many = [Publication(event)]
    return {
        "publish": lambda: bus.publish(event),
        "publish_many": lambda: bus.publish_many(many),
        "publish_sync": lambda: asyncio.to_thread(bus.publish_sync, event),
        "publish_many_sync": lambda: asyncio.to_thread(bus.publish_many_sync, many),
        "ephemeral": lambda: bus.publish(event, ephemeral=True),
        "ephemeral sync": lambda: asyncio.to_thread(lambda: bus.publish_sync(event, ephemeral=True)),
    }


async def kept(bus: Bus) -> list[Delivery]:
    return [item async for item in bus.history() if isinstance(item, Delivery)]


async def test_every_door_asks_every_hook_once_in_order(url: str, namespace: str) -> None:
    asked: list[tuple[str, str]] = []
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:

        @bus.before_publish
        def first(draft: Publication) -> Publication:
            assert isinstance(draft.event, Note)
            asked.append(("first", draft.event.agent_id))
            return draft

        @bus.before_publish
        def second(draft: Publication) -> Publication:
            assert isinstance(draft.event, Note)
            asked.append(("second", draft.event.agent_id))
            return draft

        names = list(doors(bus, Note(agent_id="x")))
        for name in names:
            await doors(bus, Note(agent_id=name))[name]()

        heard = [await anext(listener) for _ in names]

    assert asked == [(hook, name) for name in names for hook in ("first", "second")]
    assert [item.event for item in heard if isinstance(item, Delivery)] == [Note(agent_id=name) for name in names]


async def test_what_a_hook_refuses_is_published_by_no_door(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen("**") as listener:

        @bus.before_publish
        def authorise(draft: Publication) -> Publication:
            if isinstance(draft.event, Note) and draft.event.agent_id == "apprentice":
                raise Refused("an apprentice may not post", rule="standing")
            return draft

        for door in doors(bus, Note(agent_id="apprentice")).values():
            with pytest.raises(Refused, match="an apprentice may not post") as refusal:
                await door()
            assert (refusal.value.why, refusal.value.rule) == ("an apprentice may not post", "standing")
        await bus.publish(Note(agent_id="master"))

        item = await anext(listener)

    assert isinstance(item, Delivery)
    assert item.position.seq == 1, "something came before it"
    assert item.event == Note(agent_id="master")


async def test_of_a_batch_with_one_refused_none_is_published(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:

        @bus.before_publish
        def authorise(draft: Publication) -> Publication:
            if draft.event == Note(agent_id="b"):
                raise Refused("not you")
            return draft

        with pytest.raises(Refused):
            await bus.publish_many(Publication(Note(agent_id=agent)) for agent in "abc")

        assert await kept(bus) == []


async def test_a_hook_that_delays_jobs_lets_ephemeral_events_pass(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:

        @bus.before_publish
        def delay(draft: Publication) -> Publication:
            return replace(draft, delay=5)

        await bus.publish(Note(agent_id="a"), ephemeral=True)
        item = await anext(listener)

    assert isinstance(item, Delivery)
    assert (item.event, item.ephemeral) == (Note(agent_id="a"), True)


async def test_a_hook_may_change_everything_about_a_draft(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen("audit") as listener:

        @bus.before_publish
        def redact(draft: Publication) -> Publication:
            assert isinstance(draft.event, Note)
            return replace(draft, event=draft.event.model_copy(update={"text": "[redacted]"}))

        @bus.before_publish
        def address(draft: Publication) -> Publication:
            assert isinstance(draft.event, Note)
            assert draft.event.text == "[redacted]", "the first hook's answer is the second's draft"
            assert draft.topics == ("a", "b"), "topics come as a tuple, without repeats, whatever was given"
            return replace(draft, topics=(topic for topic in ["audit", "audit"]), key="k", id="mine")

        receipt = await bus.publish(Note(agent_id="a", text="my number is 555"), topics=(one for one in "aba"))

        item = await anext(listener)

    assert isinstance(item, Delivery)
    assert item.event == Note(agent_id="a", text="[redacted]")
    assert (item.envelope.topics, item.envelope.key, item.envelope.id, receipt.id) == (("audit",), "k", "mine", "mine")


async def test_a_dict_comes_to_a_hook_as_it_was_given() -> None:
    seen: list[object] = []
    async with Bus("memory://") as bus:
        bus.before_publish(lambda draft: seen.append(draft.event) or draft)  # type: ignore[func-returns-value]
        given = {"type": "hooks.plain", "n": 1}
        await bus.publish(given)

    assert seen == [given]


def break_(draft: Publication) -> Publication:
    raise ValueError("anything")


def forget(draft: Publication) -> Publication:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("hook", "error", "text"),
    [
        (break_, HookFailed, "hook break_ raised ValueError; nothing was published"),
        (forget, HookFailed, "hook forget returned NoneType: return the draft, or raise bus.Refused; nothing"),
        (lambda draft: replace(draft, event=object()), InvalidEvent, "publish an Event or a dict"),
        (lambda draft: replace(draft, topics=["a b"]), InvalidTopic, "' ' is not allowed there"),
        (lambda draft: replace(draft, topics="global"), InvalidTopic, "a list of topics"),
    ],
    ids=["raises", "returns nothing", "an event that is none", "a bad topic", "a lone topic"],
)
async def test_a_broken_hook_publishes_nothing_and_is_named(
    hook: Any, error: type[BusError], text: str, url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace) as bus:
        bus.before_publish(hook)

        for door in doors(bus, Note(agent_id="a")).values():
            with pytest.raises(error, match=text):
                await door()

        assert await kept(bus) == []


async def test_an_async_hook_is_refused_at_once() -> None:
    async def later(draft: Publication) -> Publication:
        return draft

    with pytest.raises(InvalidSettings, match="plain function"):
        Bus("memory://").before_publish(later)  # type: ignore[arg-type]


async def test_a_hook_belongs_to_one_bus() -> None:
    name = "memory://hooks-of-one-bus"
    async with Bus(name) as strict, Bus(name) as lax:

        @strict.before_publish
        def never(draft: Publication) -> Publication:
            raise Refused("never")

        await lax.publish(Note(agent_id="a"))

        with pytest.raises(Refused):
            await strict.publish(Note(agent_id="a"))


async def test_a_publish_that_is_repeated_after_a_lost_reply_asks_once(server: Server, namespace: str) -> None:
    asked: list[Publication] = []
    with Proxy(server.port) as proxy:
        async with Bus(proxy.url, namespace=namespace) as bus:
            bus.before_publish(lambda draft: asked.append(draft) or draft)  # type: ignore[func-returns-value]
            await bus.publish(Note(agent_id="to load the script"))
            fault = Drop(calling("append"))
            proxy.arm(fault)
            receipt = await bus.publish(Note(agent_id="a"))

            assert [item.position for item in await kept(bus)][1:] == [receipt.position]

    assert fault.hits == 1
    assert len(asked) == 2


def test_a_handler_publishes_through_the_hooks_by_both_doors_and_its_progress_too(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)
    app = App(bus)
    asked: list[tuple[str, str]] = []
    handled = threading.Event()

    @bus.before_publish
    def note(draft: Publication) -> Publication:
        kind = draft.event["type"] if isinstance(draft.event, dict) else type(draft.event).__name__
        asked.append((kind, threading.current_thread().name))
        if kind == "hooks.forbidden":
            raise Refused("forbidden")
        return draft

    @app.on(Note, name="handler")
    async def handle(event: Note, ctx: Context) -> None:
        await ctx.publish({"type": "hooks.async"})
        with pytest.raises(Refused):
            await ctx.publish({"type": "hooks.forbidden"})
        ctx.progress("half")

    @app.on("hooks.async", name="handler.sync")
    def handle_sync(event: object, ctx: Context) -> None:
        receipt = ctx.publish_sync({"type": "hooks.sync"})
        assert isinstance(receipt, Receipt)
        handled.set()

    app.bind()
    with working(app):
        bus.publish_sync(Note(agent_id="a"))
        assert handled.wait(10)
    dead = bus.store.dead_count()
    bus.close_sync()

    kinds = sorted(kind for kind, _ in asked)
    assert kinds == ["Note", "Progress", "hooks.async", "hooks.forbidden", "hooks.sync"]
    assert dead == 0


async def test_a_hook_that_changes_its_draft_in_place_leaves_the_publishers_own_as_it_is(
    url: str, namespace: str
) -> None:
    def redirect(draft: Publication) -> Publication:
        draft.topics, draft.key = ("elsewhere",), "theirs"
        return draft

    mine = Publication({"type": "hooks.mine"}, ["global"])
    async with Bus(url, namespace=namespace) as bus:
        bus.before_publish(redirect)
        await bus.publish_many([mine])
        (heard,) = await kept(bus)

    assert heard.envelope.topics == ("elsewhere",)
    assert (mine.topics, mine.key) == (["global"], None)
