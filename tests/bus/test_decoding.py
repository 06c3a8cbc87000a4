"""Decoding: once in a process for each event, however many listeners match, now or a little later."""

from __future__ import annotations

import asyncio

import pytest

from bus import Bus, Delivery, Event, Listener, codec, decoding
from bus.decoding import Decoder
from bus.envelope import Envelope
from bus.position import Position
from bus.store.base import Entry


class Line(Event, type="decoding.line"):
    n: int


async def take(listener: Listener, count: int) -> list[Delivery]:
    found = [await anext(listener) for _ in range(count)]
    return [item for item in found if isinstance(item, Delivery)]


async def test_listeners_of_all_kinds_share_one_decoding(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = codec.decode

    def counting(body: bytes, *, max_bytes: int = 0) -> Envelope:
        envelope = decode(body, max_bytes=max_bytes)
        decoded.append(envelope.id)
        return envelope

    monkeypatch.setattr(codec, "decode", counting)
    async with Bus(url, namespace=namespace) as bus, bus.listen() as one, bus.listen("*") as two:
        for n in range(10):
            await bus.publish(Line(n=n))
        live = await asyncio.gather(take(one, 10), take(two, 10))
        async with bus.listen(after="0") as late:
            read = await take(late, 10)
        kept = [item async for item in bus.history() if isinstance(item, Delivery)]

    assert len(decoded) == len(set(decoded)) == 10
    for again in (live[1], read, kept):
        assert all(mine is theirs for mine, theirs in zip(live[0], again, strict=True))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    monkeypatch.setattr(decoding, "KEPT", 3)
    envelope = codec.wrap(Line(n=1), id=None, source="/s", now_ms=0, topics=(), key=None)
    entries = [(Position("e", n, "t"), Entry(n, "t", "p", "", codec.encode(envelope))) for n in range(1, 6)]

    first = [decoder.deliver(*entry) for entry in entries]
    again = [decoder.deliver(*entry) for entry in reversed(entries)]

    assert [one is two for one, two in zip(first, reversed(again), strict=True)] == [False, False, True, True, True]


def test_one_that_is_too_large_forgets_the_others_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    monkeypatch.setattr(decoding, "KEPT_BYTES", 10)
    body = codec.encode(codec.wrap(Line(n=1), id=None, source="/s", now_ms=0, topics=(), key=None))
    one, two = (Position("e", n, "t") for n in (1, 2))
    entry = Entry(1, "t", "p", "", body)

    before = decoder.deliver(one, entry)
    kept = decoder.deliver(two, entry)

    assert decoder.deliver(two, entry) is kept
    assert decoder.deliver(one, entry) is not before


def test_ephemeral_events_are_not_remembered() -> None:
    decoder = Decoder()
    body = codec.encode(codec.wrap(Line(n=1), id=None, source="/s", now_ms=0, topics=(), key=None))
    entry, at = Entry(1, "t", "p", "", body), Position("e", 1, "t")
    whisper = decoder.deliver(at, entry, ephemeral=True)
    assert whisper is not None
    assert whisper.ephemeral
    told = decoder.deliver(at, entry)
    assert told is not None
    assert not told.ephemeral
