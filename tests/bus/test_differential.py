"""The same program on memory and on a real server gives the same transcript, byte for byte.

A program publishes (events, dicts, what cannot be published; repeated ids, keys, delays, batches, whispers), binds and
unbinds handlers, joins, reads and leaves listeners, reads history and asks for the status, on several logs that keep five
events and with queues that hold three. Its transcript is everything that the bus answers: receipts, items, errors with
their texts. Tokens and ids are counted instead of drawn and there is one epoch, so nothing needs to be translated.

Listeners read only when the program says so, and every step ends when the hubs have handed out all that was published;
whatever else differs between two runs is a difference between the two modes. For a longer search:
``DIFFERENTIAL_EXAMPLES=5000 pytest tests/bus/test_differential.py``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import Bus, BusError, Delivery, Event, Listener, Position, Publication, Receipt, codec, ids, mailbox
from bus.bindings import Binding
from bus.clock import Clock
from bus.hub import Hub
from tests.waiting import eventually

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "200"))

CAP = 5
QUEUE = 3
NOW_MS = 1_790_000_000_000
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


class Said(Event, type="diff.said"):
    text: str
    at: datetime | None = None
    n: float = 0


# -- programs ----------------------------------------------------------------------------------------------------------

LOGS = st.sampled_from([None, "run:1"])
TOPIC = st.sampled_from(["global", "agent:ada", "agent:bob", "agent:ada:run", "a~1.b@c-d"])
TOPICS = st.lists(TOPIC, max_size=3).map(tuple) | st.sampled_from([("agent:*",), ("a b",), ("$sys",)])
PATTERNS = st.lists(st.sampled_from(["global", "agent:*", "agent:**", "**", "*", "agent:bob"]), max_size=2).map(tuple)
IDS = st.none() | st.sampled_from(["one", "two", "drei-\u00e9", ""])
KEYS = st.none() | st.sampled_from(["ada", "k|1", "\u4e16"])
DELAYS = st.none() | st.sampled_from([0, 3600, timedelta(hours=2), -1])
TEXT = st.text(max_size=8)
EVENTS = st.one_of(
    st.builds(Said, text=st.sampled_from(["", "hi", "\u00fc \U0001f3ad", "line\nbreak", "\x00"])),
    st.builds(Said, text=st.just("when"), at=st.sampled_from([NOON, NOON.replace(tzinfo=None)])),
    st.builds(
        lambda data: {"type": "diff.plain", **data},
        st.dictionaries(st.sampled_from(["a", "\u00e4", "agent_id"]), TEXT | st.integers() | st.none(), max_size=3),
    ),
    st.sampled_from(
        [
            {"type": "diff.plain", "on": date(2024, 2, 29), "id": UUID(int=7), "within": timedelta(seconds=90)},
            {"type": "diff.said", "text": "as a dict", "n": 1},
            {"type": "diff.said"},
            {"type": "not a type"},
            {"no": "type"},
            {"type": "diff.plain", "n": float("nan")},
            {"type": "diff.plain", "lone": "\ud800"},
            {"type": "diff.plain", "large": "x" * 3_000},
        ]
    ),
)
PUBLICATIONS = st.builds(Publication, EVENTS, TOPICS, KEYS, IDS, DELAYS, st.none(), LOGS)


class Step(NamedTuple):
    """What to do, with what."""

    do: str
    arguments: tuple[Any, ...]


def step(do: str, *strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(*strategies).map(lambda arguments: Step(do, arguments))


NAMES = st.integers(0, 2)
AFTER = (
    st.none() | st.just("0") | st.integers(0, 20) | st.sampled_from(["", "garbage", "epoch-99-tttttttt", "other-1-t1"])
)
HANDLERS = st.sampled_from(["h1", "h2"])

STEPS = st.one_of(
    step("publish", PUBLICATIONS),
    step("publish", PUBLICATIONS),
    step("publish_many", st.lists(PUBLICATIONS, max_size=9)),
    step("whisper", EVENTS, TOPICS, LOGS),
    step("join", NAMES, PATTERNS, AFTER, LOGS),
    step("join", NAMES, PATTERNS, AFTER, LOGS),
    step("read", NAMES),
    step("read", NAMES),
    step("leave", NAMES),
    step("history", PATTERNS, AFTER, st.none() | st.integers(0, 7), LOGS),
    step("bind", HANDLERS, PATTERNS, st.sampled_from([None, "agent_id", "text"])),
    step("unbind", HANDLERS),
    step("status"),
)
PROGRAMS = st.lists(STEPS, max_size=14)


# -- running one -------------------------------------------------------------------------------------------------------


class StoppedClock(Clock):
    """Always the same moment, so that envelopes have the same time."""

    def now_ms(self) -> int:
        return NOW_MS


class Stage:
    """One bus, one program, one transcript."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.transcript: list[str] = []
        self.listeners: dict[int, tuple[Listener, str]] = {}
        self.tops: dict[str, Position] = {}
        self.positions: list[str] = []

    async def play(self, program: list[Step]) -> None:
        for number, (do, arguments) in enumerate(program):
            self.note(f"{number} {do}")
            await self.noting_errors(lambda do=do, arguments=arguments: getattr(self, do)(*arguments))  # type: ignore[misc]
            await self.quiet()

    async def noting_errors(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except BusError as error:
            self.note(f"  {type(error).__name__}: {error}")

    def note(self, line: str) -> None:
        self.transcript.append(line)

    async def quiet(self) -> None:
        """Until the hubs have handed out everything."""
        side = self.bus._life.sides.here()  # noqa: SLF001 - nothing public tells where a hub stands
        assert side is not None
        for name, hub in side.hubs.items():
            await eventually(partial(self._is_at_top, hub), f"the hub of {name} to be at {self.tops.get(name)}")

    def _is_at_top(self, hub: Hub) -> bool:
        return hub.position == self.tops.get(hub.name, hub.position)

    # steps

    async def publish(self, one: Publication) -> None:
        self.receive(
            await self.bus.publish(
                one.event, topics=one.topics, key=one.key, id=one.id, delay=one.delay, at=one.at, log=one.log
            ),
            one.log,
        )

    async def publish_many(self, several: list[Publication]) -> None:
        for receipt, one in zip(await self.bus.publish_many(several), several, strict=True):
            self.receive(receipt, one.log)

    def receive(self, receipt: Receipt, log: str | None) -> None:
        self.note(f"  {receipt}")
        self.positions.append(receipt.position)
        name = log or "main"
        if not receipt.duplicate:
            self.tops[name] = receipt.position

    async def whisper(self, event: Any, topics: tuple[str, ...], log: str | None) -> None:
        receipt = await self.bus.publish(event, topics=topics, log=log, ephemeral=True)
        await self.bus.flush(log)
        self.note(f"  {receipt}")
        # Live frames come in order: once what follows was handed out, so was the whisper.
        await self.publish(Publication({"type": "diff.after"}, (), log=log))

    async def join(self, name: int, patterns: tuple[str, ...], after: Any, log: str | None) -> None:
        if name in self.listeners:
            await self.leave(name)
        listener = await self.bus.listen(*patterns, after=self.cursor(after), log=log).__aenter__()
        self.listeners[name] = (listener, log or "main")

    def cursor(self, after: Any) -> Any:
        if isinstance(after, int):
            return self.positions[after % len(self.positions)] if self.positions else None
        return after

    async def read(self, name: int) -> None:
        if name not in self.listeners:
            return
        listener, log = self.listeners[name]
        while (item := await self.next_item(listener, log)) is not None:
            self.note(f"  {told(item)}")
        self.note(f"  at {listener.position}, {listener.lag} behind")

    async def next_item(self, listener: Listener, log: str) -> Any:
        """The next, or ``None`` once it has read up to the top."""
        top = self.tops.get(log)
        taking = asyncio.ensure_future(anext(listener))
        try:
            await eventually(
                lambda: taking.done() or (listener.position == top if top else listener.position is not None),
                f"{listener!r} to say something or to be at {top}",
            )
            return taking.result() if taking.done() else None
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    async def leave(self, name: int) -> None:
        if name in self.listeners:
            listener, _ = self.listeners.pop(name)
            await listener.close()

    async def history(self, patterns: tuple[str, ...], after: Any, limit: int | None, log: str | None) -> None:
        async for item in self.bus.history(*patterns, after=self.cursor(after) or "0", limit=limit, log=log):
            self.note(f"  {told(item)}")

    async def bind(self, handler: str, topics: tuple[str, ...], key: str | None) -> None:
        types = ("diff.said", "diff.plain") if handler == "h1" else ("diff.plain",)
        binding = Binding.make(handler=handler, types=types, topics=topics or ("**",), key=key)
        await asyncio.to_thread(self.bus.bind, [binding])

    async def unbind(self, handler: str) -> None:
        self.note(f"  {await asyncio.to_thread(self.bus.store.unbind, [handler])}")

    async def status(self) -> None:
        self.note(f"  {self.bus.status()._replace(mode='', since=None)}")


def told(item: Any) -> str:
    if isinstance(item, Delivery):
        return f"{item.position} {codec.encode(item.envelope)!r} {item.event!r} {item.ephemeral}"
    return repr(item)


async def transcript_of(program: list[Step], url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tokens, uuids = count(), count()
    monkeypatch.setattr(ids, "epoch", lambda: "epoch")
    monkeypatch.setattr(ids, "token", lambda: f"t{next(tokens)}")
    monkeypatch.setattr(codec, "uuid7", lambda _: f"id-{next(uuids)}")
    bus = Bus(url, namespace=namespace, source="/test", cap=CAP, max_bytes=2_000, clock=StoppedClock())
    stage = Stage(bus)
    async with bus:
        await stage.play(program)
        for name in sorted(stage.listeners):
            await stage.read(name)
        stage.note(f"logs {bus.store.logs()}, pending {bus.store.pending('default')}")
    stage.note("closed")
    for name, (listener, _) in sorted(stage.listeners.items()):
        stage.note(f"  {name} {[told(item) async for item in listener]}")
        await listener.close()
    await stage.noting_errors(lambda: stage.publish(Publication({"type": "diff.late"})))
    await stage.noting_errors(lambda: stage.join(0, (), None, None))
    await stage.noting_errors(lambda: stage.history((), "0", None, None))
    return stage.transcript


examples = count()


@pytest.mark.timeout(60 + EXAMPLES)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(program=PROGRAMS)
async def test_memory_and_a_real_server_say_the_same(program: list[Step], redis_url: str, namespace: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mailbox, "QUEUE", QUEUE)
        in_memory = await transcript_of(program, "memory://", namespace, patched)
        on_redis = await transcript_of(program, redis_url, f"{namespace}.{next(examples)}", patched)

    assert in_memory == on_redis
