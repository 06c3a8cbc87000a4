"""The codec: what goes out comes back, and nothing that comes in can do harm.

Types here start with ``codec.``: the table of types is the process's.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import traceback
import uuid
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import core_schema

from bus.causation import Cause
from bus.codec import decode, encode, read, read_as, wrap, write
from bus.envelope import Envelope
from bus.errors import BusError, InvalidEvent, InvalidTopic, PayloadTooLarge
from bus.events import Event
from bus.topics import topic_set

NOW_MS = 1_784_275_200_125


class Posted(Event, type="codec.posted", version=2):
    agent_id: str
    text: str = "hi"


class Free(Event, type="codec.free"):
    """Takes anything, as an event with a field of type Any does."""

    value: Any = None
    size: float = 1.0


class Plain(Event, type="codec.plain.typed"):
    """Its fields have types of which pydantic has nothing to warn where they are kept."""

    text: str
    count: int | None = None
    size: Annotated[int, Field(ge=0)] = 0
    ratio: float = 1.0
    good: bool = True


class Told(Event, type="codec.told"):
    """Its fields look as plain, and are not."""

    text: Annotated[str, PlainSerializer(lambda text: text or object())]
    choice: Literal["a", "b"] = "a"
    name: Annotated[str, Field(max_length=3)] = ""


class Counted(Event, type="codec.counted"):
    """What its serializer gives is not always what it says."""

    text: str

    @field_serializer("text")
    def count(self, text: str) -> int:
        return len(text) if text != "secret" else text  # type: ignore[return-value]


class Hidden(Event, type="codec.hidden"):
    """Not all of it is for others."""

    text: str
    card: str = Field(default="", exclude=True)


class Roomy(Event, type="codec.roomy", extra="allow"):
    """Has room for more."""

    __pydantic_extra__: dict[str, int]
    text: str


class Two(Event, type="codec.two"):
    count: int
    text: str


class Listed(Event, type="codec.listed"):
    """What it is written as is no object."""

    text: str

    @model_serializer
    def write(self) -> list[str]:
        return [self.text]


class Schemed(Event, type="codec.schemed"):
    """Its schema has a serializer that breaks its own word."""

    text: str

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        schema = handler(source)
        serializer = core_schema.plain_serializer_function_ser_schema(
            lambda event: {"n": event.text},
            return_schema=core_schema.dict_schema(core_schema.str_schema(), core_schema.int_schema()),
        )
        return {**schema, "serialization": serializer}


class Kind(str, enum.Enum):  # noqa: UP042 - its text in an f-string is another than its value
    POST = "codec.post"
    PLAIN = "codec.kind"


def wrapped(event: Any, **attributes: Any) -> Envelope:
    defaults: dict[str, Any] = {"id": "1", "source": "/a", "now_ms": NOW_MS, "topics": ("global",), "key": None}
    return wrap(event, **defaults | attributes)


def travelled(event: Any) -> Event | dict[str, Any]:
    return read(decode(encode(wrapped(event))))


def body(**changes: Any) -> bytes:
    """A valid body with some attributes replaced."""
    attributes: dict[str, Any] = json.loads(encode(wrapped({"type": "codec.plain", "x": 1})))
    return json.dumps(attributes | changes).encode()


def logged(error: BaseException) -> str:
    """What a log shows of an error: its text, and that of the errors behind it."""
    return "".join(traceback.format_exception(error))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


texts = st.text(st.characters(exclude_categories=["Cs"]))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
objects = st.dictionaries(texts.filter(lambda name: name != "type"), values, max_size=5)


# -- out and back ------------------------------------------------------------------------------------------------------


def test_an_event_comes_back_as_itself() -> None:
    event = Posted(agent_id="a1")

    assert travelled(event) == event


def test_an_event_of_unknown_type_comes_back_as_its_data() -> None:
    assert travelled({"type": "codec.unknown", "text": "hi"}) == {"text": "hi"}


@given(objects)
def test_any_json_comes_back_unchanged(data: dict[str, Any]) -> None:
    envelope = wrapped({"type": "codec.unknown", **data})

    back = decode(encode(envelope))

    assert back == envelope
    assert repr(back.data) == repr(data)  # repr tells 1 from 1.0 and from True
    assert encode(back) == encode(envelope)


@given(values)
def test_any_json_comes_back_from_a_typed_event(value: Any) -> None:
    assert travelled(Free(value=value)) == Free(value=value)


any_text = st.text() | st.text(st.characters(codec="ascii")) | st.just(5) | st.just("a" * 1025)
any_attributes = st.fixed_dictionaries(
    {
        "id": any_text,
        "source": any_text | st.none(),
        "key": any_text | st.none(),
        "subject": any_text | st.none(),
        "topics": st.lists(st.sampled_from(["a", "b:c", "$d", "*", "", 5])).map(tuple) | st.none() | st.just("a"),
    }
)


@given(any_attributes, objects)
def test_wrapping_accepts_exactly_what_an_envelope_accepts(attributes: dict[str, Any], data: dict[str, Any]) -> None:
    made = {"type": "codec.unknown", "time": "2026-07-17T08:00:00.125Z", "data": data}
    try:
        expected: Envelope | None = Envelope.model_validate(attributes | made)
    except ValueError:
        expected = None

    try:
        actual: Envelope | None = wrapped({"type": "codec.unknown", **data}, **attributes)
    except InvalidEvent:
        actual = None

    assert actual == expected


anything = values | st.recursive(
    st.floats() | st.text() | st.sampled_from(["NaN", "[" * 80, 10**999, 10**1000, object(), dt.date.min, b"x"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 2), inner),
)
events = (
    st.builds(lambda data: {"type": "codec.unknown", **data}, objects | st.dictionaries(texts, anything))
    | st.builds(lambda value, size: Free.model_construct(value=value, size=size), anything, st.floats() | st.text())
    | st.builds(lambda levels: Free(value=nested(levels)), st.integers(60, 70))
    | st.builds(
        Plain.model_construct, text=st.text() | anything, count=st.none() | anything, ratio=st.floats(), good=leaves
    )
    | st.builds(Told.model_construct, text=texts | anything, choice=st.sampled_from("abc") | anything, name=leaves)
)


written_attributes = st.fixed_dictionaries(
    {
        "id": any_text,
        "source": any_text,
        "key": any_text | st.none(),
        "topics": st.lists(st.sampled_from(["a", "b:c", "$d", "*", "", 5, []])) | st.none() | st.just("a"),
        "reserved": st.booleans(),
        "cause": st.none() | st.builds(Cause, any_text, any_text, any_text | st.none()),
    }
)


@given(written_attributes, events)
@example({"topics": ("a",)}, Free(value="x" * 2_000))
@example({"topics": ("a",)}, Free(value=[10**1000, "x" * 2_000]))
@example({"topics": ("a",)}, Free.model_construct(size=math.nan))
@example({"topics": ("a",)}, Free(value=nested(64)))
@example({"topics": ("a",)}, Plain(text="hi"))
@example({"topics": ("a",)}, Plain(text="hi").model_copy(update={"text": 5}))
@example({"topics": ("a",)}, Plain(text="hi").model_copy(update={"good": 1}))
@example({"topics": ("a",)}, Plain.model_construct(count=True, text="hi", ratio=math.inf))
@example({"topics": ("a",)}, Told(text="hi").model_copy(update={"choice": "c"}))
@example({"topics": ("a",)}, Plain(text="hi").model_copy(update={"unknown": 5}))
@example({"topics": ("a",)}, Told(text=""))
@example({"topics": ("a",)}, Hidden(text="hi", card="4111"))
@example({"topics": ("a",)}, Counted(text="hi"))
@example({"topics": ("a",)}, Counted(text="secret"))
def test_what_is_written_is_the_wrapped_envelope(attributes: dict[str, Any], event: Any) -> None:
    given: dict[str, Any] = {"id": "1", "source": "/a", "key": None, "cause": None, "reserved": False} | attributes
    topics, key, reserved, cause = (given[name] for name in ("topics", "key", "reserved", "cause"))
    caused = {} if cause is None else dict(zip(("causationid", "correlationid", "traceparent"), cause, strict=True))
    wrapping = {"id": given["id"], "source": given["source"], "now_ms": NOW_MS, "key": key}
    try:
        found = topic_set(topics, reserved=reserved)
        expected: bytes | str = encode(wrap(event, **wrapping, **caused, topics=found))
    except (InvalidEvent, InvalidTopic) as error:
        expected = str(error)

    try:
        event_id, kind, line, data, body = write(
            event, topics, key, id=given["id"], source=given["source"], now_ms=NOW_MS, cause=cause, reserved=reserved
        )
    except (InvalidEvent, InvalidTopic) as error:
        assert str(error) == expected
    else:
        envelope = decode(body)
        assert body == expected
        assert (event_id, kind, line) == (envelope.id, envelope.type, " ".join(envelope.topics))
        lanes_see = data if isinstance(data, bytes) else json.dumps(data)
        assert json.dumps(json.loads(lanes_see)) == json.dumps(envelope.data)


def test_values_that_pydantic_can_make_json_are_made_json() -> None:
    class Colour(enum.Enum):
        RED = "red"

    class Inner(BaseModel):
        count: Annotated[int, Field(alias="n")]

    given = {
        "at": dt.datetime(2026, 7, 17, tzinfo=dt.UTC),
        "id": uuid.UUID(int=1),
        "colour": Colour.RED,
        "price": decimal.Decimal("1.50"),
        "tags": {"a"},
        "pair": (1, 2),
        "inner": Inner.model_validate({"n": 1}),
    }

    assert wrapped({"type": "codec.unknown", **given}).data == {
        "at": "2026-07-17T00:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "colour": "red",
        "price": "1.50",
        "tags": ["a"],
        "pair": [1, 2],
        "inner": {"count": 1},
    }


class Narrow(Event, type="codec.narrow", strict=True):
    """Its fields are plain, and not every plain value will do."""

    text: Annotated[str, Field(max_length=3, alias="words")]
    count: Annotated[int, Field(ge=0, lt=1_000)] | None = None
    either: int | str | float = 0


class Lenient(Event, type="codec.lenient", coerce_numbers_to_str=True, str_strip_whitespace=True):
    text: str


@given(
    st.sampled_from([Plain, Told, Counted, Roomy, Two, Narrow, Lenient, Posted]),
    st.dictionaries(st.sampled_from(["text", "words", "count", "size", "either", "good", "more"]), leaves | objects),
)
@example(Narrow, {"text": "abc", "count": 5, "either": "5"})
@example(Narrow, {"text": "abcd", "count": 5, "either": "5"})
@example(Narrow, {"text": "abc", "count": True, "either": 1})
@example(Plain, {"text": "", "count": None, "size": 0, "ratio": 1, "good": True})
@example(Plain, {"text": "", "count": None, "size": -1, "ratio": 1.0, "good": True})
@example(Lenient, {"text": " x "})
@example(Lenient, {"text": -0.0})
@example(Two, {"count": 1, "text": "x"})
@example(Two, {"count": 1.0, "text": "x"})
def test_data_is_read_as_the_json_that_it_was(kind: type[Event], data: dict[str, Any]) -> None:
    try:
        expected: Event | None = kind.model_validate_json(json.dumps(data), by_alias=True, by_name=True)
    except ValidationError:
        expected = None

    if expected is None:
        with pytest.raises(InvalidEvent):
            read_as(kind, data)
    else:
        found = read_as(kind, data)
        assert (found, repr(found), found.model_fields_set) == (expected, repr(expected), expected.model_fields_set)


def test_who_asks_how_an_event_is_read_is_told_that_it_is_read_as_json() -> None:
    class Asking(Event, type="codec.asking.field"):
        text: str

        @field_validator("text")
        @classmethod
        def ask(cls, text: str, info: ValidationInfo) -> str:
            return f"{text} {info.mode}"

    class AskingWhole(Event, type="codec.asking.whole"):
        text: str

        @model_validator(mode="before")
        @classmethod
        def ask(cls, data: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            return {"text": f"{data['text']} {info.mode}"}

    class AskingBeside(Event, type="codec.asking.beside"):
        text: Annotated[str, AfterValidator(lambda text, info: f"{text} {info.mode}")]

    class Mixin(BaseModel):
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            return core_schema.with_info_before_validator_function(
                lambda data, info: {"text": f"{data['text']} {info.mode}"}, handler(source)
            )

    class AskingBehind(Event, Mixin, type="codec.asking.behind"):
        text: str

    for kind in (Asking, AskingWhole, AskingBeside, AskingBehind):
        event = read_as(kind, {"text": "read as"})
        assert cast("Any", event).text == "read as json", kind


def test_a_strict_event_comes_back_although_json_has_no_dates() -> None:
    class Dated(Event, type="codec.dated", strict=True):
        at: dt.datetime
        ids: frozenset[uuid.UUID]

    event = Dated(at=dt.datetime(2026, 7, 17, tzinfo=dt.UTC), ids=frozenset({uuid.UUID(int=1)}))

    assert travelled(event) == event


def test_an_event_with_aliases_travels_by_its_field_names() -> None:
    class Aliased(Event, type="codec.aliased", serialize_by_alias=True):
        agent_id: Annotated[str, Field(alias="agentId")]

    event = Aliased.model_validate({"agentId": "a1"})

    assert wrapped(event).data == {"agent_id": "a1"}
    assert travelled(event) == event
    assert travelled({"type": "codec.aliased", "agentId": "a1"}) == event


def test_computed_fields_do_not_travel() -> None:
    class Computed(Event, type="codec.computed", extra="forbid"):
        text: str

        @computed_field  # type: ignore[prop-decorator]
        @property
        def length(self) -> int:
            return len(self.text)

    assert wrapped(Computed(text="hi")).data == {"text": "hi"}
    assert travelled(Computed(text="hi")) == Computed(text="hi")


def test_an_event_may_have_fields_with_our_names() -> None:
    class Busy(Event, type="codec.busy"):
        type: str
        version: int
        data: dict[int, str]
        topics: str

    event = Busy(type="t", version=9, data={1: "a"}, topics="x")

    assert travelled(event) == event


# -- wrap --------------------------------------------------------------------------------------------------------------


def test_an_envelope_gets_an_id_a_time_and_its_event_s_version() -> None:
    envelope = wrapped(Posted(agent_id="a1"), id=None)

    assert uuid.UUID(envelope.id).version == 7
    assert envelope.time_ms == NOW_MS
    assert (envelope.type, envelope.version) == ("codec.posted", 2)


def test_a_dict_of_unknown_type_has_no_version() -> None:
    envelope = wrapped({"type": "codec.unknown"})

    assert envelope.version is None
    assert envelope.dataschema is None


def test_a_dict_of_known_type_becomes_the_newest_version() -> None:
    class Older(Event, type="codec.grown", version=1):
        text: str

    class Newer(Event, type="codec.grown", version=2):
        text: str
        size: int = 5

    envelope = wrapped({"type": "codec.grown", "text": "hi"})

    assert envelope.version == 2
    assert envelope.data == {"text": "hi", "size": 5}
    assert isinstance(read(envelope), Newer)


def test_a_published_dict_is_left_as_it_is() -> None:
    event = {"type": "codec.unknown", "at": dt.date(2026, 7, 17)}

    wrapped(event)

    assert event == {"type": "codec.unknown", "at": dt.date(2026, 7, 17)}


def test_a_dict_that_its_type_refuses_is_refused_by_field_name_without_its_values() -> None:
    event = {"type": "codec.posted", "text": ["secret"]}

    with pytest.raises(InvalidEvent, match=r"version 2: agent_id: Field required; text: .*string") as caught:
        wrapped(event)

    assert "secret" not in logged(caught.value)


@pytest.mark.parametrize(
    ("event", "hint"),
    [
        ({}, "no 'type'"),
        ({"text": "hi"}, "no 'type'"),
        ({"type": None}, "not the name of an event type"),
        ({"type": "two words"}, "not the name of an event type"),
        ("text", "publish an Event or a dict"),
        (None, "publish an Event or a dict"),
        ({"type": "codec.unknown", 1: 2}, "data: a key is of type int: use str keys"),
        ({"type": "codec.unknown", "a": [{(1, 2): 3}]}, r"data\.a\[0\]: a key is of type tuple: use str keys"),
        ({"type": "codec.unknown", "a": {1: "x", "1": "y"}}, "use str keys"),
    ],
)
def test_something_that_is_no_event_is_refused(event: Any, hint: str) -> None:
    with pytest.raises(InvalidEvent, match=hint):
        wrapped(event)


def test_an_abstract_event_is_refused() -> None:
    class Base(Event):
        pass

    with pytest.raises(InvalidEvent, match=r"Base is an abstract base and cannot be published: give it a type"):
        wrapped(Base())


class Opaque:
    def __repr__(self) -> str:
        return "secret"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        pytest.param(math.nan, "data.value: NaN", id="nan"),
        pytest.param([1, math.inf], r"data.value\[1\]: NaN", id="infinity"),
        pytest.param("secret\ud800", "data.value: .*surrogate", id="surrogate"),
        pytest.param({"\ud800": 1}, "data.value", id="surrogate in a key"),
        pytest.param(10**1000, "data.value: .*thousand digits", id="long"),
        pytest.param(10**9999, "data.value: .*thousand digits", id="longer than Python prints"),
        pytest.param(Opaque(), "data.value: a value of type Opaque", id="opaque"),
        pytest.param([{"a": (Opaque(),)}], r"data.value\[0\].a\[0\]: a value of type Opaque", id="opaque inside"),
        pytest.param(b"\xff", "data.value: a value of type bytes", id="bytes"),
        pytest.param(nested(64), "deeper than 64", id="deep"),
        pytest.param(nested(100_000), "deeper than 64", id="very deep"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda value: Free(value=value), id="typed"),
        pytest.param(lambda value: {"type": "codec.unknown", "value": value}, id="plain"),
    ],
)
def test_a_value_that_json_cannot_carry_is_named_by_place_and_type_only(
    make: Callable[[Any], Any], value: Any, hint: str
) -> None:
    event = make(value)

    with pytest.raises(InvalidEvent, match=hint) as caught:
        wrapped(event)

    assert "secret" not in logged(caught.value)


@pytest.mark.parametrize(
    "event",
    [
        Free().model_copy(update={"size": "secret"}),
        Plain(text="hi").model_copy(update={"count": "secret"}),
        Plain(text="secret").model_copy(update={"good": 0}),
        Plain(text="hi").model_copy(update={"text": b"secret"}),
        Told(text="hi").model_copy(update={"name": 5}),
        Counted(text="secret"),
        Roomy(text="hi").model_copy(update={"n": "secret"}),
        cast("Any", Two).model_construct(text=1).model_copy(update={"count": "secret"}),
        Schemed(text="secret"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "ways", [wrapped, lambda event: write(event, ("a",), None, id=None, source="/a", now_ms=NOW_MS)]
)
def test_an_event_that_was_changed_unchecked_is_refused_without_a_warning_that_quotes_it(
    event: Event, ways: Callable[[Event], object]
) -> None:

    with warnings.catch_warnings(record=True) as warned, pytest.raises(InvalidEvent, match="does not fit") as caught:
        ways(event)

    assert "secret" not in logged(caught.value)
    assert not warned


def test_an_event_that_is_written_as_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        write(Listed(text="hi"), ("a",), None, id=None, source="/a", now_ms=NOW_MS)


def test_a_type_that_is_an_enums_travels_as_its_plain_text() -> None:
    class Post(Event, type=Kind.POST):
        text: str

    events: list[Any] = [Post(text="hi"), {"type": Kind.PLAIN}, {"type": "codec.kind"}]
    written = [write(event, ("enums",), None, id=None, source="/a", now_ms=NOW_MS) for event in events]

    assert [kind for _, kind, *_ in written] == ["codec.post", "codec.kind", "codec.kind"]
    assert [decode(body).type for *_, body in written] == ["codec.post", "codec.kind", "codec.kind"]
    assert {type(kind) for _, kind, *_ in written} == {str}
    assert type(wrapped({"type": Kind.PLAIN}).type) is str


def test_a_number_that_json_lacks_is_refused_although_it_was_never_checked() -> None:
    with pytest.raises(InvalidEvent, match=r"data\.size: NaN"):
        wrapped(Free.model_construct(size=math.nan))


def test_a_serializer_that_raises_is_an_invalid_event() -> None:
    class Stubborn(Event, type="codec.stubborn"):
        text: str

        @field_serializer("text")
        def refuse(self, text: str) -> str:
            raise KeyError(text)

    with pytest.raises(InvalidEvent, match="serializer") as caught:
        wrapped(Stubborn(text="secret"))

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "attributes",
    [
        {"id": ""},
        {"id": "a\nb"},
        {"id": 5},
        {"id": "\ud800"},
        {"id": "a" * 1025},
        {"source": ""},
        {"source": None},
        {"key": ""},
        {"subject": "a\x00"},
        {"traceparent": "\x1b"},
        {"correlationid": b"a"},
        {"topics": "global"},
        {"topics": ("agent:*",)},
        {"topics": (5,)},
        {"topics": None},
    ],
)
def test_an_attribute_that_cannot_travel_is_refused_by_name(attributes: dict[str, Any]) -> None:
    (name,) = attributes

    with pytest.raises(InvalidEvent, match=f"codec.posted cannot be published: {name}: "):
        wrapped(Posted(agent_id="a1"), **attributes)


# -- encode ------------------------------------------------------------------------------------------------------------


def test_attributes_that_are_none_are_absent_and_nulls_in_data_stay() -> None:
    wire = json.loads(encode(wrapped({"type": "codec.unknown", "x": None}, topics=())))

    assert list(wire) == ["specversion", "id", "type", "source", "time", "datacontenttype", "data"]
    assert wire["data"] == {"x": None}


def test_topics_travel_as_one_text() -> None:
    assert json.loads(encode(wrapped(Free(), topics=("global", "agent:a1"))))["topics"] == "global agent:a1"


def test_unknown_attributes_come_last_by_name() -> None:
    wire = encode(decode(body(zeta=1, alpha="a", none=None)))

    assert list(json.loads(wire))[-3:] == ["data", "alpha", "zeta"]


def test_data_that_was_spoiled_after_the_check_is_an_invalid_event() -> None:
    envelope = wrapped({"type": "codec.unknown"})
    envelope.data["x"] = Opaque()

    with pytest.raises(InvalidEvent, match=r"data\.data\.x: a value of type Opaque"):
        encode(envelope)


# -- decode ------------------------------------------------------------------------------------------------------------


@given(st.binary())
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"1" * 5_000)
@example(b'"\\ud800"')
@example(b"null")
def test_no_bytes_raise_anything_but_our_errors(garbage: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        decode(garbage)

    assert str(caught.value).isprintable()


attributes = st.sampled_from([*Envelope.model_fields, "later", "\x1b", "__dict__", "model_config"])


@given(st.dictionaries(attributes, values | st.floats(), max_size=4))
def test_attributes_of_any_kind_raise_nothing_but_our_errors(changes: dict[str, Any]) -> None:
    wire = body(**changes)

    try:
        envelope = decode(wire)
        read(envelope)
    except BusError as error:
        assert str(error).isprintable()
    else:
        assert decode(encode(envelope)).data == envelope.data
        assert envelope.time_ms is not None
        assert isinstance(envelope.version, int | None)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_one_wrong_byte_raises_nothing_but_our_errors(place: int, byte: int) -> None:
    damaged = bytearray(body())
    damaged[place % len(damaged)] = byte

    try:
        read(decode(bytes(damaged)))
    except BusError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"specversion": "2.0"}, "specversion: only CloudEvents 1.x"),
        ({"specversion": 1.0}, "specversion"),
        ({"id": 5}, "id"),
        ({"id": None}, "id"),
        ({"type": "a\nb"}, "type: control characters"),
        ({"source": ""}, "source"),
        ({"time": "noon"}, "time: it must be an RFC 3339 time"),
        ({"time": "2026-02-30T00:00:00Z"}, "time: there is no such day"),
        ({"topics": ["a", "b"]}, "topics: topics are one text"),
        ({"topics": "a  b"}, "topics"),
        ({"topics": "agent:*"}, "topics"),
        ({"data": None}, "data"),
        ({"data": []}, "data"),
        ({"data": {"x": math.nan}}, "data.x: NaN"),
        ({"data": {"x": nested(64)}}, "deeper than 64"),
        ({"data": {"x": nested(150)}}, "deeper than 64"),
        ({"later": {"a": 1}}, "later: an attribute is text, a whole number or a boolean"),
    ],
)
def test_a_malformed_attribute_is_refused_by_name(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidEvent, match=f"this is not an envelope: .*{hint}"):
        decode(body(**changes))


@pytest.mark.parametrize("name", ["id", "type", "source", "time", "data"])
def test_a_missing_attribute_is_refused_by_name(name: str) -> None:
    attributes = json.loads(body())
    del attributes[name]

    with pytest.raises(InvalidEvent, match=f"{name}: Field required"):
        decode(json.dumps(attributes).encode())


def test_a_number_too_large_for_a_float_is_refused_and_not_made_infinite() -> None:
    with pytest.raises(InvalidEvent, match=r"data\.x: NaN and infinities"):
        decode(body(data={"x": 7}).replace(b"7}", b"1e999}"))


def test_a_later_minor_version_of_cloudevents_is_read() -> None:
    assert decode(body(specversion="1.7")).specversion == "1.7"


def test_a_body_over_the_limit_is_too_large_and_one_at_the_limit_is_not() -> None:
    wire = body()

    assert decode(wire, max_bytes=len(wire)).id == "1"
    with pytest.raises(PayloadTooLarge) as caught:
        decode(wire, max_bytes=len(wire) - 1)

    assert (caught.value.size, caught.value.limit) == (len(wire), len(wire) - 1)


def test_what_is_refused_is_never_quoted() -> None:
    wire = body(data={"text": "secret", "x": math.nan}, time="secret", later=["secret"])

    with pytest.raises(InvalidEvent) as caught:
        decode(wire)

    assert "secret" not in logged(caught.value)


# -- read --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_than_the_known_ones_is_read_as_plain_data(version: int) -> None:
    wire = body(type="codec.posted", dataschema=f"urn:callboard:codec.posted:{version}", data={"else": 1})

    assert read(decode(wire)) == {"else": 1}


def test_a_known_type_without_a_version_is_read_as_plain_data() -> None:
    assert read(decode(body(type="codec.posted"))) == {"x": 1}


def test_data_that_its_model_refuses_is_an_invalid_event_without_its_values() -> None:
    wire = body(type="codec.posted", dataschema="urn:callboard:codec.posted:2", data={"agent_id": {"a": "secret"}})

    with pytest.raises(InvalidEvent, match=r"not a codec\.posted version 2: agent_id: .*string") as caught:
        read(decode(wire))

    assert "secret" not in logged(caught.value)


def test_a_tag_of_no_variant_is_not_quoted() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]

    class Adopted(Event, type="codec.adopted"):
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]

    wire = body(type="codec.adopted", dataschema="urn:callboard:codec.adopted:1", data={"pet": {"kind": "secret"}})

    with pytest.raises(InvalidEvent, match="pet: its tag names no known variant"):
        read(decode(wire))


def test_names_inside_the_data_cannot_smuggle_control_characters_into_the_text() -> None:
    class Scored(Event, type="codec.scored"):
        scores: dict[str, int]

    wire = body(type="codec.scored", dataschema="urn:callboard:codec.scored:1", data={"scores": {"\x1b[31m": "x"}})

    with pytest.raises(InvalidEvent) as caught:
        read(decode(wire))

    assert str(caught.value).isprintable()


def test_the_words_of_an_app_s_own_validator_are_kept_without_control_characters() -> None:
    class Polite(Event, type="codec.polite"):
        text: str

        @field_validator("text")
        @classmethod
        def refuse(cls, _text: str) -> str:
            raise ValueError("say please \x1b[31m")

    with pytest.raises(InvalidEvent, match=r"text: .*say please") as caught:
        wrapped({"type": "codec.polite", "text": "secret"})

    assert str(caught.value).isprintable()


def test_only_the_first_of_many_faults_are_named() -> None:
    class Counted(Event, type="codec.counted"):
        counts: list[int]

    wire = body(type="codec.counted", dataschema="urn:callboard:codec.counted:1", data={"counts": ["x"] * 10_000})

    with pytest.raises(InvalidEvent, match=r"and 9,995 more$") as caught:
        read(decode(wire))

    assert len(str(caught.value)) < 1_000


def test_a_validator_that_raises_anything_is_an_invalid_event() -> None:
    class Touchy(Event, type="codec.touchy"):
        text: str

        @field_validator("text")
        @classmethod
        def refuse(cls, text: str) -> str:
            raise KeyError(text)

    wire = body(type="codec.touchy", dataschema="urn:callboard:codec.touchy:1", data={"text": "secret"})

    with pytest.raises(InvalidEvent, match="raised KeyError") as caught:
        read(decode(wire))

    assert "secret" not in str(caught.value)
