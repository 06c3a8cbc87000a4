"""Opened quickly and kept small, an envelope is what pydantic would have made of the same bytes."""

from __future__ import annotations

import copy
import json
import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from bus.codec import decode, encode
from bus.envelope import MAX_ATTRIBUTE, MAX_DEPTH, Envelope
from bus.errors import InvalidEvent
from bus.opening import opened

FULL = {
    "specversion": "1.0",
    "id": "019f6f1b-c47d-7c3a-9d51-6f0b8a2c4e10",
    "type": "opening.done",
    "source": "/a",
    "time": "2026-07-17T08:00:00.125Z",
    "datacontenttype": "application/json",
    "subject": "post/1",
    "dataschema": "urn:callboard:opening.done:1",
    "correlationid": "c",
    "causationid": "d",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "topics": "global agent:a1 global",
    "key": "a1",
    "data": {"text": "hi", "deep": [{"n": 1.5}]},
}
OTHERS = ["later", "__dict__", "model_config", "\x1b"]

texts = st.text(max_size=5) | st.sampled_from(
    ["", "a" * MAX_ATTRIBUTE, "a" * (MAX_ATTRIBUTE + 1), "a b", "\x85", "\u00a0"]
)
times = st.sampled_from(
    [
        "2026-07-17T08:00:00Z",
        "2026-07-17T08:00:00.1Z",
        "2026-07-17T08:00:00.12xZ",
        "2026-07-17T08:00:00.1\u06612Z",
        "2026-02-30T08:00:00.125Z",
        "2026-07-17T24:00:00.125Z",
        "2026-07-17T23:59:60.125Z",
        "2026-07-17 08:00:00.125Z",
        "20260717T08:00:00.00.125Z",
        "2026-07-17T08:00:00.125+02:00",
        "0000-07-17T08:00:00.125Z",
        "1969-12-31T23:59:59.999Z",
    ]
)
topics = st.sampled_from(["", " ", "a", "a  b", "a b a", "$worker:x", "agent:*", "a " * 600 + "a"])
scalars = st.none() | st.booleans() | st.integers() | st.floats()
datas = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
anything = texts | times | topics | datas
changes = st.dictionaries(st.sampled_from([*FULL, *OTHERS]), anything, max_size=3)
absent = st.sets(st.sampled_from([*FULL]), max_size=4)


def judged(body: bytes) -> Envelope | None:
    try:
        return Envelope.model_validate_json(body)
    except ValidationError:
        return None


def decoded(body: bytes) -> Envelope | None:
    try:
        return decode(body)
    except InvalidEvent:
        return None


def inside(envelope: Envelope | None) -> object:
    """All there is in it; ``repr`` tells 1 from 1.0 and from True, and the order of attributes."""
    return envelope and (
        repr(envelope.__dict__),
        envelope.__pydantic_fields_set__,
        envelope.__pydantic_extra__,
        envelope.__pydantic_private__,
    )


def a_full_one() -> Envelope:
    return decode(json.dumps(FULL).encode())


@given(changes, absent)
@example({}, set())
@example({"data": {"x": math.nan}}, set())
@example({"data": {"x": 10**1000}}, set())
@example({"specversion": "1.1"}, set())
@example({"time": "1969-12-31T23:59:59.999Z"}, set())
@example({"time": 5}, set())
@example({"topics": 5}, set())
@example({"topics": None}, set())
@example({"subject": None, "key": None}, set())
@example({"later": 1}, set())
def test_it_is_what_the_model_makes_of_the_same_bytes(changed: dict[str, Any], left_out: set[str]) -> None:
    body = json.dumps({name: value for name, value in (FULL | changed).items() if name not in left_out}).encode()

    assert inside(decoded(body)) == inside(judged(body))


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1])
def test_data_may_be_as_deep_as_the_model_lets_it(levels: int) -> None:
    data: Any = {}
    for _ in range(levels - 1):
        data = {"in": data}
    body = json.dumps(FULL | {"data": data}).encode()

    assert inside(decoded(body)) == inside(judged(body))
    assert (decoded(body) is None) == (levels > MAX_DEPTH)


@pytest.mark.parametrize("name", ["id", "data", "topics"])
@pytest.mark.parametrize("twice", [('"x"', "5"), ("5", '"x"'), ('{"a":1}', '{"a":2,"a":3}')])
def test_a_name_that_stands_there_twice_counts_as_with_the_model(name: str, twice: tuple[str, str]) -> None:
    rest = json.dumps({other: value for other, value in FULL.items() if other != name})[1:]
    body = f'{{"{name}":{twice[0]},"{name}":{twice[1]},{rest}'.encode()

    assert inside(decoded(body)) == inside(judged(body))


@pytest.mark.parametrize(
    "without", [(), ("subject", "correlationid", "causationid", "traceparent", "key"), ("topics",)]
)
def test_what_we_write_is_opened_without_the_model(without: tuple[str, ...]) -> None:
    made = Envelope.model_validate({name: value for name, value in FULL.items() if name not in ("topics", *without)})

    assert inside(opened(encode(made))) == inside(judged(encode(made)))


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda envelope: pickle.loads(pickle.dumps(envelope)),  # noqa: S301 - our own
        lambda envelope: envelope.model_copy(),
        lambda envelope: Envelope.model_validate_json(encode(envelope)),
        lambda envelope: Envelope.model_construct(**envelope.model_dump()),
    ],
    ids=["copy", "deepcopy", "pickle", "model_copy", "model_validate_json", "model_construct"],
)
def test_it_bears_what_a_model_bears(again: Callable[[Envelope], Envelope]) -> None:
    envelope = a_full_one()

    assert again(envelope) == envelope == again(envelope)
    assert inside(again(envelope)) == inside(envelope)


def test_a_changed_copy_changes_nothing_of_another() -> None:
    body = json.dumps({name: value for name, value in FULL.items() if name != "key"}).encode()
    envelope, other = decode(body), decode(body)

    changed = envelope.model_copy(update={"key": "b", "later": 1})

    assert (changed.key, changed.model_extra) == ("b", {"later": 1})
    assert "key" not in other.model_fields_set
    assert inside(envelope) == inside(other) == inside(judged(body))


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_full_one().id = "2"  # type: ignore[misc]


def test_attributes_of_a_later_version_are_attributes() -> None:
    envelope: Any = decode(json.dumps(FULL | {"later": "x"}).encode())

    assert (envelope.later, envelope.model_extra, encode(envelope)[-12:]) == ("x", {"later": "x"}, b'"later":"x"}')


@pytest.mark.parametrize("extra", [{}, {"later": "x"}])
def test_a_thousand_of_them_take_less_than_half_the_memory_of_models(extra: dict[str, str]) -> None:
    bodies = [json.dumps(FULL | extra | {"id": f"{n:036}", "data": {"n": n}}).encode() for n in range(1_000)]

    def held(make: Callable[[bytes], Envelope]) -> int:
        first = [make(body) for body in bodies]  # with them caches fill, and tables find their size
        before, _ = tracemalloc.get_traced_memory()
        then = [make(body) for body in bodies]
        after, _ = tracemalloc.get_traced_memory()
        assert first == then
        return after - before

    tracemalloc.start()
    try:
        ours, models = held(decode), held(Envelope.model_validate_json)
    finally:
        tracemalloc.stop()

    assert ours < models / 2, f"{ours / 1000:.0f} bytes each, a model {models / 1000:.0f}"
