"""The live side under any program of events, listeners and faults.

A model that knows every branch the log ever had looks at all that each listener is handed:

* two deliveries without a gap between them stand in one branch, and nothing that matches stands between them;
* no (epoch, number, token) comes twice, whatever was forked;
* another epoch, another branch, and what was trimmed are announced by a gap before the next delivery; the gap's numbers are
  right, and no gap comes where nothing of the kind has happened;
* whoever could know of it (the frame of the last event passed, or the subscription was confirmed after it) reaches the
  top, its token included.

The hub, the listeners and the bus are real; beneath them is a :class:`~bus.testing.FaultyStore` over the real memory store,
and time is virtual. For a longer search: ``HUB_MACHINE_EXAMPLES=5000 pytest tests/bus/test_hub_machine.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bus import Bus, BusUnavailable, Closed, Delivery, Gap, Listener, Position, Publication, mailbox, reader
from bus import hub as hub_module
from bus.clock import Clock
from bus.hub import COMPARED_EVERY
from bus.store.base import Confirmed, Entry, Frame, Heard, Page, Store
from bus.store.memory import MemoryStore
from bus.testing import FaultyStore
from bus.topics import Matcher
from tests.virtual_time import VirtualLoop

EXAMPLES = int(os.environ.get("HUB_MACHINE_EXAMPLES", "300"))
STEPS = 40

CAP = 7
"""Events that the log keeps: few, so that cursors are trimmed away."""
QUEUE = 3
PAGE = 2
TTL_S = 60.0
PATIENCE_S = 30.0
"""Of virtual time, in which every listener has to have got where it can: several of the longest pauses."""

PATTERNS = ("**", "a", "b")
TOPICS = st.sampled_from([("a",), ("b",), ("a", "b"), ()])
ORDER = st.lists(st.integers(0, 7), max_size=5)
"""In which frames come, by their place among those that wait."""

T = TypeVar("T")


class FaultyBus(Bus):
    """A bus on a store that is given to it."""

    def __init__(self, store: FaultyStore, clock: Clock) -> None:
        self.faulty = store
        super().__init__("memory://", cap=CAP, ttl_s=TTL_S, clock=clock)

    def _make_store(self, url: str) -> Store:  # noqa: ARG002 - the bus's own signature
        return cast("Store", self.faulty)


class Key(NamedTuple):
    """An event, in whatever branch."""

    epoch: str
    seq: int
    token: str

    @classmethod
    def of(cls, position: Position) -> Key:
        return cls(position.epoch, position.seq, position.token)


@dataclass
class History:
    """All that was ever true of the log."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    """By epoch: nothing before this number is kept (any more)."""
    lost: set[Key] = field(default_factory=set)
    """Events that a fork has left behind."""
    losses: int = 0
    """How often the log has lost everything."""
    lives: dict[str, int] = field(default_factory=dict)
    """By epoch: how often it had by then."""

    def learn(self, store: Store) -> None:
        """Look at the log as it is."""
        if "main" not in store.logs():
            return
        page = store.read("main", "unused", 0, 1_000)
        self.lives.setdefault(page.epoch, self.losses)
        first = page.entries[0].seq if page.entries else page.top + 1
        self.kept[page.epoch] = max(first, self.kept.get(page.epoch, 1))
        for entry in page.entries:
            self.entries[Key(page.epoch, entry.seq, entry.token)] = entry

    def before(self, key: Key) -> Key | None:
        """The event before, if it was ever seen."""
        entry = self.entries.get(key)
        if entry is None or key.seq == 1:
            return None
        return Key(key.epoch, key.seq - 1, entry.prev)

    def line(self, key: Key) -> list[Key]:
        """An event and all before it in its branch, newest first, as far as they were ever seen."""
        found: list[Key] = []
        at: Key | None = key
        while at is not None and at in self.entries:
            found.append(at)
            at = self.before(at)
        return found


class Ear:
    """A listener, with a critic who looks at each item that it is handed."""

    def __init__(self, listener: Listener, matcher: Matcher, history: History, start: Position | None) -> None:
        self.listener = listener
        self.heard: list[Key] = []
        self._matcher = matcher
        self._history = history
        self._last = None if start is None else Key.of(start)
        self._gaps: list[Gap] = []

    def matches(self, key: Key) -> bool:
        entry = self._history.entries[key]
        return self._matcher.matches(entry.topics.split(" ") if entry.topics else ())

    def missed(self, page: Page) -> list[Key]:
        """What is kept and was never handed out, though something older was."""
        first = min((key.seq for key in self.heard if key.epoch == page.epoch), default=page.top)
        kept = [Key(page.epoch, entry.seq, entry.token) for entry in page.entries if entry.seq > first]
        return [key for key in kept if self.matches(key) and key not in self.heard]

    def note(self, item: object) -> None:
        """One more item, in its order."""
        if isinstance(item, Gap):
            self._note_gap(item)
        elif isinstance(item, Delivery) and not item.ephemeral:
            self._note_delivery(Key.of(item.position))

    def _note_gap(self, gap: Gap) -> None:
        """There is a reason for it, so far as can be known: behind another gap, or before any event, that is less."""
        history, last = self._history, None if self._gaps else self._last
        if gap.reason == "trimmed":
            kept = [kept for epoch, kept in history.kept.items() if last is None or epoch == last.epoch]
            assert gap.first <= gap.last < max(kept, default=0), f"{gap} after {last}, and it is kept from {kept} on"
        elif gap.reason == "fork":
            # Of what came after its last event, and matched or did not, something was left behind.
            behind = [key.seq for key in history.lost if last is None or last.seq == 0 or last in history.line(key)]
            assert gap.last <= max(behind, default=0), f"{gap} after {last}, and no fork went so far: {behind}"
        else:
            since = -1 if last is None else history.lives.get(last.epoch, -1)
            assert since < history.losses, f"{gap} after {last}, and nothing was lost since"
        if last is not None and gap.reason != "fork":
            assert gap.first > last.seq, f"{gap} begins before {last}, which was handed out"
        self._gaps.append(gap)

    def _note_delivery(self, key: Key) -> None:
        history = self._history
        assert key in history.entries, f"{key} was never in any log"
        assert self.matches(key), f"{key} does not match"
        assert key not in self.heard, f"{key} comes twice"
        older = [each for each in history.line(key)[1:] if self.matches(each)]
        last, gaps = self._last, self._gaps
        self._last, self._gaps = key, []
        if gaps:
            self._check_gap(last, gaps, key, older)
        elif last is not None:
            assert last.epoch == key.epoch, f"{key} after {last}, and no gap said that the log is another one"
            assert last.seq < key.seq, f"{key} after {last}"
            assert last.seq == 0 or last in history.line(key) or last not in history.entries, (
                f"{key} after {last}, which is of another branch, and no gap said so"
            )
            missed = [each for each in older if each.seq > last.seq]
            assert not missed, f"{key} after {last}, without {missed}"
        else:
            missed = [each for each in older if each.seq >= history.kept[key.epoch]]
            assert not missed, f"{key} is the first, without {missed}"
        self.heard.append(key)

    def _check_gap(self, last: Key | None, gaps: list[Gap], key: Key, older: list[Key]) -> None:
        """What lies between the last delivery and this one is in the gaps, or was heard."""
        history, gap = self._history, gaps[-1]
        if gap.reason == "fork":
            shared = last.seq if last is not None and last in history.line(key) else gap.first - 1
            since = max(history.kept[key.epoch], min(shared + 1, gap.first))
            missed = [each for each in older if each not in self.heard and each.seq >= since]
        elif gap.reason == "epoch":
            assert last is None or key.epoch != last.epoch, f"{gap}, and {key} after {last} is of the same life"
            missed = [each for each in older if each.seq > gap.last]
        else:
            missed = [each for each in older if each.seq > gap.last]
            # Where a fork has left our number behind and was itself trimmed away, no reader can know of it.
            hidden = any(each.seq >= gap.first - 1 and each.epoch == key.epoch for each in history.lost)
            if last is not None and len(gaps) == 1 and last in history.line(key) and not hidden:
                missed += [each for each in older if last.seq < each.seq < gap.first]
        assert not missed, f"{key} after {gaps} after {last}, without {missed}"


class LiveSide(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.clock = Clock()
        self.history = History()
        self.faulty = FaultyStore(lambda: MemoryStore(self.clock, lease_ms=60_000))
        self.faulty.watch(self._passed)
        self.bus = FaultyBus(self.faulty, self.clock)
        self.ears: list[Ear] = []
        self.cursors: list[Position] = []
        self.count = 0
        self.told = True
        """Whether the last that has passed to the hub tells of the log as it is."""
        self._run(self.bus.open())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def _settle(self, seconds: float = 0.001) -> None:
        self.loop.pass_time(seconds)

    def _passed(self, one: Heard) -> None:
        if isinstance(one, Confirmed):
            self.told = True
        elif isinstance(one, Frame) and not one.ephemeral and "main" in self.faulty.store.logs():
            page = self._page()
            key = Key(one.epoch, one.entry.seq, one.entry.token)
            news = key == (page.epoch, page.top, page.top_token) and self._is_news(key)
            self.told = key not in self.history.lost and (self.told or news)

    def _is_news(self, key: Key) -> bool:
        """Not to a hub that stands higher and remembers nothing of that number: to it that is a repeat."""
        side = self.bus._life.sides.here()  # noqa: SLF001 - nothing public tells what a hub remembers
        hub = side.hubs.get("main") if side else None
        at = hub.position if hub else None
        return hub is None or at is None or key.seq > at.seq or hub.trail.token(key.seq) is not None

    def _page(self) -> Page:
        return self.faulty.store.read("main", "unused", 0, 1_000)

    def _changed(self) -> None:
        """The log is another one than a moment ago."""
        self.told = False
        self.history.learn(self.faulty.store)
        self._settle()

    # -- what apps do --------------------------------------------------------------------------------------------------

    @initialize()
    def join_live(self) -> None:
        self._join("**", None)

    @rule(topics=st.lists(TOPICS, min_size=1, max_size=3))
    def publish(self, topics: list[tuple[str, ...]]) -> None:
        self._publish(topics)
        self._settle()

    def _publish(self, topics: Iterable[tuple[str, ...]]) -> None:
        """One by one, so that the model sees each before it is trimmed."""
        for each in topics:
            self._run(self._publish_one(each))

    async def _publish_one(self, topics: tuple[str, ...]) -> None:
        self.told = False
        self.count += 1
        receipt = await self.bus.publish({"type": "test.said", "n": self.count}, topics=topics)
        self.cursors.append(receipt.position)
        self.history.learn(self.faulty.store)

    @rule(topics=st.lists(TOPICS, min_size=2, max_size=CAP))
    def publish_many(self, topics: list[tuple[str, ...]]) -> None:
        self.told = False
        said = [Publication({"type": "test.said", "n": self.count + n}, each) for n, each in enumerate(topics, 1)]
        self.count += len(said)
        self._run(self.bus.publish_many(said))
        self.history.learn(self.faulty.store)
        self._settle()

    @rule(topics=TOPICS)
    def whisper(self, topics: tuple[str, ...]) -> None:
        if "main" in self.faulty.store.logs():  # otherwise it would choose the epoch
            self._run(self.bus.publish({"type": "test.whispered"}, topics=topics, ephemeral=True))
            self._run(self.bus.flush())
            self._settle()

    @precondition(lambda self: len(self.ears) < 4)
    @rule(pattern=st.sampled_from(PATTERNS), after=st.one_of(st.none(), st.just("0"), st.integers(0, 1_000)))
    def join(self, pattern: str, after: int | str | None) -> None:
        if isinstance(after, int):
            after = self.cursors[-1 - after % len(self.cursors)] if self.cursors else None
        self._join(pattern, after)

    def _join(self, pattern: str, cursor: str | None) -> bool:
        listener = self.bus.listen(pattern, after=cursor)
        try:
            self._run(listener.__aenter__())
        except BusUnavailable:
            return False
        start = listener.position if cursor is None else None if cursor == "0" else Position.parse(cursor)
        self.ears.append(Ear(listener, Matcher([pattern]), self.history, start))
        return True

    @precondition(lambda self: self.ears)
    @rule(which=st.integers(0, 3), count=st.integers(1, 5))
    def read(self, which: int, count: int) -> None:
        self._read(self.ears[which % len(self.ears)], count, patience_s=0.05)

    def _read(self, ear: Ear, count: int, patience_s: float) -> int:
        return self._run(self._read_some(ear, count, patience_s))

    async def _read_some(self, ear: Ear, count: int, patience_s: float) -> int:
        for taken in range(count):
            try:
                async with asyncio.timeout(patience_s):
                    item = await anext(ear.listener)
            except TimeoutError:
                return taken
            self.history.learn(self.faulty.store)
            ear.note(item)
        return count

    @precondition(lambda self: self.ears)
    @rule(which=st.integers(0, 3), count=st.integers(1, 5), topics=st.lists(TOPICS, min_size=1, max_size=4))
    def read_while_others_publish(self, which: int, count: int, topics: list[tuple[str, ...]]) -> None:
        async def both() -> None:
            reading = asyncio.ensure_future(self._read_some(self.ears[which % len(self.ears)], count, patience_s=0.05))
            for each in topics:
                await asyncio.sleep(0)
                await self._publish_one(each)
            await reading

        self._run(both())

    @rule(turns=st.integers(0, 6))
    def slow_reads(self, turns: int) -> None:
        self.faulty.slow_reads(turns)

    @precondition(lambda self: self.ears)
    @rule(which=st.integers(0, 3))
    def leave(self, which: int) -> None:
        ear = self.ears.pop(which % len(self.ears))
        if ear.listener.position is not None:
            self.cursors.append(ear.listener.position)
        self._run(ear.listener.close())

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self._settle(seconds)

    # -- what networks do ----------------------------------------------------------------------------------------------

    @rule()
    def hold(self) -> None:
        self.faulty.hold()

    @rule(says=st.lists(st.one_of(st.none(), TOPICS), min_size=1, max_size=4), order=ORDER)
    def garble(self, says: list[tuple[str, ...] | None], order: list[int]) -> None:
        """Events and whispers (None), of which some come late, twice, or never."""
        self.faulty.hold()
        for topics in says:
            if topics is None:
                self.whisper(("a", "b"))
            else:
                self._publish([topics])
        self._settle()
        self._release(order)

    @precondition(lambda self: self.faulty.held)
    @rule(order=ORDER)
    def release(self, order: list[int]) -> None:
        self._release(order)

    def _release(self, order: list[int]) -> None:
        waiting = len(self.faulty.held)
        self.faulty.release([place % waiting for place in order] if waiting else [])
        self._settle()

    @precondition(lambda self: len(self.ears) < 4)
    @rule(
        pattern=st.sampled_from(PATTERNS),
        topics=st.lists(TOPICS, min_size=1, max_size=3),
        from_start=st.booleans(),
        back=st.integers(0, 3),
    )
    def run_ahead(self, pattern: str, topics: list[tuple[str, ...]], back: int, *, from_start: bool) -> None:
        """A listener reads from the log what its hub has not heard of; perhaps of a branch that is soon lost."""
        self.faulty.hold()
        self._publish(topics)
        if self._join(pattern, "0" if from_start else self.cursors[-1]):
            self._read(self.ears[-1], CAP, patience_s=0.05)
        if back:
            self.fork(back)
            self.faulty.release([])
            self.faulty.cut()

    @rule()
    def release_all(self) -> None:
        self.faulty.release()
        self._settle()

    @precondition(lambda self: self.faulty.told)
    @rule(which=st.integers(0, 100))
    def say_again(self, which: int) -> None:
        self.faulty.send(self.faulty.told[-1 - which % len(self.faulty.told)])
        self._settle()

    @rule()
    def cut(self) -> None:
        self.faulty.cut()

    @rule()
    def hush(self) -> None:
        """The hub hears nothing for a while, and looks at the log."""
        for _ in range(COMPARED_EVERY):
            self.faulty.hush()
        self.told = True
        self._settle()

    @rule(count=st.integers(1, 4))
    def fail_reads(self, count: int) -> None:
        self.faulty.fail_reads(count)

    @rule(count=st.integers(1, 4))
    def fail_subscriptions(self, count: int) -> None:
        self.faulty.fail_subscriptions(count)

    # -- what servers do -----------------------------------------------------------------------------------------------

    @rule(keep=st.integers(1, CAP - 1))
    def trim(self, keep: int) -> None:
        self.faulty.trim(keep)
        self.history.learn(self.faulty.store)
        self._settle()

    @rule()
    def age(self) -> None:
        self.clock.travel(int(TTL_S * 1000) + 1)
        self.history.learn(self.faulty.store)

    @rule(after=st.lists(TOPICS, max_size=2))
    def lose(self, after: list[tuple[str, ...]]) -> None:
        self.faulty.lose()
        self.history.losses += 1
        self._changed()
        self._publish(after)
        self._settle()

    @precondition(lambda self: "main" in self.faulty.store.logs())
    @rule(back=st.integers(1, CAP))
    def fork(self, back: int) -> None:
        page = self._page()
        self.faulty.fork(back)
        top = self._page().top
        self.history.lost |= {Key(page.epoch, each.seq, each.token) for each in page.entries if each.seq > top}
        self._changed()

    @precondition(lambda self: "main" in self.faulty.store.logs())
    @rule(back=st.integers(1, 3), more=st.integers(-1, 2), passing=st.integers(0, 5))
    def fork_and_go_on(self, back: int, more: int, passing: int) -> None:
        """The new branch is soon as long as the old one, and only its last frames come through."""
        self.faulty.hold()
        self.fork(back)
        self._publish([("a", "b")] * (back + more))
        self._settle()
        waiting = len(self.faulty.held)
        self._release(list(range(max(0, waiting - passing), waiting)))

    # -- what must come of it ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.ears and self.told)
    @rule()
    def all_reach_the_top(self) -> None:
        self.faulty.fail_reads(0)
        self.faulty.fail_subscriptions(0)
        self._settle(PATIENCE_S)
        self._check_tops()

    def _check_tops(self) -> None:
        for ear in self.ears:
            while self._read(ear, 10, patience_s=PATIENCE_S) == 10:
                pass
        if not self.told or "main" not in self.faulty.store.logs():
            return  # nobody knows of it yet
        page = self._page()
        for ear in self.ears:
            at = ear.listener.position
            assert at == Position(page.epoch, page.top, page.top_token), (
                f"{ear.listener!r} rests at {at}, and the top is {page.epoch}-{page.top}-{page.top_token}"
            )
            missed = ear.missed(page)
            assert not missed, f"{ear.listener!r} has never heard {missed}"

    def teardown(self) -> None:
        try:
            self.faulty.fail_reads(0)
            self.faulty.fail_subscriptions(0)
            if self.told and not self.faulty.held:
                self._settle(PATIENCE_S)
                self._check_tops()
            self.faulty.release([])
            self.faulty.cut()
            self._settle(PATIENCE_S)
            self._check_tops()
        finally:
            self._close()

    def _close(self) -> None:
        for ear in self.ears:
            self._run(ear.listener.close())
        self._run(self.bus.close())
        self._settle()
        left = self.loop.left()
        self._run(self.loop.shutdown_asyncgens())
        self.loop.close()
        assert not left, f"left behind: {left}"


@pytest.mark.timeout(60 + EXAMPLES)
def test_any_program_of_events_and_faults_leaves_listeners_whole_or_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mailbox, "QUEUE", QUEUE)
    monkeypatch.setattr(reader, "PAGE", PAGE)
    monkeypatch.setattr(hub_module, "PAGE", PAGE)
    caplog.set_level(logging.CRITICAL, logger="callboard.bus")
    run_state_machine_as_test(
        LiveSide,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


async def test_a_whisper_after_lost_frames_brings_what_they_told_and_the_end_of_their_log() -> None:
    faulty = FaultyStore(lambda: MemoryStore(Clock(), lease_ms=60_000))
    async with FaultyBus(faulty, Clock()) as bus, bus.listen() as listener:
        faulty.hold()
        await bus.publish({"type": "machine.said"})
        await bus.publish({"type": "machine.whispered"}, ephemeral=True)
        await bus.flush()
        await bus.log("main").close()
        kinds = [(frame.ephemeral, frame.end) for frame in faulty.held]

        faulty.release([kinds.index((True, False))])  # the others are lost

        items = [item async for item in listener]
    said = [item.envelope.type if isinstance(item, Delivery) else type(item) for item in items]
    assert said == ["machine.said", "machine.whispered", Closed]
