"""A day in the feed, in some seconds: who did what, who heard it, what the rules refused, and a feed by the page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

import dramatiq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bus import Bus, Delivery, Receipt, Refused
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
)
from tests.examples.feed.reading import read_feed
from tests.examples.feed.rules import HouseRules, Standing

STANDING = {
    "ada": Standing.MEMBER,
    "bob": Standing.STEWARD,
    "eve": Standing.MEMBER,
    "tim": Standing.APPRENTICE,
    "librarian": Standing.MEMBER,
}
FEEDS = {
    "ada": hears("ada", follows=("bob",), channels=("ops",)),
    "bob": hears("bob", channels=("ops",)),
    "eve": hears("eve", follows=("ada", "bob", "librarian")),
    "tim": hears("tim"),
}
LAST = "That was the day. Good night!"

console = Console(width=108, highlight=False)


async def day(bus: Bus, refused: list[tuple[str, str]]) -> None:
    """What the agents do."""

    async def does(event: FeedEvent) -> Receipt | None:
        await asyncio.sleep(0.05)
        try:
            return await bus.publish(event)
        except Refused as refusal:
            refused.append((said(event), str(refusal)))
            return None

    await does(ChannelOpened(agent_id="bob", channel="ops", purpose="running the house"))
    await does(ChannelJoined(agent_id="ada", channel="ops"))
    status = await does(Posted(agent_id="ada", text="At my desk: ada@example.org, or +44 20 7946 0000."))
    await does(Posted(agent_id="eve", kind="insight", text="The old maps agree with each other."))
    await does(Posted(agent_id="ada", kind="question", category="maps", text="Where is the oldest one?"))
    await does(Posted(agent_id="tim", text="Hello! I am new here."))
    if status is not None:
        await does(Reacted(agent_id="tim", post_id=status.id, author_id="ada", sign="+1"))
    await does(Whispered(agent_id="ada", to="bob", text="Tim should be a member soon."))
    await does(Posted(agent_id="bob", kind="command", channel="ops", text="Count the maps."))
    await does(Posted(agent_id="ada", kind="response", channel="ops", text="There are 212."))
    await does(Posted(agent_id="bob", kind="alert", text="The archive closes in an hour."))
    await does(Posted(agent_id="eve", kind="announcement", text="I am in charge now."))
    for number in range(1, 5):
        await does(Posted(agent_id="eve", text=f"Map {number} of 212 is scanned."))
    await does(Posted(agent_id="ada", kind="insight", text="Two of the maps are one."))


def said(event: object) -> str:
    """One line about an event."""
    match event:
        case Posted(agent_id=who, kind=kind, text=text, channel=channel):
            return f"{who} · {kind}{f' in #{channel}' if channel else ''} · {text}"
        case Replied(agent_id=who, author_id=author, text=text):
            return f"{who} · reply to {author} · {text}"
        case Reacted(agent_id=who, author_id=author, sign=sign):
            return f"{who} · {sign} for {author}"
        case Whispered(agent_id=who, to=to, text=text):
            return f"{who} · whisper to {to} · {text}"
        case ChannelOpened(agent_id=who, channel=channel, purpose=purpose):
            return f"{who} · opens #{channel} · {purpose}"
        case ChannelJoined(agent_id=who, channel=channel):
            return f"{who} · joins #{channel}"
        case MilestoneReached(agent_id=who, posts=posts):
            return f"{who} · milestone · {posts} post{'s' if posts > 1 else ''}"
        case _:
            return repr(event)


async def hear(bus: Bus, agent: str, heard: list[Delivery], started: asyncio.Event) -> None:
    """One agent's live feed, up to the last word of the day."""
    async with bus.listen(*FEEDS[agent]) as listener:
        started.set()
        async for item in listener:
            if isinstance(item, Delivery):
                heard.append(item)
                if isinstance(item.event, Posted) and item.event.text == LAST:
                    return


@contextlib.asynccontextmanager
async def at_work(company: Company) -> AsyncIterator[None]:
    """A worker in this process. Its handlers are forgotten afterwards, so that nothing is queued for nobody."""
    worker = dramatiq.Worker(company.app.broker, worker_timeout=100)
    await asyncio.to_thread(worker.start)
    try:
        yield
    finally:
        await asyncio.to_thread(worker.stop, 5_000)
        await asyncio.to_thread(company.app.bus.store.unbind, list(company.app.handlers))


async def until_done(company: Company) -> None:
    """Wait for the handlers, and for the events that they publish in turn."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(company.app.bus.store.pending, "default"):  # noqa: ASYNC110 - there is no bell for "all done"
            await asyncio.sleep(0.02)


async def main() -> None:
    """The day, and then what it left behind."""
    refused: list[tuple[str, str]] = []
    heard: dict[str, list[Delivery]] = {agent: [] for agent in FEEDS}
    async with Bus(namespace=os.environ.get("BUS_NAMESPACE") or "feed-example") as bus:
        HouseRules(bus, STANDING)
        company = Company(bus, flaky=True)
        async with at_work(company), asyncio.TaskGroup() as listening:
            for agent, own in heard.items():
                started = asyncio.Event()
                listening.create_task(hear(bus, agent, own, started))
                await started.wait()
            first = await bus.publish({"type": "morning"}, topics=["global"])
            await day(bus, refused)
            await until_done(company)
            await bus.publish(Posted(agent_id="bob", kind="announcement", text=LAST))
        show(heard)
        show_refused(refused)
        await show_pages(bus, first.position)
        thoughts = f"the librarian was asked once, tried twice, and thought {company.thoughts} time"
        inbox = escape(str(company.noticed["bob"]))
        console.print(f"\n{thoughts}; bob found in his inbox: {inbox}; mode: {bus.mode}")


def show(heard: dict[str, list[Delivery]]) -> None:
    """Every event in the log's order, and who heard it."""
    table = Table("what happened", *heard, title="who heard it", title_justify="left")
    events = {item.envelope.id: item for own in heard.values() for item in own if isinstance(item.event, FeedEvent)}
    for id_, item in sorted(events.items(), key=lambda each: each[1].position.seq):
        counts = [sum(other.envelope.id == id_ for other in own) for own in heard.values()]
        table.add_row(escape(said(item.event)), *("●" * count for count in counts))
    console.print(table)


def show_refused(refused: list[tuple[str, str]]) -> None:
    """What nobody heard, and why."""
    table = Table("what was refused", "why", title="the house rules", title_justify="left")
    for event, why in refused:
        table.add_row(escape(event), escape(why))
    console.print(table)


async def show_pages(bus: Bus, start: str) -> None:
    """Eve's feed by the page, until there is no more."""
    cursor, sizes = start, []
    while (page := await read_feed(bus, FEEDS["eve"], cursor, size=5)).items:
        sizes.append(len(page.items))
        cursor = page.cursor
    pages = " + ".join(str(size) for size in sizes)
    console.print(f"eve's feed, five at a time: {pages} = {sum(sizes)}; after the last cursor: nothing, yet")


if __name__ == "__main__":
    for name in ("dramatiq", "callboard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the first attempt's failure is part of the day
    asyncio.run(main())
