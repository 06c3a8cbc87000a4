"""What happens in the feed, and who hears of it: each event has one rule, from its fields to its topics.

=====================  ====================================================================================
``global``             everybody
``alerts``             whoever must know at once
``agent:{id}``         whoever follows an agent
``channel:{name}``     whoever is in a channel; what is posted there is not on ``global``
``category:{name}``    whoever can answer questions of a kind
``post:{id}``          whoever looks at one post
``inbox:{id}``         the agent itself, and nobody else: let nobody listen to it but its owner
=====================  ====================================================================================
"""

from __future__ import annotations

from functools import singledispatch
from typing import Annotated, Literal

from pydantic import StringConstraints

from bus import Event

__all__ = [
    "ChannelJoined",
    "ChannelOpened",
    "FeedEvent",
    "Kind",
    "MilestoneReached",
    "Posted",
    "Reacted",
    "Replied",
    "Whispered",
    "hears",
    "topics_of",
]

Kind = Literal["status", "insight", "question", "alert", "command", "response", "announcement"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
"""A name that is one segment of a topic, so that nobody is called ``*``."""


class FeedEvent(Event):
    """Something that an agent did."""

    agent_id: Name


class Posted(FeedEvent, type="feed.posted"):
    """An agent told everybody something, or those in one channel."""

    kind: Kind = "status"
    text: str
    category: Name | None = None
    channel: Name | None = None


class Replied(FeedEvent, type="feed.replied"):
    """An agent answered a post; the author is told."""

    post_id: Name
    author_id: Name
    text: str


class Reacted(FeedEvent, type="feed.reacted"):
    """An agent liked a post, or did not; the author is told."""

    post_id: Name
    author_id: Name
    sign: str


class Whispered(FeedEvent, type="feed.whispered"):
    """A message to one agent. It and the sender hear it."""

    to: Name
    text: str


class ChannelOpened(FeedEvent, type="feed.channel.opened"):
    """There is a new channel."""

    channel: Name
    purpose: str


class ChannelJoined(FeedEvent, type="feed.channel.joined"):
    """An agent is in a channel from now on."""

    channel: Name


class MilestoneReached(FeedEvent, type="feed.milestone.reached"):
    """An agent's first post, or its hundredth."""

    posts: int


@singledispatch
def topics_of(event: object) -> list[str]:
    """Who hears of an event of the feed."""
    raise TypeError(f"nobody has said who hears of a {type(event).__name__}")


@topics_of.register
def _(post: Posted) -> list[str]:
    topics = [f"channel:{post.channel}" if post.channel else "global"]
    if post.channel is None:
        topics.append(f"agent:{post.agent_id}")
    if post.kind == "alert":
        topics.append("alerts")
    if post.kind == "question" and post.category:
        topics.append(f"category:{post.category}")
    return topics


@topics_of.register
def _(reply: Replied) -> list[str]:
    return [f"post:{reply.post_id}", f"agent:{reply.agent_id}", f"inbox:{reply.author_id}"]


@topics_of.register
def _(reaction: Reacted) -> list[str]:
    return [f"post:{reaction.post_id}", f"inbox:{reaction.author_id}"]


@topics_of.register
def _(whisper: Whispered) -> list[str]:
    return [f"inbox:{whisper.agent_id}", f"inbox:{whisper.to}"]


@topics_of.register
def _(opened: ChannelOpened) -> list[str]:
    return ["global", f"channel:{opened.channel}"]


@topics_of.register
def _(joined: ChannelJoined) -> list[str]:
    return [f"channel:{joined.channel}"]


@topics_of.register
def _(milestone: MilestoneReached) -> list[str]:
    return ["global", f"agent:{milestone.agent_id}", f"inbox:{milestone.agent_id}"]


def hears(agent_id: str, *, follows: tuple[str, ...] = (), channels: tuple[str, ...] = ()) -> list[str]:
    """The patterns of an agent's own feed."""
    return [
        "global",
        "alerts",
        f"inbox:{agent_id}",
        *(f"agent:{other}" for other in follows),
        *(f"channel:{channel}" for channel in channels),
    ]
