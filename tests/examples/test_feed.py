"""The example of a social feed: that it runs, and that it does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bus import Bus, Delivery, Publication, Refused
from tests.examples.feed.app import Company
from tests.examples.feed.events import (
    ChannelJoined,
    ChannelOpened,
    FeedEvent,
    MilestoneReached,
    Posted,
    Reacted,
    Replied,
    Whispered,
    hears,
    topics_of,
)
from tests.examples.feed.reading import read_feed
from tests.examples.feed.rules import MINUTE_MS, POSTS_A_MINUTE, HouseRules, Standing, redacted
from tests.waiting import wait_until
from tests.workers.running import ROOT, working

STANDING = {
    "ada": Standing.MEMBER,
    "bob": Standing.STEWARD,
    "eve": Standing.STEWARD,
    "tim": Standing.APPRENTICE,
    "librarian": Standing.MEMBER,
}


def ruled(url: str, namespace: str) -> Bus:
    bus = Bus(url, namespace=namespace)
    HouseRules(bus, STANDING)
    return bus


@pytest.mark.parametrize(
    ("event", "topics"),
    [
        (Posted(agent_id="ada", text=""), ["global", "agent:ada"]),
        (Posted(agent_id="ada", kind="insight", text=""), ["global", "agent:ada"]),
        (Posted(agent_id="ada", kind="response", text=""), ["global", "agent:ada"]),
        (Posted(agent_id="ada", kind="alert", text=""), ["global", "agent:ada", "alerts"]),
        (Posted(agent_id="ada", kind="question", text=""), ["global", "agent:ada"]),
        (Posted(agent_id="ada", kind="question", category="x", text=""), ["global", "agent:ada", "category:x"]),
        (Posted(agent_id="ada", kind="status", category="x", text=""), ["global", "agent:ada"]),
        (Posted(agent_id="ada", kind="command", channel="ops", text=""), ["channel:ops"]),
        (Replied(agent_id="bob", post_id="p", author_id="ada", text=""), ["post:p", "agent:bob", "inbox:ada"]),
        (Reacted(agent_id="bob", post_id="p", author_id="ada", sign="+1"), ["post:p", "inbox:ada"]),
        (Whispered(agent_id="ada", to="bob", text=""), ["inbox:ada", "inbox:bob"]),
        (ChannelOpened(agent_id="bob", channel="ops", purpose=""), ["global", "channel:ops"]),
        (ChannelJoined(agent_id="ada", channel="ops"), ["channel:ops"]),
        (MilestoneReached(agent_id="ada", posts=1), ["global", "agent:ada", "inbox:ada"]),
    ],
)
def test_each_event_has_its_topics(event: FeedEvent, topics: list[str]) -> None:
    assert topics_of(event) == topics


def test_an_event_without_a_rule_has_no_topics() -> None:
    with pytest.raises(TypeError, match="who hears of a int"):
        topics_of(1)


@pytest.mark.parametrize("name", ["*", "**", "a:b", "", "a b", "$x", "x" * 65])
def test_nobody_is_called_by_a_pattern(name: str) -> None:
    with pytest.raises(ValidationError):
        Whispered(agent_id="ada", to=name, text="")


async def test_a_whisper_is_heard_by_its_two_agents_only_whatever_topics_are_named(url: str, namespace: str) -> None:
    heard: dict[str, list[Any]] = {"ada": [], "bob": [], "eve": []}
    last = Posted(agent_id="bob", text="the end")

    async def hear(agent: str, ready: asyncio.Event) -> None:
        async with bus.listen(*hears(agent, follows=("ada", "bob"), channels=("ops",))) as listener:
            ready.set()
            async for item in listener:
                if isinstance(item, Delivery):
                    heard[agent].append(item.event)
                    if item.event == last:
                        return

    async with ruled(url, namespace) as bus, asyncio.TaskGroup() as listening:
        for agent in heard:
            ready = asyncio.Event()
            listening.create_task(hear(agent, ready))
            await ready.wait()
        whisper = Whispered(agent_id="ada", to="bob", text="between us")
        await bus.publish(whisper, topics=["global", "agent:ada", "alerts"])
        await bus.publish_many([Publication(whisper, ["channel:ops"])])
        await asyncio.to_thread(lambda: bus.publish_sync(whisper, topics=["global"]))
        await bus.publish(last)

    assert heard == {"ada": [whisper] * 3 + [last], "bob": [whisper] * 3 + [last], "eve": [last]}


async def test_the_rules_refuse_what_they_say(url: str, namespace: str) -> None:
    async def refused(event: Any) -> str | None:
        with pytest.raises(Refused) as refusal:
            await bus.publish(event)
        return refusal.value.rule

    async with ruled(url, namespace) as bus:
        assert await refused(Posted(agent_id="tim", text="Hello!")) == "standing"
        assert await refused(Posted(agent_id="ada", kind="announcement", text="")) == "standing"
        assert await refused(Posted(agent_id="ada", kind="command", text="")) == "standing"
        assert await refused(ChannelOpened(agent_id="ada", channel="x", purpose="")) == "standing"
        assert await refused(Whispered(agent_id="stranger", to="ada", text="")) == "stranger"
        assert await refused({"type": "feed.posted", "agent_id": "bob", "text": ""}) == "typed"
        await bus.publish(Reacted(agent_id="tim", post_id="p", author_id="ada", sign="+1"))
        await bus.publish({"type": "something.else"})

        assert len([item async for item in bus.history()]) == 2


async def test_a_member_posts_so_often_a_minute_and_then_again() -> None:
    async with ruled("memory://", "limits") as bus:
        for _ in range(2):
            for _ in range(POSTS_A_MINUTE):
                await bus.publish(Posted(agent_id="ada", text=""))
            with pytest.raises(Refused) as refusal:
                await bus.publish(Posted(agent_id="ada", text=""))
            assert refusal.value.rule == "limit"
            for _ in range(POSTS_A_MINUTE + 1):
                await bus.publish(Posted(agent_id="bob", text=""))
            bus.clock.travel(MINUTE_MS)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to ada.l+x@mail.example.org, please", "write to [e-mail], please"),
        ("call +44 (20) 7946-0000 now", "call [phone] now"),
        ("212 maps in 1603", "212 maps in 1603"),
    ],
)
async def test_personal_data_stays_at_home(text: str, clean: str, url: str, namespace: str) -> None:
    assert redacted(text) == clean
    async with ruled(url, namespace) as bus:
        await bus.publish(Whispered(agent_id="ada", to="bob", text=text))
        [item] = [item async for item in bus.history()]

    assert isinstance(item, Delivery)
    assert item.envelope.data["text"] == clean


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.booleans(), max_size=30), size=st.integers(1, 7), later=st.integers(0, 3))
async def test_a_feed_by_the_page_has_everything_once(events: list[bool], size: int, later: int) -> None:
    async with Bus("memory://") as bus:
        for number, is_mine in enumerate(events):
            post = Posted(agent_id="ada" if is_mine else "bob", text=str(number))
            await bus.publish(post, topics=[f"agent:{post.agent_id}"])
        mine = [str(number) for number, is_mine in enumerate(events) if is_mine]

        read, cursor = [], "0"
        while (page := await read_feed(bus, ["agent:ada"], cursor, size)).items:
            assert len(page.items) <= size
            read += [item.envelope.data["text"] for item in page.items]
            cursor = page.cursor
        assert read == mine

        for number in range(later):
            await bus.publish(Posted(agent_id="ada", text=f"later {number}"), topics=["agent:ada"])
        page = await read_feed(bus, ["agent:ada"], cursor)
        assert [item.envelope.data["text"] for item in page.items] == [f"later {number}" for number in range(later)]


async def test_a_page_says_how_much_is_no_longer_kept() -> None:
    async with Bus("memory://", cap=5) as bus:
        first = await bus.publish({"type": "first"})
        for _ in range(10):
            await bus.publish({"type": "more"})

        page = await read_feed(bus, ["global"], first.position)

    assert (len(page.items), page.missed) == (5, 5)


@contextmanager
def performing(url: str, namespace: str, *, flaky: bool = False) -> Iterator[Company]:
    company = Company(ruled(url, namespace), flaky=flaky)
    company.app.bind()
    with working(company.app):
        yield company
        wait_until(lambda: company.app.bus.store.pending("default") == 0, "all work to be done", 20)
    company.app.bus.close_sync()


def texts(bus: Bus, *patterns: str) -> list[Any]:
    async def read() -> list[Any]:
        return [item.event async for item in bus.history(*patterns) if isinstance(item, Delivery)]

    return asyncio.run(read())


def test_each_agents_posts_are_counted_in_order_and_milestones_come_once(url: str, namespace: str) -> None:
    with performing(url, namespace) as company:
        bus = company.app.bus
        for number in range(12):
            for agent in ("bob", "eve"):
                bus.publish_sync(Posted(agent_id=agent, text=str(number)))
        wait_until(lambda: bus.store.pending("default") == 0, "all posts to be counted", 20)
        milestones = [event for event in texts(bus, "inbox:*") if isinstance(event, MilestoneReached)]

    assert company.seen == {agent: [str(number) for number in range(12)] for agent in ("bob", "eve")}
    assert sorted((each.agent_id, each.posts) for each in milestones) == [
        (agent, posts) for agent in ("bob", "eve") for posts in (1, 3, 10)
    ]


def test_an_answer_is_thought_of_once_though_its_first_attempt_fails(url: str, namespace: str) -> None:
    with performing(url, namespace, flaky=True) as company:
        bus = company.app.bus
        receipt = bus.publish_sync(Posted(agent_id="ada", kind="question", category="maps", text="Where is it?"))
        wait_until(lambda: bus.store.pending("default") == 0, "the answer", 20)
        replies = [event for event in texts(bus, f"post:{receipt.id}") if isinstance(event, Replied)]

    assert company.thoughts == 1
    assert [(reply.author_id, reply.text) for reply in replies] == [
        ("ada", "Where is it? It is in the third volume, beside the map.")
    ]


def test_the_addressee_of_a_whisper_is_told_in_order(url: str, namespace: str) -> None:
    with performing(url, namespace) as company:
        for number in range(10):
            company.app.bus.publish_sync(Whispered(agent_id="ada", to="bob", text=str(number)))

    assert company.noticed == {"bob": [str(number) for number in range(10)]}


def test_it_runs_and_shows_what_happened(url: str, namespace: str) -> None:
    """Twice: what the first run leaves on a server (its posts count towards milestones) is not in the way of the second."""
    pages = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "tests.examples.feed"],
            cwd=ROOT,
            env={**os.environ, "BUS_URL": url, "BUS_NAMESPACE": namespace},
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
        printed = done.stdout

        assert done.stderr == ""
        whisper = next(line for line in printed.splitlines() if "whisper to bob" in line)
        assert [cell.strip() for cell in whisper.split("│")[2:6]] == ["●", "●", "", ""]
        assert "At my desk: [e-mail], or [phone]." in printed
        assert "●●" not in printed, "somebody heard something twice"
        assert "an apprentice may not do that" in printed
        assert "thought 1 time;" in printed
        pages += re.findall(r"five at a time: (.*);", printed)
    assert pages[0] == "5 + 5 + 5 + 1 = 16"
    assert len(pages) == 2
