"""Passwords and payloads: whatever goes wrong, neither gets into a log, a warning, an error or a traceback."""

from __future__ import annotations

import asyncio
import logging
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bus import Bus, BusError, BusUnavailable, Event, InvalidEvent, PayloadTooLarge, Publication
from bus.store.base import Whisper
from tests.servers import Server
from tests.waiting import eventually

StartServer = Callable[..., Server]

PASSWORD = "canary:pass@word"
USER = "canary-user"
PAYLOAD = "canary-payload"
CANARIES = ("canary", "pass@word", "pass%40word")


class Secret(Event, type="secrets.secret"):
    text: str
    n: int = 0


class Typeless(Event):
    text: str


class Loose(Event, type="secrets.loose"):
    value: Any


SECRET = Secret(text=PAYLOAD)


class Overheard:
    """Everything that a person may come to see."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._warnings: list[warnings.WarningMessage] = []
        self.said: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        self._caplog.set_level(logging.DEBUG)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self._warnings += caught

    async def failing(self, door: Callable[[], Awaitable[Any]], expected: type[BusError]) -> None:
        """Go through a door that must fail, and keep all that its error says."""
        try:
            await door()
        except expected as error:
            self.said += [traceback.format_exc(), str(error), repr(error), f"{error.__dict__}", f"{error.args}"]
        else:
            pytest.fail(f"{expected.__name__} was not raised")

    def everything(self) -> str:
        logged = [record.getMessage() + (record.exc_text or "") for record in self._caplog.records]
        return "\n".join([*self.said, *logged, *[str(each) for each in self._warnings], self._caplog.text])

    def assert_discreet(self) -> None:
        text = self.everything()
        for canary in CANARIES:
            place = text.find(canary)
            assert place < 0, f"...{text[max(0, place - 200) : place + 200]}..."


@pytest.fixture
def overheard(caplog: pytest.LogCaptureFixture) -> Overheard:
    return Overheard(caplog)


def doors(bus: Bus, event: Any = SECRET, **options: Any) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: bus.publish(event, **options),
        lambda: bus.publish(event, ephemeral=True, **options),
        lambda: bus.publish_many([Publication(event, **options)]),
        lambda: asyncio.to_thread(lambda: bus.publish_sync(event, **options)),
    ]


def entrances(bus: Bus) -> list[Callable[[], Awaitable[Any]]]:
    return [bus.open, lambda: asyncio.to_thread(bus.open_sync), lambda: bus.listen().__aenter__(), *doors(bus)]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:canary@{place}/0",
        "redis://canary-user:canary@{place}/0",
        "redis://canary-user:canary%3Apass%40wrong@{place}/0",
        "redis://{place}/0",
    ],
)
async def test_a_refused_password_is_not_shown(url: str, start_server: StartServer, overheard: Overheard) -> None:
    server = start_server(requirepass=PASSWORD)
    with overheard.listening():
        bus = Bus(url.format(place=f"127.0.0.1:{server.port}"))
        for entrance in entrances(bus):
            await overheard.failing(entrance, BusUnavailable)
        overheard.said += [repr(bus), repr(bus.store), repr(bus.status())]

    why = "refused the user or password" if "canary" in url else "wants a password: put it into the URL"
    assert why in overheard.everything()
    overheard.assert_discreet()


async def test_a_server_that_breaks_in_all_ways_shows_nothing(
    start_server: StartServer, namespace: str, overheard: Overheard
) -> None:
    server = start_server(requirepass=PASSWORD)
    with overheard.listening():
        bus = Bus(server.url, namespace=namespace, deadline_s=0.2)
        async with bus, bus.listen() as listener:
            await bus.publish(SECRET, id="one", key="k")
            with server.client() as client:
                assert client.client_kill_filter(_type="pubsub") == 1
                assert client.client_kill_filter(_type="normal", skipme=True) >= 1
            await bus.publish(SECRET, topics=["global"])
            await bus.publish(Secret(text=f"{PAYLOAD} again"), id="one")
            overheard.said += [
                repr(bus),
                repr(listener),
                repr(bus.store),
                repr(await anext(listener)).split("event=")[0],
            ]

            await asyncio.to_thread(server.stop)
            for door in doors(bus):
                await overheard.failing(door, BusUnavailable)
            await eventually(lambda: not bus.status().connected, "the loss to be noticed")
            await overheard.failing(lambda: bus.listen(log="other").__aenter__(), BusUnavailable)

    assert "the live link of log 'main' was lost" in overheard.everything()
    assert "does not answer" in overheard.everything() or "cannot be reached" in overheard.everything()
    overheard.assert_discreet()


REFUSED: dict[str, Any] = {
    "a field that does not fit": {"type": "secrets.secret", "text": PAYLOAD, "n": PAYLOAD},
    "a field that is missing": {"type": "secrets.secret", PAYLOAD: 1},
    "an object": {"type": "secrets.plain", "x": {"y": object()}, "text": PAYLOAD},
    "NaN": {"type": "secrets.plain", "x": [float("nan")], "text": PAYLOAD},
    "a lone surrogate": {"type": "secrets.plain", "x": f"{PAYLOAD}\ud800"},
    "no type": {"text": PAYLOAD},
    "an abstract model": Typeless(text=PAYLOAD),
    "a model with an object": Loose(value={PAYLOAD, object()}),
    "a model with infinity": Loose(value=[PAYLOAD, float("inf")]),
    "a model built unchecked": Secret.model_construct(text=PAYLOAD, n=PAYLOAD),  # type: ignore[arg-type]
    "no event": [PAYLOAD],
}


@pytest.mark.parametrize("event", REFUSED.values(), ids=REFUSED)
async def test_a_payload_that_is_refused_is_not_shown(
    event: Any, url: str, namespace: str, overheard: Overheard
) -> None:
    with overheard.listening():
        async with Bus(url, namespace=namespace) as bus:
            for door in doors(bus, event):
                await overheard.failing(door, InvalidEvent)

    overheard.assert_discreet()


async def test_a_payload_that_is_too_large_is_not_shown(url: str, namespace: str, overheard: Overheard) -> None:
    with overheard.listening():
        async with Bus(url, namespace=namespace, max_bytes=100) as bus:
            for door in doors(bus, Secret(text=PAYLOAD * 100)):
                await overheard.failing(door, PayloadTooLarge)
            for door in doors(bus, delay=-1):
                await overheard.failing(door, InvalidEvent)

    overheard.assert_discreet()


async def test_bytes_that_cannot_be_read_are_not_shown(url: str, namespace: str, overheard: Overheard) -> None:
    with overheard.listening():
        async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
            await bus.publish(SECRET)
            good = bus.store.read("main", "0", 0, 1).entries[0].body
            bad = [
                PAYLOAD.encode(),
                good.replace(b'"id":"', b'"id":"' + PAYLOAD.encode() + b"\\n"),
                good.replace(b'"n":0', f'"n":"{PAYLOAD}"'.encode()),
                good.replace(b'"1.0"', f'"{PAYLOAD}"'.encode()),
            ]
            for body in bad:
                await asyncio.to_thread(bus.store.announce, "main", "0", [Whisper("global", body)])
            await bus.publish({"type": "secrets.end"})
            items = [await anext(listener) for _ in range(3)]

    assert len(items) == 3  # the first, the one whose data does not fit its type, and the end
    assert overheard.everything().count("cannot be read and is left out") >= 3
    assert "is handed on as plain data" in overheard.everything()
    overheard.assert_discreet()
