"""The wire form, byte by byte. A failure here means: logs that exist, and readers that run, would no longer agree.

Do not adjust a golden file to make a test pass. Add a new one, and keep reading the old.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus.codec import decode, encode, read, wrap
from bus.events import Event

HERE = Path(__file__).parent
GOLDEN = sorted(path.name for path in HERE.glob("*.json"))

NOW_MS = 1_784_275_200_125


class PostCreated(Event, type="golden.post.created", version=1):
    agent_id: str
    text: str
    reply_to: str | None = None
    score: float = 0.5


def golden(name: str) -> bytes:
    return (HERE / name).read_bytes()


def test_every_golden_file_is_here() -> None:
    assert GOLDEN == [
        "v1_full.json",
        "v1_minimal.json",
        "v1_newer_version.json",
        "v1_unicode.json",
        "v1_unknown_extension.json",
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_read_is_written_again_to_the_byte(name: str) -> None:
    assert encode(decode(golden(name))) == golden(name)


def test_a_full_event_is_written_to_the_byte() -> None:
    envelope = wrap(
        PostCreated(agent_id="a1", text="hi"),
        id="019f6f1b-c47d-7c3a-9d51-6f0b8a2c4e10",
        source="/agents/a1",
        now_ms=NOW_MS,
        topics=("global", "agent:a1"),
        key="a1",
        correlationid="019f6f1b-0000-7c3a-9d51-6f0b8a2c4e10",
        causationid="019f6f1b-1111-7c3a-9d51-6f0b8a2c4e10",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        subject="post/123",
    )

    assert encode(envelope) == golden("v1_full.json")


def test_a_minimal_event_is_written_to_the_byte() -> None:
    envelope = wrap({"type": "golden.ping"}, id="1", source="/", now_ms=NOW_MS, topics=(), key=None)

    assert encode(envelope) == golden("v1_minimal.json")


def test_an_event_of_many_alphabets_is_written_to_the_byte() -> None:
    event: dict[str, Any] = {
        "type": "golden.greeting",
        "text": 'Gr\u00fc\u00dfe, \u4e16\u754c \U0001f3ad "quoted" \\ / \x00\t\n\x7f\u2028',
        "n\u00e4me": [0, -1, 1.0, -2.5, 9007199254740993, True, None],
    }
    envelope = wrap(event, id="1", source="/b\u00fchne", now_ms=NOW_MS, topics=("global",), key="\u4e16")

    assert encode(envelope) == golden("v1_unicode.json")


def test_a_full_event_is_read_as_its_class() -> None:
    envelope = decode(golden("v1_full.json"))

    assert read(envelope) == PostCreated(agent_id="a1", text="hi")
    assert envelope.topics == ("global", "agent:a1")
    assert envelope.time_ms == NOW_MS
    assert (envelope.version, envelope.key, envelope.subject) == (1, "a1", "post/123")


def test_unknown_attributes_survive() -> None:
    envelope = decode(golden("v1_unknown_extension.json"))

    assert envelope.__pydantic_extra__ == {"audience": "a1 a2", "sampledrate": 10, "urgent": True}
    assert isinstance(read(envelope), PostCreated)


def test_a_newer_version_is_read_as_plain_data() -> None:
    envelope = decode(golden("v1_newer_version.json"))

    assert envelope.version == 2
    assert read(envelope) == {"author": {"id": "a1"}, "blocks": [{"kind": "text", "text": "hi"}]}
