"""What holds for ``AgentEventBus`` whatever is asked of it: order, no loss, everybody, the right topics, many at once.

A thousand examples each, in both modes, on one bus that stays open: ``CALLBOARD_EXAMPLES`` sets another number for those
on a server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import AgentEventBus, Bus
from tests.bus.sockets import Socket
from tests.waiting import eventually

EXAMPLES = 1_000
ON_A_SERVER = int(os.environ.get("CALLBOARD_EXAMPLES", EXAMPLES))

ONE_BUS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TOPIC = st.sampled_from(["global", "alerts", "agent:a1", "category:fund research", "a::b", "*", "~"])
TOPICS = st.none() | st.lists(TOPIC, max_size=4)
"""As one gives them: None, none, some, the same twice."""

CONTENT = st.integers() | st.text(max_size=20) | st.booleans()
"""JSON that arrives equal to what was sent."""

END = "the end of an example"


class Stage:
    """A bus that stays open, on a loop that stays, for all examples of a property."""

    def __init__(self, url: str, namespace: str) -> None:
        self._runner = asyncio.Runner()
        self._numbers = count()
        self.agents = AgentEventBus(bus=Bus(url, namespace=namespace))

    def close(self) -> None:
        with self._runner:
            self._runner.run(self.agents.close_redis())

    def play(self, example: Callable[[], Awaitable[None]]) -> None:
        """Run one example; afterwards nobody may be left in their seat."""

        async def played() -> None:
            await example()
            assert repr(self.agents).endswith(" 0 sockets>") or repr(self.agents) == "<AgentEventBus, not open>"

        self._runner.run(played())

    async def publish(self, topics: list[str] | None, content: Any = None) -> int:
        """Publish an event of a number that no other example has."""
        number = next(self._numbers)
        await self.agents.publish({"type": "numbered", "n": number, "content": content}, topics)
        return number

    async def seated(self, wanted: list[list[str] | None]) -> list[Socket]:
        """A socket for each of these; all of them hear the end as well."""
        sockets = [Socket() for _ in wanted]
        for socket, topics in zip(sockets, wanted, strict=True):
            await self.agents.subscribe("agent", socket, topics if topics is None else [*topics, END])
            if topics is None:
                await self.agents.subscribe("agent", socket, [END])
        return sockets

    async def end(self, sockets: list[Socket]) -> list[list[int]]:
        """What each socket has heard, once no more is to come. They leave."""
        end = await self.publish([END])
        await eventually(lambda: all(socket.numbers[-1:] == [end] for socket in sockets), "everybody to hear the end")
        for socket in sockets:
            await self.agents.unsubscribe("agent", socket)
        return [socket.numbers[:-1] for socket in sockets]


@pytest.fixture
def stage(url: str, namespace: str) -> Iterator[Stage]:
    stage = Stage(url, namespace)
    yield stage
    stage.close()


def in_both_modes(property_: Callable[..., None]) -> Callable[..., None]:
    """All examples of ``property_(stage, data)`` in memory; on a server as many as the environment says."""

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("mode", ["memory", "redis"], indirect=True)
    def run(stage: Stage, mode: Literal["memory", "redis"]) -> None:
        examples = EXAMPLES if mode == "memory" else ON_A_SERVER
        settings(ONE_BUS, max_examples=examples)(given(data=st.data())(property_))(stage)

    run.__name__ = property_.__name__
    return run


def matches(event: list[str] | None, asked: list[str] | None) -> bool:
    return bool({*(["global"] if event is None else event)} & {*(["global"] if asked is None else asked)})


@in_both_modes
def test_every_socket_hears_every_event_of_its_topic_once_and_in_order(stage: Stage, data: st.DataObject) -> None:
    contents, listeners = data.draw(st.lists(CONTENT, max_size=6)), data.draw(st.integers(1, 3))

    async def example() -> None:
        sockets = await stage.seated([["global"]] * listeners)

        published = [await stage.publish(["global"], content) for content in contents]

        assert await stage.end(sockets) == [published] * listeners
        assert all([event["content"] for event in socket.heard[:-1]] == contents for socket in sockets)

    stage.play(example)


@in_both_modes
def test_whoever_asked_for_any_of_an_events_topics_hears_it_and_nobody_else(stage: Stage, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(TOPICS, min_size=1, max_size=3))
    events = data.draw(st.lists(TOPICS, max_size=5))

    async def example() -> None:
        sockets = await stage.seated(wanted)

        published = [(await stage.publish(topics), topics) for topics in events]

        assert await stage.end(sockets) == [[n for n, to in published if matches(to, asked)] for asked in wanted]

    stage.play(example)


@in_both_modes
def test_what_is_published_at_once_is_heard_in_one_order_that_keeps_each_publishers_own(
    stage: Stage, data: st.DataObject
) -> None:
    publishers = data.draw(st.lists(st.lists(CONTENT, max_size=3), min_size=1, max_size=4))

    async def example() -> None:
        sockets = await stage.seated([None, ["global", "alerts"]])

        async def publish(contents: list[Any]) -> list[int]:
            return [await stage.publish(["global", "alerts"], content) for content in contents]

        published = await asyncio.gather(*(publish(contents) for contents in publishers))

        heard, same = await stage.end(sockets)
        assert heard == same
        assert sorted(heard) == sorted(n for own in published for n in own)
        for own in published:
            assert [n for n in heard if n in own] == own

    stage.play(example)


SUBSCRIBE = st.tuples(st.just("subscribe"), st.integers(0, 1), st.sampled_from(["ada", "bob"]), TOPICS)
UNSUBSCRIBE = st.tuples(st.just("unsubscribe"), st.integers(0, 1), st.sampled_from(["ada", "bob"]), st.none())
PUBLISH = st.tuples(st.just("publish"), st.just(0), st.just(""), TOPICS)


@in_both_modes
def test_topics_that_come_and_go_count_from_and_until_just_then(stage: Stage, data: st.DataObject) -> None:
    steps = data.draw(st.lists(SUBSCRIBE | UNSUBSCRIBE | PUBLISH | PUBLISH, max_size=8))

    async def example() -> None:
        sockets = await stage.seated([[], []])
        claims: dict[tuple[int, str], set[str]] = {}
        expected: list[list[int]] = [[], []]
        for step, which, agent, topics in steps:
            if step == "publish":
                number = await stage.publish(topics)
                for socket in (0, 1):
                    asked = [topic for (at, _), own in claims.items() if at == socket for topic in own]
                    if matches(topics, asked):
                        expected[socket].append(number)
            elif step == "subscribe":
                await stage.agents.subscribe(agent, sockets[which], topics)
                claims.setdefault((which, agent), set()).update(["global"] if topics is None else topics)
            else:
                await eventually(lambda: [socket.numbers for socket in sockets] == expected, "all to be heard")
                await stage.agents.unsubscribe(agent, sockets[which])
                claims.pop((which, agent), None)

        for agent in ("ada", "bob"):
            await eventually(lambda: [socket.numbers for socket in sockets] == expected, "all to be heard")
            for each in sockets:
                await stage.agents.unsubscribe(agent, each)
        assert await stage.end(sockets) == expected

    stage.play(example)
