"""The work that the feed's events give: milestones, answers, and notices to those who were whispered to.

Handlers publish by the same doors as everybody, so the house rules hold for them as well.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from bus import Bus, Delivery
from tests.examples.feed.events import MilestoneReached, Posted, Replied, Whispered
from workers import App, Context

__all__ = ["MILESTONES", "Company"]

MILESTONES = (1, 3, 10, 100)


class ModelOverloaded(Exception):
    """The line to the model broke after it had answered."""


class Company:
    """The app, and what it has done, for whoever wants to look. ``flaky`` makes each answer's first attempt fail."""

    def __init__(self, bus: Bus, *, flaky: bool = False) -> None:
        self.app = App(bus)
        self.noticed: dict[str, list[str]] = defaultdict(list)
        self.seen: dict[str, list[str]] = defaultdict(list)
        self.thoughts = 0
        self._flaky = flaky
        self.app.on(Posted, topics="agent:*", key="agent_id", name="feed.milestones")(self.count)
        self.app.on(Posted, topics="category:*", name="feed.librarian", min_backoff=50, max_backoff=100)(self.answer)
        self.app.on(Whispered, key="to", name="feed.postman")(self.notify)

    async def count(self, post: Posted, ctx: Context) -> None:
        """One agent's posts come one at a time and in order, so this one's number is theirs up to here."""
        self.seen[post.agent_id].append(post.text)
        number = 0
        async for item in ctx.bus.history(f"agent:{post.agent_id}"):
            if isinstance(item, Delivery) and isinstance(item.event, Posted):
                number += item.event.agent_id == post.agent_id
                if item.envelope.id == ctx.envelope.id:
                    break
        if number in MILESTONES:
            milestone = MilestoneReached(agent_id=post.agent_id, posts=number)
            await ctx.publish(milestone, id=f"{ctx.envelope.id}.milestone")  # tried twice, it counts once

    async def answer(self, post: Posted, ctx: Context) -> None:
        """Thinking is dear: it is done once, however often this is tried."""
        text = await ctx.once("think", lambda: self._think(post.text))
        if self._flaky and ctx.attempt == 1:
            raise ModelOverloaded
        reply = Replied(agent_id="librarian", post_id=ctx.envelope.id, author_id=post.agent_id, text=text)
        await ctx.publish(reply, id=f"{ctx.envelope.id}.answer")

    async def _think(self, question: str) -> str:
        self.thoughts += 1
        await asyncio.sleep(0.1)
        return f"{question.rstrip('?')}? It is in the third volume, beside the map."

    async def notify(self, whisper: Whispered) -> None:
        """One agent's whispers come in order; another's do not wait for them."""
        self.noticed[whisper.to].append(whisper.text)
