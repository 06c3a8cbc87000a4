"""Topics and patterns: the grammar, its messages, and matching against a brute-force reading of it."""

from __future__ import annotations

import enum
import string
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import InvalidTopic
from bus.topics import Matcher, check_pattern, check_topic, topic_set

LETTERS = string.ascii_letters + string.digits + "_.~@-"

segments = st.text(LETTERS, min_size=1, max_size=6)
topics = st.lists(segments, min_size=1, max_size=16).map(":".join)

few = st.sampled_from(["a", "b", "c"])  # so small an alphabet that patterns often match
few_topics = st.lists(few, min_size=1, max_size=4).map(":".join)
few_patterns = st.builds(
    lambda inner, last: ":".join([*inner, last]),
    st.lists(few | st.just("*"), max_size=3),
    few | st.sampled_from(["*", "**"]),
)


def agrees(pattern: list[str], topic: list[str]) -> bool:
    """The grammar's own words, one segment at a time."""
    if not pattern or not topic:
        return not pattern and not topic
    if pattern[0] == "**":
        return True
    return pattern[0] in ("*", topic[0]) and agrees(pattern[1:], topic[1:])


@given(topics)
def test_every_topic_of_the_grammar_is_accepted_as_topic_and_as_pattern(topic: str) -> None:
    assert check_topic(topic) == topic
    assert check_pattern(topic) == topic


@given(st.text() | st.text(LETTERS + ":*$", max_size=20))
def test_other_text_is_refused_with_a_reason(text: str) -> None:
    parts = text.split(":")
    valid = len(parts) <= 16 and all(part and set(part) <= set(LETTERS) and len(part) <= 128 for part in parts)

    try:
        check_topic(text)
    except InvalidTopic as error:
        assert not valid
        assert error.topic == text
        assert error.why
    else:
        assert valid


@given(few_topics, st.lists(few_patterns, max_size=4))
def test_a_matcher_agrees_with_the_grammar(topic: str, patterns: list[str]) -> None:
    expected = any(agrees(pattern.split(":"), topic.split(":")) for pattern in patterns)
    matcher = Matcher(patterns)

    assert matcher.matches([topic]) is expected
    assert matcher.matches([topic]) is expected  # remembered by now


@given(st.lists(few_topics, max_size=3), st.lists(few_patterns, max_size=3))
def test_several_topics_match_where_any_of_them_does(several: list[str], patterns: list[str]) -> None:
    matcher = Matcher(patterns)

    assert matcher.matches(several) is any(matcher.matches([topic]) for topic in several)


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("", "at least one segment"),
        ("agent:", "empty"),
        (":agent", "empty"),
        ("a::b", "empty"),
        ("agent:*", "pattern"),
        ("$sys:x", r"'\$' marks"),
        ("a:$b", r"'\$' is not allowed"),
        ("two words", "' ' is not allowed"),
        ("line\n", r"'\\n' is not allowed"),
        ("caf\u00e9", "is not allowed"),
        ("\ud800", "is not allowed"),
        ("a" * 129, "129 characters"),
        (":".join("a" * 17), "17 segments"),
        (":".join(["a" * 63] * 5), "255 bytes"),
    ],
)
def test_a_refusal_says_what_is_wrong(topic: str, hint: str) -> None:
    with pytest.raises(InvalidTopic, match=hint):
        check_topic(topic)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("agent:a*", "whole segment"),
        ("**:a", "only at the end"),
        ("***", "whole segment"),
        ("*:", "empty"),
        ("$sys:*", r"'\$' marks"),
        (":".join([*["a" * 63] * 3, "b" * 61, "**"]), "256 characters"),
    ],
)
def test_a_malformed_pattern_says_what_is_wrong(pattern: str, hint: str) -> None:
    with pytest.raises(InvalidTopic, match=hint):
        check_pattern(pattern)


def test_a_topic_may_be_exactly_at_the_limits() -> None:
    longest = f"{'a' * 128}:{'b' * 126}"

    assert len(check_topic(longest)) == 255
    assert check_topic(":".join("a" * 16))


def test_a_control_character_never_reaches_the_text() -> None:
    with pytest.raises(InvalidTopic) as caught:
        check_topic("a\x1b[31m")

    assert str(caught.value).isprintable()


@pytest.mark.parametrize("given", [None, 5, b"a", ["a"], object()])
def test_something_other_than_text_is_refused(given: object) -> None:
    with pytest.raises(InvalidTopic, match="a topic is a str"):
        check_topic(given)  # type: ignore[arg-type]

    with pytest.raises(InvalidTopic, match="a topic is a str"):
        check_pattern(given)  # type: ignore[arg-type]

    with pytest.raises(InvalidTopic, match="a topic is a str"):
        topic_set([given])  # type: ignore[list-item]


def test_our_own_code_may_use_reserved_topics() -> None:
    assert check_topic("$presence:a1", reserved=True) == "$presence:a1"
    assert check_pattern("$presence:*", reserved=True) == "$presence:*"
    assert topic_set(["$sys"], reserved=True) == ("$sys",)


@pytest.mark.parametrize("topic", ["$", "$$a", "a:$b", "$:a"])
def test_a_reserved_topic_has_one_dollar_and_a_name(topic: str) -> None:
    with pytest.raises(InvalidTopic):
        check_topic(topic, reserved=True)


def test_a_wildcard_in_the_first_place_does_not_reach_reserved_topics() -> None:
    everything = Matcher(["**", "*", "*:a1"])

    assert not everything.matches(["$presence:a1", "$sys"])
    assert Matcher(["$presence:*"], reserved=True).matches(["$presence:a1"])


def test_a_topic_set_keeps_the_first_order_and_drops_repeats() -> None:
    assert topic_set(["b", "a", "b", "c", "a"]) == ("b", "a", "c")
    assert topic_set(name for name in ("a", "a")) == ("a",)
    assert topic_set([]) == ()


@pytest.mark.parametrize("given", ["global", None, 5])
def test_what_is_not_a_list_of_topics_is_refused(given: object) -> None:
    with pytest.raises(InvalidTopic, match="pass a list of topics"):
        topic_set(given)  # type: ignore[arg-type]

    with pytest.raises(InvalidTopic, match="pass a list of topics"):
        Matcher(given)  # type: ignore[arg-type]


def test_a_lone_text_is_not_matched_letter_by_letter() -> None:
    with pytest.raises(InvalidTopic, match="pass a list of topics"):
        Matcher(["a"]).matches("abc")


def test_an_enum_of_topics_becomes_plain_text() -> None:
    class Room(enum.StrEnum):
        OPS = "channel:only-in-this-enum"

    assert type(topic_set([Room.OPS])[0]) is str


def test_a_matcher_shows_its_patterns_once_each() -> None:
    matcher = Matcher(["agent:*", "a", "agent:*"])

    assert matcher.patterns == ("agent:*", "a")
    assert repr(matcher) == "Matcher(agent:*, a)"


def test_a_matcher_takes_topics_from_an_iterator() -> None:
    assert Matcher(["agent:*"]).matches(iter(["global", "agent:a1"]))


def test_a_dot_in_a_pattern_is_only_a_dot() -> None:
    assert not Matcher(["a.b:*"]).matches(["axb:c"])


def test_what_a_matcher_remembers_is_bounded() -> None:
    matcher = Matcher(["agent:*"])

    for number in range(5_000):
        matcher.matches([f"agent:a{number}"])

    assert len(matcher._cache) <= 1024  # noqa: SLF001  # nothing outside shows it


def test_a_long_topic_against_many_patterns_is_still_quick() -> None:
    # A backtracking expression would need longer than the universe has.
    worst = ":".join(["a"] * 15 + ["b"])
    patterns = [":".join(chain(repeat("*", stars), ["c", "**"])) for stars in range(14)]

    assert not Matcher(patterns).matches([worst])
