"""``AgentEventBus``: what the old system's event bus did, in both modes, and what it did wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import bus.agents
from bus import AgentEventBus, Bus, BusError, Event, InvalidEvent, InvalidTopic, Publication, agent_event_bus
from bus.agents import dialect
from bus.listener import Listener
from bus.mailbox import QUEUE
from bus.topics import check_topic
from tests.bus.sockets import Failing, Hung, Socket
from tests.waiting import eventually
from tests.workers.running import run_program


class Watched(AgentEventBus):
    """One whose bus a test can look at; a context manager that closes it."""

    def __init__(self, url: str, namespace: str, **options: Any) -> None:
        self.below = Bus(url, namespace=namespace)
        super().__init__(bus=self.below, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_redis()

    @property
    def listeners(self) -> int:
        return self.below.status().listeners


END = {"type": "end"}


def event(n: int, **more: Any) -> dict[str, Any]:
    return {"type": "thought", "n": n, **more}


async def every_socket_is_done(agents: AgentEventBus, *sockets: Socket, topic: str = "end") -> None:
    """Once each socket has heard the last event, it will hear no more of those before."""
    for number, socket in enumerate(sockets):
        await agents.subscribe(f"done {number}", socket, [topic])
    await agents.publish(END, [topic])
    await eventually(lambda: all(END in socket.heard for socket in sockets), "all sockets to hear the end", 10)
    for socket in sockets:
        socket.heard.remove(END)


# Subscribing.


async def test_a_subscriber_hears_what_is_published_to_its_topics(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        ada, bob, cleo = Socket(), Socket(), Socket()
        await agents.subscribe("ada", ada)
        await agents.subscribe("bob", bob, ["agent:ada", "alerts"])
        await agents.subscribe("cleo", cleo, ["category:fund research"])

        await agents.publish(event(1))
        await agents.publish(event(2), ["agent:ada"])
        await agents.publish(event(3), ["category:fund research", "alerts"])
        await agents.publish(event(4), ["elsewhere"])
        await every_socket_is_done(agents, ada, bob, cleo)

    assert ada.heard == [event(1)]
    assert bob.heard == [event(2), event(3)]
    assert cleo.heard == [event(3)]


async def test_an_event_with_several_matching_topics_comes_once(url: str, namespace: str) -> None:
    """The old bus gave three copies for three topics, and two more where the publisher listened in the same process."""
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket, ["global", "agent:ada", "alerts", "alerts"])

        await agents.publish(event(1), ["global", "agent:ada", "alerts", "global"])
        await every_socket_is_done(agents, socket)

    assert socket.heard == [event(1)]


async def test_an_empty_list_of_topics_reaches_nobody_and_none_is_global(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket, deaf = Socket(), Socket()
        await agents.subscribe("ada", socket, ["global"])
        await agents.subscribe("bob", deaf, [])

        await agents.publish(event(1), [])
        await agents.publish(event(2), None)
        await every_socket_is_done(agents, socket, deaf)

    assert (socket.heard, deaf.heard) == ([event(2)], [])


async def test_all_sockets_of_an_agent_hear_the_same_in_one_order(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        tabs = [Socket() for _ in range(5)]
        for tab in tabs:
            await agents.subscribe("ada", tab)

        await asyncio.gather(*(agents.publish(event(n)) for n in range(200)))
        for tab in tabs:
            await tab.hears(200)

    assert sorted(tabs[0].numbers) == list(range(200))
    assert all(tab.heard == tabs[0].heard for tab in tabs)


async def test_a_closed_tab_takes_its_topics_with_it(url: str, namespace: str) -> None:
    """The old bus kept topics by agent: what one tab had asked for, the other went on hearing."""
    async with Watched(url, namespace) as agents:
        first, second = Socket(), Socket()
        await agents.subscribe("ada", first, ["alerts"])
        await agents.subscribe("ada", second, ["global"])
        await agents.unsubscribe("ada", first)

        await agents.publish(event(1), ["alerts"])
        await agents.publish(event(2), ["global"])
        await every_socket_is_done(agents, second)

    assert (first.heard, second.heard) == ([], [event(2)])


async def test_subscribing_a_socket_again_adds_topics_from_now_on(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket, ["global"])
        await agents.publish(event(1), ["alerts"])
        await agents.publish(event(2), ["global"])
        await socket.hears(1)

        await agents.subscribe("ada", socket, ["alerts"])
        await agents.publish(event(3), ["alerts"])
        await agents.publish(event(4), ["global"])
        await agents.publish(event(5), ["alerts", "global"])
        await every_socket_is_done(agents, socket)

    assert socket.numbers == [2, 3, 4, 5]


async def test_a_slow_socket_that_adds_topics_gets_neither_hole_nor_repeat_nor_the_past(
    url: str, namespace: str
) -> None:
    async with Watched(url, namespace) as agents:
        socket = Hung()
        await agents.subscribe("ada", socket, ["global"])
        for n in range(1, 21):
            await agents.publish(event(n), ["global"])
            last = await agents.publish(event(-n), ["new"])
        await eventually(lambda: socket.tries, "the socket to be stuck in its first send")
        await eventually(lambda: agents.below.status().position == last.position, "this process to have heard all")

        await agents.subscribe("ada", socket, ["new", "global"])
        for n in range(21, 41):
            await agents.publish(event(n), ["new", "global"])
        socket.freed.set()
        await every_socket_is_done(agents, socket)

    assert socket.numbers == list(range(1, 41))


async def test_topics_added_one_by_one_amid_a_stream_lose_and_repeat_nothing(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket, ["global"])

        async def stream() -> None:
            for n in range(300):
                await agents.publish(event(n), ["global", f"t{n % 30}"])

        async def tune() -> None:
            for n in range(30):
                await agents.subscribe("ada", socket, [f"t{n}"])
                await asyncio.sleep(0)

        await asyncio.gather(stream(), tune())
        await every_socket_is_done(agents, socket)

    assert socket.numbers == list(range(300))


async def test_topics_added_while_a_socket_reads_from_the_log_lose_and_repeat_nothing(url: str, namespace: str) -> None:
    count = QUEUE + 1000
    async with Watched(url, namespace) as agents:
        socket = Hung()
        await agents.subscribe("ada", socket, ["global"])
        for start in range(0, count, 100):
            await agents.below.publish_many(
                [Publication(event(n), ["global", f"t{n % 50}"]) for n in range(start, start + 100)]
            )
        await eventually(lambda: agents.below.status().lag > QUEUE, "the socket to be far behind")

        socket.freed.set()
        for n in range(50):
            await agents.subscribe("ada", socket, [f"t{n}"])
            await asyncio.sleep(0)
        await every_socket_is_done(agents, socket)

    assert socket.numbers == list(range(count))


async def test_a_socket_of_two_agents_hears_an_event_once_and_leaves_with_each(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket, ["global", "ada"])
        await agents.subscribe("bob", socket, ["global", "bob"])
        await agents.publish(event(1), ["global", "ada", "bob"])

        await agents.unsubscribe("ada", socket)
        await agents.publish(event(2), ["ada"])
        await agents.publish(event(3), ["global"])
        await every_socket_is_done(agents, socket)

    assert socket.numbers == [1, 3]


async def test_unsubscribing_ends_it_and_frees_everything(url: str, namespace: str) -> None:
    """The old bus never freed a topic's set of subscribers."""
    async with Watched(url, namespace) as agents:
        sockets = [Socket() for _ in range(50)]
        tasks = len(asyncio.all_tasks())
        for number, socket in enumerate(sockets):
            await agents.subscribe(f"agent {number}", socket, [f"own:{number}", "global"])
        assert agents.listeners == 50
        for number, socket in enumerate(sockets):
            await agents.unsubscribe(f"agent {number}", socket)

        await agents.publish(event(1))
        await every_socket_is_done(agents, witness := Socket())
        await agents.unsubscribe("done 0", witness)

        assert all(socket.heard == [] for socket in sockets)
        assert agents.listeners == 0
        assert len(asyncio.all_tasks()) - tasks <= 1, "the hub, and nothing else"
        assert repr(agents).endswith("with 0 sockets>")
        watched = weakref.ref(sockets.pop())
        del socket
        gc.collect()
        assert watched() is None, "somebody still holds the socket"


async def test_unsubscribing_what_is_not_there_does_nothing(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket, stranger = Socket(), Socket()
        await agents.unsubscribe("ada", socket)
        await agents.subscribe("ada", socket)
        await agents.unsubscribe("bob", socket)
        await agents.unsubscribe("ada", stranger)

        await agents.publish(event(1))
        await socket.hears(1)
        await agents.unsubscribe("ada", socket)
        await agents.unsubscribe("ada", socket)


async def test_a_socket_that_left_may_come_back(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        for n in range(3):
            await agents.subscribe("ada", socket)
            await agents.publish(event(n))
            await socket.hears(n + 1)
            await agents.unsubscribe("ada", socket)
            await agents.publish(event(-1))

    assert socket.numbers == [0, 1, 2]


async def test_what_is_no_list_of_topics_is_refused(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        for bad in ("global", [1], [None]):
            with pytest.raises(InvalidTopic):
                await agents.subscribe("ada", socket, bad)  # type: ignore[arg-type]
            with pytest.raises(InvalidTopic):
                await agents.publish(event(1), bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent):
            await agents.publish("thought")  # type: ignore[arg-type]

        assert agents.listeners == 0


# Bad sockets.


async def test_a_failing_socket_is_dropped_and_closed_and_the_others_go_on(
    url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Watched(url, namespace) as agents:
        good, bad = Socket(), Failing(good=2)
        await agents.subscribe("ada", bad)
        await agents.subscribe("bob", good)

        for n in range(5):
            await agents.publish(event(n))
        await good.hears(5)
        await eventually(lambda: bad.closed, "the bad socket to be closed")

        assert (good.numbers, bad.numbers, bad.tries) == ([0, 1, 2, 3, 4], [0, 1], 3)
        assert agents.listeners == 1
        await agents.unsubscribe("ada", bad)
    assert "its send_json ended in RuntimeError" in caplog.text
    assert "secret-payload" not in caplog.text


async def test_a_hung_socket_delays_neither_publisher_nor_others_and_is_dropped(url: str, namespace: str) -> None:
    """One hung socket blocked the old bus's ``publish()`` for ever."""
    async with Watched(url, namespace, send_s=0.3) as agents:
        good, hung = Socket(), Hung()
        await agents.subscribe("ada", hung)
        await agents.subscribe("bob", good)

        for n in range(100):
            await agents.publish(event(n))
        await good.hears(100)
        assert hung.tries == 1
        await eventually(lambda: hung.closed, "the hung socket to be dropped")

        assert agents.listeners == 1
        assert good.closed == 0


async def test_a_socket_that_cancels_its_own_sending_is_dropped_and_not_the_bus(url: str, namespace: str) -> None:
    class Cancelling(Socket):
        async def send_json(self, _: Any) -> None:
            raise asyncio.CancelledError

    async with Watched(url, namespace) as agents:
        bad, good = Cancelling(), Socket()
        await agents.subscribe("ada", bad)
        await agents.subscribe("bob", good)
        await agents.publish(event(1))
        await agents.publish(event(2))

        await good.hears(2)
        await eventually(lambda: bad.closed, "the bad socket to be dropped")


async def test_a_socket_may_unsubscribe_itself_while_it_is_sent_to(url: str, namespace: str) -> None:
    class Leaving(Socket):
        async def send_json(self, data: Any) -> None:
            await super().send_json(data)
            await agents.unsubscribe("ada", self)

    async with Watched(url, namespace) as agents:
        leaving, good = Leaving(), Socket()
        await agents.subscribe("ada", leaving)
        await agents.subscribe("bob", good)
        await agents.publish(event(1))
        await agents.publish(event(2))
        await good.hears(2)
        await eventually(lambda: agents.listeners == 1, "the socket to have left")

    assert leaving.numbers == [1]


async def test_a_dropped_socket_that_cannot_close_is_no_trouble(url: str, namespace: str) -> None:
    class Bare:
        async def send_json(self, _: Any) -> None:
            raise ConnectionResetError

    class Worse(Bare):
        async def close(self) -> None:
            raise ConnectionResetError

    async with Watched(url, namespace) as agents:
        await agents.subscribe("ada", Bare())
        await agents.subscribe("bob", Worse())
        await agents.publish(event(1))

        await eventually(lambda: agents.listeners == 0, "both to be dropped")


async def test_a_socket_that_is_far_behind_costs_bounded_memory_and_loses_nothing(url: str, namespace: str) -> None:
    count = 2 * QUEUE
    async with Watched(url, namespace) as agents:
        slow, good = Hung(), Socket()
        await agents.subscribe("ada", slow)
        await agents.subscribe("bob", good)
        await agents.publish(event(0))
        for start in range(1, count, 500):
            await asyncio.gather(*(agents.publish(event(n)) for n in range(start, start + 500)))
        await good.hears(count)

        gc.collect()  # those of other tests
        waiting = [re.search(r"(\d+) waiting", repr(one)) for one in gc.get_objects() if isinstance(one, Listener)]
        assert len(waiting) == 2
        assert all(found is not None and int(found[1]) <= QUEUE for found in waiting)
        slow.freed.set()
        await slow.hears(count)

    assert slow.heard == good.heard


# Events.


class Mood(Enum):
    CALM = "calm"


async def test_values_that_are_not_json_arrive_as_text_at_every_socket(url: str, namespace: str) -> None:
    """In the old bus a ``datetime`` reached local listeners as an object, and remote ones silently never."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    given = {"type": "thought", "at": at, "id": UUID(int=1), "moods": [Mood.CALM], "nested": {"at": [at]}}
    async with Watched(url, namespace) as agents, Watched(url, namespace) as elsewhere:
        here, there = Socket(), Socket()
        await agents.subscribe("ada", here)
        await elsewhere.subscribe("bob", there)
        await agents.publish(given)
        await agents.publish({"at": at})

        await here.hears(2)
        await there.hears(2)

    text = "2026-01-02T03:04:05Z"
    plain = {"type": "thought", "at": text, "id": str(UUID(int=1)), "moods": ["calm"], "nested": {"at": [text]}}
    assert here.heard == there.heard == [plain, {"at": text}]
    assert given["at"] is at, "the publisher's own dict was changed"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"n": 1},
        {"type": None},
        {"type": 7, "n": 1},
        {"type": "not a type", "n": 1},
        {"type": "$agent.event", "event": {"n": 1}},
        {"type": "thought", "event": {"n": 1}, "data": {"type": "inner"}, "topics": ["x"], "id": 5},
        {"type": "Ümläut", "text": "\U0001f3ad\n"},
    ],
)
async def test_any_dict_arrives_as_it_was_published(given: dict[str, Any], url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket)
        await agents.publish(given)

        assert await socket.hears(1) == [given]


class Praised(Event, type="agents.praised"):
    agent_id: str
    stars: int = 5


async def test_typed_events_of_the_same_bus_arrive_as_dicts_and_old_events_as_typed_ones(
    url: str, namespace: str
) -> None:
    async with Watched(url, namespace) as agents:
        socket = Socket()
        await agents.subscribe("ada", socket, ["agent:ada"])
        bus = agents.below
        async with bus.listen("agent:ada") as listener:
            await bus.publish(Praised(agent_id="ada"), topics=["agent:ada"])
            await bus.publish({"type": "typing"}, topics=["agent:ada"], ephemeral=True)
            await agents.publish({"type": "agents.praised", "agent_id": "ada", "stars": 3}, ["agent:ada"])

            typed = [await anext(listener) for _ in range(3)]
        heard = await socket.hears(3)

    assert heard == [
        {"type": "agents.praised", "agent_id": "ada", "stars": 5},
        {"type": "typing"},
        {"type": "agents.praised", "agent_id": "ada", "stars": 3},
    ]
    assert [getattr(item, "event", None) for item in typed][2] == Praised(agent_id="ada", stars=3)


# Posts.


@dataclass
class OldPost:
    sender_id: str
    post_type: str = "status"
    sender_category: str | None = None
    recipient_id: str | None = None


class ModelPost(BaseModel):
    sender_id: str
    type: str = "status"
    sender_category: str | None = None


class Kind(Enum):
    ALERT = "alert"


ADA = {"sender_id": "ada"}


@pytest.mark.parametrize(
    ("post", "topics"),
    [
        (ADA, ["global", "agent:ada"]),
        ({**ADA, "post_type": "insight", "sender_category": "quant"}, ["global", "agent:ada"]),
        ({**ADA, "post_type": "alert"}, ["global", "agent:ada", "alerts"]),
        ({**ADA, "type": Kind.ALERT}, ["global", "agent:ada", "alerts"]),
        ({**ADA, "post_type": "question"}, ["global", "agent:ada"]),
        ({**ADA, "post_type": "question", "sender_category": "q"}, ["global", "agent:ada", "category:q"]),
        (OldPost("ada", "question", "fund research"), ["global", "agent:ada", "category:fund research"]),
        (ModelPost(sender_id="ada", type="alert"), ["global", "agent:ada", "alerts"]),
        (SimpleNamespace(sender_id="ada", post_type="alert", _state=object()), ["global", "agent:ada", "alerts"]),
        ({"sender_id": "a b:c"}, ["global", "agent:a b:c"]),
        ({"text": "by nobody"}, ["global"]),
    ],
)
async def test_a_post_is_told_to_everybody_whom_it_concerns(
    post: Any, topics: list[str], url: str, namespace: str
) -> None:
    every = ["global", "agent:ada", "alerts", "category:q", "category:fund research", "agent:a b:c", "agent:bob"]
    async with Watched(url, namespace) as agents:
        sockets = {topic: Socket() for topic in every}
        for topic, socket in sockets.items():
            await agents.subscribe(f"follower of {topic}", socket, [topic])

        await agents.broadcast_post(post)
        await every_socket_is_done(agents, *sockets.values())

    assert [topic for topic in every if sockets[topic].heard] == [topic for topic in every if topic in topics]
    told = sockets["global"].heard[0]
    assert told["type"] == "agent_post"
    assert told["post"].get("sender_id") in ("ada", "a b:c", None)


@pytest.mark.parametrize(
    "post",
    [
        {"sender_id": "ada", "recipient_id": "bob", "post_type": "alert"},
        {"sender_id": "ada", "target_agent_id": ["bob"]},
        OldPost("ada", recipient_id="bob"),
    ],
)
async def test_a_directed_post_is_told_to_its_two_agents_and_to_them_alone(post: Any, url: str, namespace: str) -> None:
    """The old bus published private messages to ``global``, and never told the addressee."""
    async with Watched(url, namespace) as agents:
        ada, bob, eve = Socket(), Socket(), Socket()
        await agents.subscribe("ada", ada, [])
        await agents.subscribe("bob", bob, ["global", "agent:ada"])
        await agents.subscribe(
            "eve", eve, ["global", "alerts", "agent:ada", "agent:bob", "inbox:bob", "~inbox:bob", "~inbox:*", "*", "**"]
        )

        await agents.broadcast_post(post)
        await every_socket_is_done(agents, ada, bob, eve)

    assert [len(socket.heard) for socket in (ada, bob, eve)] == [1, 1, 0]


async def test_a_private_post_without_an_addressee_is_told_to_its_sender_only(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        ada, eve = Socket(), Socket()
        await agents.subscribe("ada", ada)
        await agents.subscribe("eve", eve, ["global", "agent:ada"])

        await agents.broadcast_post({"sender_id": "ada", "visibility": "private"})
        await agents.broadcast_post({"sender_id": "ada", "is_private": True})
        await every_socket_is_done(agents, ada, eve)

    assert (len(ada.heard), len(eve.heard)) == (2, 0)


async def test_what_is_no_post_is_refused(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        with pytest.raises(InvalidEvent, match="a post is a dict, a model or an object with fields, not int"):
            await agents.broadcast_post(5)


# Topics.


@given(st.text() | st.from_regex(r"[a-z:~%* .A-F0-9]{0,20}", fullmatch=True))
def test_any_text_is_a_topic_and_comes_back(old: str) -> None:
    ours = dialect.of_topic(old)

    assert check_topic(ours) == ours
    assert not dialect.is_private(ours)
    assert dialect.to_topic(ours) == old or ours.startswith("~sha256.")


@given(st.text(max_size=300), st.text(max_size=300))
def test_different_texts_are_different_topics_and_different_agents(one: str, other: str) -> None:
    assert (dialect.of_topic(one) == dialect.of_topic(other)) is (one == other)
    assert (dialect.inbox(one) == dialect.inbox(other)) is (one == other)
    assert check_topic(dialect.inbox(one))
    assert dialect.is_private(dialect.inbox(one))


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        ("global", "global"),
        ("agent:a1", "agent:a1"),
        ("agent:ada@example.org", "agent:ada@example.org"),
        ("category:fund research", "category:fund~20research"),
        ("a::b:", "a:~:b:~"),
        ("", "~"),
        ("~20", "~7E20"),
        ("agent:*", "agent:~2A"),
        ("$sys", "~24sys"),
        ("größe", "gr~C3~B6~C3~9Fe"),
    ],
)
def test_topics_are_written_so(old: str, ours: str) -> None:
    assert dialect.of_topic(old) == ours


def test_topics_that_are_too_long_are_their_hash() -> None:
    for old in ("x" * 129, "a:" * 16 + "a", "ab:" * 85 + "c"):
        assert re.fullmatch(r"~sha256\.[0-9a-f]{64}", dialect.of_topic(old))


# Its life.


async def test_it_opens_closes_and_opens_again(url: str, namespace: str) -> None:
    agents = Watched(url, namespace)
    await agents.close_redis()
    for n in range(3):
        socket = Socket()
        await agents.subscribe_to_redis()
        await agents.subscribe_to_redis()
        await agents.subscribe("ada", socket)
        await agents.publish(event(n))
        assert await socket.hears(1) == [event(n)]
        await agents.close_redis()
        await agents.close_redis()

        assert len(asyncio.all_tasks()) == 1
        assert socket.closed == 0, "its socket is the app's own"
    assert repr(agents) == "<AgentEventBus, not open>"


async def test_closing_ends_sockets_that_hang(url: str, namespace: str) -> None:
    agents = Watched(url, namespace)
    hung = [Hung() for _ in range(10)]
    for number, socket in enumerate(hung):
        await agents.subscribe(f"agent {number}", socket)
    await agents.publish(event(1))
    await eventually(lambda: all(socket.tries for socket in hung), "all to hang")

    async with asyncio.timeout(3):
        await agents.close_redis()

    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_closing_amid_subscribing_leaves_nothing(turns: int, url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus:  # which goes on, so nothing else ends what is left
        agents = AgentEventBus(bus=bus)
        await agents.subscribe_to_redis()
        subscribing = [asyncio.create_task(agents.subscribe("ada", Socket(), [f"t{n}"])) for n in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await agents.close_redis()
        results = await asyncio.gather(*subscribing, return_exceptions=True)
        await agents.close_redis()

        assert all(result is None or isinstance(result, BusError) for result in results)
        assert bus.status().listeners == 0


async def test_cancelling_a_subscription_leaves_nothing(url: str, namespace: str) -> None:
    async with Watched(url, namespace) as agents:
        witness = Socket()
        await agents.subscribe("bob", witness)
        for turns in range(12):
            subscribing = asyncio.create_task(agents.subscribe("ada", Socket()))
            for _ in range(turns):
                await asyncio.sleep(0)
            if subscribing.cancel():
                with contextlib.suppress(asyncio.CancelledError):
                    await subscribing
        await agents.publish(event(1))
        await witness.hears(1)

        assert agents.listeners == int(repr(agents).split(" ")[-2])


async def test_the_bus_of_the_app_stays_open(url: str, namespace: str) -> None:
    async with Bus(url, namespace=namespace) as bus, bus.listen() as listener:
        agents = AgentEventBus(bus=bus)
        await agents.publish(event(1))
        await agents.close_redis()
        await bus.publish({"type": "later"})

        assert [getattr(await anext(listener), "event", None) for _ in range(2)] == [{"n": 1}, {}]


def test_a_loop_that_ended_without_closing_is_forgotten() -> None:
    agents = AgentEventBus("memory://")

    async def use() -> list[Any]:
        socket = Socket()
        await agents.subscribe("ada", socket)
        await agents.publish(event(1))
        return await socket.hears(1)

    async def end() -> None:
        await agents.close_redis()

    for _ in range(2):
        assert asyncio.run(use()) == [event(1)]
    asyncio.run(end())


async def test_publishing_from_another_loop_works() -> None:
    agents = AgentEventBus("memory://")
    socket = Socket()
    await agents.subscribe("ada", socket)

    await asyncio.to_thread(lambda: asyncio.run(_publish(agents)))

    assert await socket.hears(1) == [event(1)]
    await agents.close_redis()


async def _publish(agents: AgentEventBus) -> None:
    await agents.publish(event(1))


def test_importing_it_does_nothing_and_the_environment_is_read_when_it_is_used() -> None:
    code = """
import asyncio, os, sys
from bus import agent_event_bus
assert repr(agent_event_bus) == "<AgentEventBus, not open>"
os.environ["REDIS_URL"] = "redis://:secret@127.0.0.1:1/0"
asyncio.run(agent_event_bus.publish({"type": "x"}))
"""
    run_program(code, BUS_URL="")


async def test_the_one_of_the_process_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert agent_event_bus is bus.agents.agent_event_bus
    socket = Socket()
    await agent_event_bus.subscribe("ada", socket)
    await agent_event_bus.publish(event(1))

    assert await socket.hears(1) == [event(1)]
    await agent_event_bus.close_redis()
