"""Publishing: what a receipt says, what listeners then get, and what is refused before anything was written."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from bus import (
    Bus,
    BusError,
    Delivery,
    Event,
    InvalidEvent,
    InvalidLog,
    InvalidTopic,
    Listener,
    PayloadTooLarge,
    Publication,
    Receipt,
)
from bus.bindings import Binding
from bus.causation import CAUSE, Cause
from bus.store.base import Whisper


class Note(Event, type="publish.note"):
    text: str


class Order(Event, type="publish.order", version=2):
    id: UUID
    at: datetime
    price: Decimal
    lasts: timedelta


class Anything(Event, type="publish.anything"):
    value: Any


class Base(Event):
    """Abstract: it has no type."""


ORDER = Order(
    id=UUID("01890a5d-ac96-774b-bcce-b302099a8057"),
    at=datetime(2026, 7, 28, 9, 30, tzinfo=UTC),
    price=Decimal("19.90"),
    lasts=timedelta(minutes=90),
)


async def take(listener: Listener, count: int) -> list[Delivery]:
    """The next deliveries; a gap is a failure."""
    found = []
    for _ in range(count):
        item = await anext(listener)
        assert isinstance(item, Delivery), item
        found.append(item)
    return found


async def kept(bus: Bus, **options: Any) -> list[Delivery]:
    """All that a log keeps; a gap is a failure."""
    found = []
    async for item in bus.history(**options):
        assert isinstance(item, Delivery), item
        found.append(item)
    return found


def top(bus: Bus, log: str = "main") -> int:
    return bus.store.read(log, "0", 0, 0).top


# Receipts.


async def test_a_receipt_names_the_event_and_its_place(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        first = await bus.publish(Note(text="one"))
        second = await bus.publish(Note(text="two"), id="mine")

        assert (first.position.seq, second.position.seq) == (1, 2)
        assert first.position.epoch == second.position.epoch
        assert second.id == "mine"
        assert (second.duplicate, second.jobs) == (False, 0)
        assert [each.envelope.id for each in await kept(bus)] == [first.id, "mine"]
        assert [each.position for each in await kept(bus)] == [first.position, second.position]


async def test_a_receipt_counts_the_jobs_of_the_bound_handlers(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        bindings = [
            Binding.make(handler="a", types=("publish.note",)),
            Binding.make(handler="b", types=("publish.note",), topics=("agent:*",)),
            Binding.make(handler="c", types=("publish.other",)),
        ]
        await asyncio.to_thread(bus.bind, bindings)

        everywhere = await bus.publish(Note(text="x"), topics=["agent:a1"], id="once")
        again = await bus.publish(Note(text="x"), topics=["agent:a1"], id="once")
        elsewhere = await bus.publish(Note(text="x"), topics=["global"])
        nowhere = await bus.publish(Note(text="x"), topics=[])

    assert [each.jobs for each in (everywhere, again, elsewhere, nowhere)] == [2, 0, 1, 0]


async def test_a_repeated_id_has_the_position_of_the_first_and_leaves_no_trace(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        first = await bus.publish(Note(text="one"), id="same")
        again = await bus.publish(Note(text="one"), id="same")
        by_a_thread = await asyncio.to_thread(bus.publish_sync, Note(text="one"), id="same")
        await bus.publish(Note(text="end"))

        assert again == by_a_thread == Receipt("same", first.position, duplicate=True, jobs=0)
        assert not first.duplicate
        assert [each.event for each in await take(listener, 2)] == [Note(text="one"), Note(text="end")]
        assert len(await kept(bus)) == 2


async def test_of_two_bodies_under_one_id_the_first_wins_and_the_log_says_so(
    url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with Bus(url, namespace=namespace) as bus:
        await bus.publish(Note(text="first"), id="same")
        second = await bus.publish(Note(text="second"), id="same", topics=["other"])

        assert second.duplicate
        assert [each.event for each in await kept(bus)] == [Note(text="first")]
    assert "event same was published before" in caplog.text


async def test_an_id_is_one_for_all_logs_of_a_namespace_and_free_in_another(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, Bus(url, namespace=f"{namespace}-2") as other:
        first = await bus.publish(Note(text="x"), id="same")
        elsewhere = await bus.publish(Note(text="x"), id="same", log="run:42")
        abroad = await other.publish(Note(text="x"), id="same")

    assert (elsewhere.duplicate, elsewhere.position) == (True, first.position)
    assert not abroad.duplicate


# Doors.


def test_publish_sync_opens_what_it_needs_and_close_sync_frees_it(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    receipts = [bus.publish_sync(Note(text=text)) for text in "ab"]
    several = bus.publish_many_sync([Publication(Note(text=text)) for text in "cd"])
    bus.close_sync()  # the check for leaks stands behind this

    assert [each.position.seq for each in receipts + several] == [1, 2, 3, 4]


async def test_publish_works_on_a_loop_that_never_opened_the_bus(url: str, namespace: str) -> None:
    bus = Bus(url, namespace=namespace)

    receipt = await bus.publish(Note(text="x"))
    bus.close_sync()

    assert receipt.position.seq == 1


# What arrives.


async def test_a_typed_event_arrives_typed_and_an_unknown_one_as_its_dict(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish(Note(text="typed"))
        await bus.publish({"type": "publish.note", "text": "a dict of a known type"})
        await bus.publish({"type": "publish.unknown", "deep": {"list": [1, None, "ü"]}})

        typed, known, unknown = await take(listener, 3)

    assert typed.event == Note(text="typed")
    assert known.event == Note(text="a dict of a known type")
    assert unknown.event == {"deep": {"list": [1, None, "ü"]}}
    assert (known.envelope.dataschema, unknown.envelope.dataschema) == ("urn:callboard:publish.note:1", None)


async def test_a_newer_version_than_this_process_knows_arrives_as_a_dict(url: str, namespace: str) -> None:
    class Newer(Event, type="publish.newer", version=2):
        text: str

    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish(Newer(text="x"))
        body = bus.store.read("main", "0", 0, 1).entries[0].body
        await bus.publish({"type": "publish.newer", "text": "y"})
        newer = body.replace(b"publish.newer:2", b"publish.newer:3").replace(b'"x"', b'"z"')
        await asyncio.to_thread(bus.store.announce, "main", "0", [Whisper("global", newer)])

        known, also_known, unknown = await take(listener, 3)

    assert known.event == Newer(text="x")
    assert also_known.event == Newer(text="y")
    assert (unknown.event, unknown.envelope.version) == ({"text": "z"}, 3)


async def test_dates_and_decimals_reach_local_and_remote_listeners_alike(url: str, namespace: str) -> None:
    # Another bus on the same store stands for another process: nothing but bytes goes between them.
    async with (
        Bus(url, namespace=namespace) as here,
        Bus(url, namespace=namespace) as there,
        here.listen() as local,
        there.listen() as remote,
    ):
        await here.publish(ORDER)
        await here.publish({"type": "publish.plain", "at": ORDER.at, "id": ORDER.id, "price": ORDER.price})

        local_items, remote_items = await take(local, 2), await take(remote, 2)

    assert local_items == remote_items
    assert local_items[0].event == ORDER
    assert local_items[1].event == {"at": "2026-07-28T09:30:00Z", "id": str(ORDER.id), "price": "19.90"}


async def test_an_envelope_says_where_from_when_to_whom_and_in_which_lane(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace, source="/web") as bus:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        await bus.publish(Note(text="x"), topics=["b", "a", "b"], key="a1")
        (delivery,) = await kept(bus)

    envelope = delivery.envelope
    assert (envelope.source, envelope.type, envelope.topics, envelope.key) == ("/web", "publish.note", ("b", "a"), "a1")
    assert before <= datetime.fromisoformat(envelope.time) <= datetime.now(UTC)
    assert (envelope.causationid, envelope.correlationid, envelope.traceparent) == (None, None, None)


@pytest.mark.parametrize("by_a_thread", [False, True], ids=["await", "sync"])
async def test_what_a_handler_publishes_names_its_cause(*, by_a_thread: bool, url: str, namespace: str) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with Bus(url, namespace=namespace) as bus:
        token = CAUSE.set(Cause("parent", "first", trace))
        try:
            if by_a_thread:
                await asyncio.to_thread(bus.publish_sync, Note(text="x"))
            else:
                await bus.publish(Note(text="x"))
        finally:
            CAUSE.reset(token)
        await bus.publish(Note(text="y"))

        caused, free = [each.envelope for each in await kept(bus)]

    assert (caused.causationid, caused.correlationid, caused.traceparent) == ("parent", "first", trace)
    assert (free.causationid, free.correlationid, free.traceparent) == (None, None, None)


async def test_without_topics_an_event_is_numbered_and_reaches_nobody(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen("**") as listener:
        silent = await bus.publish(Note(text="silent"), topics=[])
        await bus.publish(Note(text="heard"))

        (heard,) = await take(listener, 1)

        assert (silent.position.seq, heard.position.seq) == (1, 2)
        assert [each.event for each in await kept(bus)] == [Note(text="heard")]


@pytest.mark.parametrize(
    "when", [{"delay": 3600}, {"delay": timedelta(hours=1)}, {"at": datetime(2100, 1, 1, tzinfo=UTC)}, {"delay": 0}]
)
async def test_a_delay_is_for_the_jobs_only(when: dict[str, Any], url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        receipt = await bus.publish(Note(text="now"), **when)

        (heard,) = await take(listener, 1)

    assert (receipt.position.seq, heard.position) == (1, receipt.position)


# Ephemeral events.


@pytest.mark.parametrize("by_a_thread", [False, True], ids=["await", "sync"])
async def test_an_ephemeral_event_is_heard_and_leaves_no_trace(*, by_a_thread: bool, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen("agent:*") as listener, bus.listen("x") as deaf:
        numbered = await bus.publish(Note(text="one"), topics=["agent:a1"])
        if by_a_thread:
            receipt = await asyncio.to_thread(
                lambda: bus.publish_sync(Note(text="typing"), topics=["agent:a1"], ephemeral=True)
            )
        else:
            receipt = await bus.publish(Note(text="typing"), topics=["agent:a1"], ephemeral=True)
        await bus.publish(Note(text="two"), topics=["agent:a1", "x"])

        one, typing, two = await take(listener, 3)
        (only,) = await take(deaf, 1)

        assert (receipt.position, receipt.duplicate, receipt.jobs) == (numbered.position, False, 0)
        assert (typing.event, typing.ephemeral, typing.position) == (Note(text="typing"), True, numbered.position)
        assert (one.ephemeral, two.ephemeral, two.position.seq) == (False, False, 2)
        assert only.event == Note(text="two")
        assert [each.event for each in await kept(bus)] == [Note(text="one"), Note(text="two")]


async def test_ephemeral_events_of_an_empty_log_are_heard(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        await bus.publish(Note(text="typing"), ephemeral=True)

        (heard,) = await take(listener, 1)

        assert (heard.event, heard.position.seq) == (Note(text="typing"), 0)
        assert top(bus) == 0


@pytest.mark.parametrize("when", [{"delay": 1}, {"at": datetime(2100, 1, 1, tzinfo=UTC)}])
async def test_an_ephemeral_event_has_nothing_to_delay(when: dict[str, Any], url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        with pytest.raises(InvalidEvent, match="ephemeral"):
            await bus.publish(Note(text="x"), ephemeral=True, **when)


# Several at once.


async def test_publish_many_keeps_the_order_and_each_its_topics(url: str, namespace: str) -> None:
    publications = [
        Publication(Note(text=str(n)), topics=["even"] if n % 2 == 0 else ["odd"], key="k") for n in range(1203)
    ]
    async with Bus(url, namespace=namespace) as bus, bus.listen("even") as even:
        receipts = await bus.publish_many(publications)

        assert [each.position.seq for each in receipts] == list(range(1, 1204))
        assert [each.event for each in await kept(bus)] == [each.event for each in publications]
        assert [each.event for each in await take(even, 602)] == [Note(text=str(n)) for n in range(0, 1203, 2)]


async def test_publish_many_of_nothing_is_nothing(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        assert await bus.publish_many([]) == []
        assert await asyncio.to_thread(bus.publish_many_sync, []) == []
        assert top(bus) == 0


async def test_a_bad_one_among_many_publishes_none(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        batch = [Publication(Note(text="good")), Publication(Note(text="bad"), topics=["no good"])]

        with pytest.raises(InvalidTopic):
            await bus.publish_many(batch)
        with pytest.raises(InvalidTopic):
            await asyncio.to_thread(bus.publish_many_sync, batch)

        assert top(bus) == 0


async def test_an_event_without_a_publication_around_it_is_named(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        batch: Any = [Publication(Note(text="good")), Note(text="secret")]

        for door in (bus, bus.log("main")):
            with pytest.raises(InvalidEvent, match=r"takes Publication\(event, topics=\.\.\.\), not Note") as told:
                await door.publish_many(batch)
            assert "secret" not in str(told.value)

        assert top(bus) == 0


async def test_one_id_twice_in_a_batch_counts_once(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        first, second, third = await bus.publish_many(
            [Publication(Note(text=text), id=name) for text, name in [("a", "same"), ("b", "same"), ("c", "other")]]
        )

        assert (first.duplicate, second.duplicate, third.duplicate) == (False, True, False)
        assert (second.position, third.position.seq) == (first.position, 2)
        assert [each.event for each in await kept(bus)] == [Note(text="a"), Note(text="c")]


async def test_a_batch_over_several_logs_numbers_each_by_itself(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:
        logs = ["run:1", None, "run:1", "run:2", None, "run:1"]

        receipts = await bus.publish_many([Publication(Note(text=str(n)), log=log) for n, log in enumerate(logs)])

        assert [each.position.seq for each in receipts] == [1, 1, 2, 1, 2, 3]
        assert [each.event for each in await kept(bus, log="run:1")] == [Note(text=text) for text in "025"]
        assert bus.store.logs() == ["main", "run:1", "run:2"]


# What is refused.

PLAIN = {"type": "publish.plain"}
BAD: list[tuple[str, Any, dict[str, Any], type[BusError]]] = [
    ("topic empty", PLAIN, {"topics": [""]}, InvalidTopic),
    ("topic with an empty segment", PLAIN, {"topics": ["a::b"]}, InvalidTopic),
    ("topic that ends with a colon", PLAIN, {"topics": ["a:"]}, InvalidTopic),
    ("topic with a space", PLAIN, {"topics": ["ok", "a b"]}, InvalidTopic),
    ("topic with a newline", PLAIN, {"topics": ["a\n"]}, InvalidTopic),
    ("topic beyond ascii", PLAIN, {"topics": ["ä"]}, InvalidTopic),
    ("topic with a long segment", PLAIN, {"topics": ["x" * 129]}, InvalidTopic),
    ("topic with many segments", PLAIN, {"topics": [":".join("x" * 17)]}, InvalidTopic),
    ("topic too long", PLAIN, {"topics": [":".join(["x" * 99] * 3)]}, InvalidTopic),
    ("pattern as topic", PLAIN, {"topics": ["agent:*"]}, InvalidTopic),
    ("reserved topic", PLAIN, {"topics": ["$x"]}, InvalidTopic),
    ("topic that is no text", PLAIN, {"topics": [1]}, InvalidTopic),
    ("topics as one text", PLAIN, {"topics": "global"}, InvalidTopic),
    ("topics None", PLAIN, {"topics": None}, InvalidTopic),
    ("log empty", PLAIN, {"log": ""}, InvalidLog),
    ("log with a space", PLAIN, {"log": "a b"}, InvalidLog),
    ("log as pattern", PLAIN, {"log": "run:*"}, InvalidLog),
    ("log reserved", PLAIN, {"log": "$x"}, InvalidLog),
    ("log that is no text", PLAIN, {"log": 5}, InvalidLog),
    ("no type", {"text": "x"}, {}, InvalidEvent),
    ("empty type", {"type": ""}, {}, InvalidEvent),
    ("type that is no text", {"type": 5}, {}, InvalidEvent),
    ("type with a space", {"type": "a b"}, {}, InvalidEvent),
    ("abstract event", Base(), {}, InvalidEvent),
    ("no event at all", ["x"], {}, InvalidEvent),
    ("None", None, {}, InvalidEvent),
    ("data of a known type amiss", {"type": "publish.note", "text": 5}, {}, InvalidEvent),
    ("NaN", PLAIN | {"x": [math.nan]}, {}, InvalidEvent),
    ("infinity", PLAIN | {"x": -math.inf}, {}, InvalidEvent),
    ("NaN in a model", Anything(value={"x": math.nan}), {}, InvalidEvent),
    ("an object", PLAIN | {"x": {"y": object()}}, {}, InvalidEvent),
    ("an object in a model", Anything(value=object()), {}, InvalidEvent),
    ("a lone surrogate", PLAIN | {"x": "\ud800"}, {}, InvalidEvent),
    ("keys that are no text", PLAIN | {"x": {1: 2}}, {}, InvalidEvent),
    ("too large", PLAIN | {"x": "y" * 300_000}, {}, PayloadTooLarge),
    ("id empty", PLAIN, {"id": ""}, InvalidEvent),
    ("id too long", PLAIN, {"id": "x" * 256}, InvalidEvent),
    ("id with a newline", PLAIN, {"id": "a\nb"}, InvalidEvent),
    ("id that is no text", PLAIN, {"id": 5}, InvalidEvent),
    ("key empty", PLAIN, {"key": ""}, InvalidEvent),
    ("key too long", PLAIN, {"key": "x" * 256}, InvalidEvent),
    ("key with a control character", PLAIN, {"key": "a\x00"}, InvalidEvent),
    ("key that is no text", PLAIN, {"key": 5}, InvalidEvent),
    ("delay negative", PLAIN, {"delay": -1}, InvalidEvent),
    ("delay a negative timedelta", PLAIN, {"delay": timedelta(seconds=-1)}, InvalidEvent),
    ("delay NaN", PLAIN, {"delay": math.nan}, InvalidEvent),
    ("delay beyond all bounds", PLAIN, {"delay": 1e300}, InvalidEvent),
    ("delay as text", PLAIN, {"delay": "5"}, InvalidEvent),
    ("delay and at", PLAIN, {"delay": 1, "at": datetime(2100, 1, 1, tzinfo=UTC)}, InvalidEvent),
    ("at without a zone", PLAIN, {"at": datetime(2100, 1, 1)}, InvalidEvent),  # noqa: DTZ001 - that is what is wrong
    ("at as text", PLAIN, {"at": "2100-01-01T00:00:00Z"}, InvalidEvent),
]


@pytest.mark.parametrize(("event", "options", "error"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_what_is_amiss_is_refused_in_one_line_before_anything_is_written(
    event: Any, options: dict[str, Any], error: type[BusError], url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace) as bus:

        async def by_a_thread() -> Receipt:
            return await asyncio.to_thread(bus.publish_sync, event, **options)

        async def among_others() -> list[Receipt]:
            return await bus.publish_many([Publication(PLAIN), Publication(event, **options)])

        doors: list[Callable[[], Awaitable[Any]]] = [lambda: bus.publish(event, **options), by_a_thread, among_others]
        for door in doors:
            with pytest.raises(error) as caught:
                await door()
            assert type(caught.value) is error
            assert len(str(caught.value).splitlines()) == 1
            assert len(str(caught.value)) < 300

        assert top(bus) == 0
        assert bus.store.logs() == []


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_the_limit_on_size_can_be_set_and_the_error_carries_the_numbers(
    *, ephemeral: bool, url: str, namespace: str
) -> None:
    async with Bus(url, namespace=namespace, max_bytes=1000) as bus, bus.listen() as listener:
        with pytest.raises(PayloadTooLarge) as caught:
            await bus.publish(Note(text="x" * 1000), ephemeral=ephemeral)
        await bus.publish(Note(text="x" * 500), ephemeral=ephemeral)

        (heard,) = await take(listener, 1)

    assert caught.value.limit == 1000
    assert 1000 < caught.value.size < 1500
    assert heard.event == Note(text="x" * 500)


async def test_a_larger_limit_lets_more_through_to_listeners_with_a_smaller_one(url: str, namespace: str) -> None:
    async with (
        Bus(url, namespace=namespace, max_bytes=1 << 20) as generous,
        Bus(url, namespace=namespace) as usual,
        usual.listen() as listener,
    ):
        await generous.publish(Note(text="x" * 600_000))

        (heard,) = await take(listener, 1)

    assert heard.event == Note(text="x" * 600_000)
