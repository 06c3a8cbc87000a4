"""What may be published in the feed: hooks that every event passes, by whichever door it comes."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum
from threading import Lock
from typing import Final

from bus import Bus, Publication, Refused
from tests.examples.feed.events import ChannelOpened, FeedEvent, Posted, topics_of

__all__ = ["HouseRules", "Standing", "redacted"]

MINUTE_MS: Final = 60_000
POSTS_A_MINUTE: Final = 4

_PERSONAL = (
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (re.compile(r"\+?\d[\d ()/-]{7,}\d"), "[phone]"),
)


class Standing(IntEnum):
    """What an agent has earned."""

    APPRENTICE = 0
    MEMBER = 1
    STEWARD = 2


class HouseRules:
    """The rules of one bus: who may do what, how often, without whose telephone number, and who hears it."""

    def __init__(self, bus: Bus, standing: Mapping[str, Standing]) -> None:
        self._clock = bus.clock
        self._standing = standing
        self._posts: dict[str, deque[int]] = defaultdict(deque)
        self._lock = Lock()  # hooks run on the publisher's thread, whichever that is
        for rule in (self.typed, self.authorise, self.limit, self.redact, self.address):
            bus.before_publish(rule)

    def typed(self, draft: Publication) -> Publication:
        """A dict that calls itself an event of the feed has fields that nobody has looked at yet."""
        event = draft.event
        if isinstance(event, Mapping) and str(event.get("type")).startswith("feed."):
            raise Refused("publish the feed's events as its own types", rule="typed")
        return draft

    def authorise(self, draft: Publication) -> Publication:
        """Strangers do nothing, apprentices do not post, and only stewards command, announce and open channels."""
        event = draft.event
        if not isinstance(event, FeedEvent):
            return draft
        standing = self._standing.get(event.agent_id)
        if standing is None:
            raise Refused("nobody knows this agent", rule="stranger")
        if standing < self._needed(event):
            raise Refused(f"{_a(standing)} may not do that", rule="standing")
        return draft

    @staticmethod
    def _needed(event: FeedEvent) -> Standing:
        match event:
            case ChannelOpened() | Posted(kind="command" | "announcement"):
                return Standing.STEWARD
            case Posted():
                return Standing.MEMBER
            case _:
                return Standing.APPRENTICE

    def limit(self, draft: Publication) -> Publication:
        """A member posts so often a minute; stewards are trusted."""
        event = draft.event
        if isinstance(event, Posted) and self._standing[event.agent_id] < Standing.STEWARD:
            now = self._clock.now_ms()
            with self._lock:
                posts = self._posts[event.agent_id]
                while posts and posts[0] <= now - MINUTE_MS:
                    posts.popleft()
                if len(posts) >= POSTS_A_MINUTE:
                    raise Refused(f"a member posts {POSTS_A_MINUTE} times a minute at most", rule="limit")
                posts.append(now)
        return draft

    @staticmethod
    def redact(draft: Publication) -> Publication:
        """Addresses and telephone numbers stay at home."""
        text = getattr(draft.event, "text", None)
        if not isinstance(draft.event, FeedEvent) or not isinstance(text, str) or (clean := redacted(text)) == text:
            return draft
        return replace(draft, event=draft.event.model_copy(update={"text": clean}))

    @staticmethod
    def address(draft: Publication) -> Publication:
        """Who hears of it is not the publisher's to say: a whisper cannot end up on ``global`` by a slip."""
        if not isinstance(draft.event, FeedEvent):
            return draft
        return replace(draft, topics=topics_of(draft.event), key=draft.key or draft.event.agent_id)


def redacted(text: str) -> str:
    """A text without what should not travel."""
    for pattern, instead in _PERSONAL:
        text = pattern.sub(instead, text)
    return text


def _a(standing: Standing) -> str:
    return f"an {standing.name.lower()}" if standing == Standing.APPRENTICE else f"a {standing.name.lower()}"
