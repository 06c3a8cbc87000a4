"""Envelopes: what they hold, what they refuse, and what they never show."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bus.envelope import MAX_DEPTH, Envelope, check_json, dataschema, rfc3339


def envelope(**attributes: Any) -> Envelope:
    defaults = {"id": "1", "type": "post.created", "source": "/a", "time": "2026-07-17T08:00:00.125Z", "data": {}}
    return Envelope(**defaults | attributes)


def nested(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(levels - 1):
        data = {"in": data}
    return data


def test_an_envelope_is_frozen() -> None:
    with pytest.raises(ValidationError):
        envelope().id = "2"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["id", "type", "source", "time", "data"])
def test_an_attribute_that_is_required_cannot_be_none(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        envelope(**{name: None})


@pytest.mark.parametrize("name", ["id", "type", "source", "subject", "correlationid", "causationid", "key"])
@pytest.mark.parametrize("text", ["", "a\nb", "a\x00", "\x7f", "\x85", "a" * 1025, "\ud800", 5, b"a"])
def test_a_text_attribute_is_short_and_printable(name: str, text: object) -> None:
    with pytest.raises(ValidationError, match=name):
        envelope(**{name: text})


def test_topics_are_a_set_in_their_first_order() -> None:
    assert envelope(topics=["b", "a", "b"]).topics == ("b", "a")


def test_our_own_topics_may_travel() -> None:
    assert envelope(topics=("$sys:tick",)).topics == ("$sys:tick",)


@pytest.mark.parametrize("topics", ["global", ["a b"], ["agent:*"], [5], None, 5])
def test_other_topics_are_refused(topics: object) -> None:
    with pytest.raises(ValidationError, match="topics"):
        envelope(topics=topics)


@pytest.mark.parametrize("time", ["yesterday", "2026-07-17", "2026-07-17 08:00:00Z", "2026-02-30T00:00:00Z", 5])
def test_a_time_that_is_not_rfc_3339_is_refused(time: object) -> None:
    with pytest.raises(ValidationError, match="time"):
        envelope(time=time)


@pytest.mark.parametrize(
    ("time", "ms"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("1970-01-01T01:00:00.001+01:00", 1),
        ("1970-01-01T00:00:01.9999999Z", 1999),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_the_time_in_milliseconds(time: str, ms: int) -> None:
    assert envelope(time=time).time_ms == ms


@given(st.integers(min_value=-62_135_596_800_000, max_value=253_402_300_799_999))
def test_a_time_comes_back_from_its_text(ms: int) -> None:
    text = rfc3339(ms)

    assert envelope(time=text).time_ms == ms
    assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def test_a_time_has_milliseconds_and_z() -> None:
    assert rfc3339(1_784_275_200_005) == "2026-07-17T08:00:00.005Z"


def test_the_version_stands_in_the_dataschema() -> None:
    assert envelope(dataschema=dataschema("post.created", 12)).version == 12


@pytest.mark.parametrize(
    "schema",
    [
        None,
        "https://example.com/post.json",
        "urn:callboard:post.deleted:1",
        "urn:callboard:post.created",
        "urn:callboard:post.created:",
        "urn:callboard:post.created:0",
        "urn:callboard:post.created:01",
        "urn:callboard:post.created:-1",
        "urn:callboard:post.created:1.0",
        "urn:callboard:post.created:\u0661",
        "urn:callboard:post.created:" + "9" * 500,
    ],
)
def test_a_foreign_dataschema_is_no_version(schema: str | None) -> None:
    assert envelope(dataschema=schema).version is None


def test_nothing_that_prints_an_envelope_shows_its_data() -> None:
    shown = envelope(topics=["a", "b"], data={"text": "secret"}, key="secret", extension="secret")

    assert repr(shown) == "Envelope(id='1', type='post.created', topics='a b')"
    assert "secret" not in f"{shown} {list(shown.__repr_args__())}"  # rich and devtools ask for the second


def test_a_refused_envelope_does_not_quote_its_data() -> None:
    with pytest.raises(ValidationError) as caught:
        envelope(data={"secret": "secret", "value": math.nan})

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["text", 5, True, None])
def test_an_unknown_attribute_is_a_scalar(value: object) -> None:
    assert envelope(later=value).__pydantic_extra__ == {"later": value}


@pytest.mark.parametrize("value", [1.5, [], {}, math.nan, "\ud800", pytest.param(10**1000, id="long")])
def test_an_unknown_attribute_is_nothing_else(value: object) -> None:
    with pytest.raises(ValidationError, match="later"):
        envelope(later=value)


def test_plain_json_is_returned_as_it_is() -> None:
    data = {"a": [1, -2.5, True, None, "\u00e9", {"b": {}}], "\u00e9": 10**1000 - 1}

    assert check_json(data) is data


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"a": math.nan}, "data.a: NaN"),
        ({"a": [1, {"b": -math.inf}]}, r"data.a\[1\].b: NaN"),
        ({"a": {1: 2}}, "data.a: a key is of type int"),
        ({"a": (1,)}, "data.a: tuple is not JSON"),
        ({"a": "\udfff"}, "data.a: the text has a lone surrogate"),
        ({"\udfff": 1}, "data: a key has a lone surrogate"),
        ({"a": -(10**1000)}, "data.a: the number has over a thousand digits"),
        ({"two words": math.nan}, r"data\['two words'\]: NaN"),
    ],
)
def test_what_is_not_json_is_named_by_its_place(data: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        check_json(data)


def test_data_may_be_as_deep_as_the_limit_and_no_deeper() -> None:
    check_json(nested(MAX_DEPTH))

    with pytest.raises(ValueError, match="deeper than 64"):
        check_json(nested(MAX_DEPTH + 1))


def test_data_that_refers_to_itself_is_too_deep() -> None:
    data: dict[str, Any] = {}
    data["me"] = data

    with pytest.raises(ValueError, match="refers to itself"):
        check_json(data)
