"""Between the old event bus's words and ours: there any text was a topic, and any dict an event.

Topics
------
A topic that fits our grammar stays as it is, but for ``~``. In any other, each byte (UTF-8) that does not fit is ``~`` and
two hexadecimal digits, an empty segment is a lone ``~``, and one that is too long even so is ``~sha256.`` and its hash::

    agent:a1                 agent:a1
    category:fund research   category:fund~20research
    a::b                     a:~:b

Different topics stay different. A ``*`` is a letter like any other: an agent whose id is ``*`` is not everybody. And no
old topic comes out as ``~inbox:...``, so nobody subscribes to somebody else's inbox by its name.

Events
------
A dict whose ``"type"`` is the name of a type travels as that type, so that handlers can ask for it, and a registered
:class:`~bus.events.Event` of that name decides what is valid. Any other dict travels whole, as a ``$agent.event``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from pydantic import BaseModel

from bus.delivery import Delivery
from bus.errors import InvalidEvent, InvalidTopic
from bus.events import check_type
from bus.topics import check_topic, topic_set

__all__ = ["inbox", "is_private", "of_event", "of_post", "of_topic", "of_topics", "to_event", "to_topic"]

WHOLE: Final = "$agent.event"
"""The type of an event that has none that we could use."""

ADDRESSEES: Final = (
    "recipient_id",
    "recipient_agent_id",
    "target_agent_id",
    "to_agent_id",
    "addressee_id",
    "receiver_id",
)
"""The fields of a post that name whom it is for, and for whom alone."""

_INBOX: Final = "~inbox:"
_UNFIT = re.compile(r"[^A-Za-z0-9_.@-]")
_ESCAPED = re.compile(r"(?:~[0-9A-F]{2})+")


def of_topic(old: str) -> str:
    """Our topic for an old one. Raises ``InvalidTopic`` for what is not text."""
    if not isinstance(old, str):
        raise InvalidTopic(f"<{type(old).__name__}>", "a topic is a str: pass its name")
    return _of_topic(str.__str__(old))  # an enum's or another subclass's plain text


@lru_cache(maxsize=4096)
def _of_topic(old: str) -> str:
    ours = ":".join(_UNFIT.sub(_escape, segment) or "~" for segment in old.split(":"))
    try:
        return check_topic(ours)
    except InvalidTopic:  # too long, or too many segments
        return _hashed(ours)


def of_topics(old: Iterable[str] | None) -> list[str]:
    """Our topics for a list of old ones; ``None`` is ``["global"]``. A lone ``str`` raises ``InvalidTopic``."""
    if old is None:
        return ["global"]
    if isinstance(old, str):
        topic_set(old)  # says why not
    return [of_topic(topic) for topic in old]


def to_topic(ours: str) -> str:
    """The old topic for one of ours; one that was too long stays a hash."""
    return ":".join("" if segment == "~" else _ESCAPED.sub(_unescape, segment) for segment in ours.split(":"))


def inbox(agent_id: str) -> str:
    """The topic that an agent's own sockets hear, and nobody else's."""
    name = of_topic(agent_id).replace(":", "~3A")
    return f"{_INBOX}{name if len(name) <= 128 else _hashed(name)}"


def is_private(ours: str) -> bool:
    """Whether a topic is somebody's inbox."""
    return ours.startswith(_INBOX)


def of_event(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An old event as a mapping that the bus takes. Raises ``InvalidEvent`` for what is no mapping."""
    if not isinstance(event, Mapping):
        raise InvalidEvent(f"an event is a dict, not {type(event).__name__}")
    given = event.get("type")
    if isinstance(given, str) and not given.startswith("$"):
        try:
            return {**event, "type": check_type(str.__str__(given))}  # the text of a str that is an Enum
        except InvalidEvent:
            pass
    return {"type": WHOLE, "event": dict(event)}


def to_event(delivery: Delivery) -> dict[str, Any]:
    """The event dict as it was published, as JSON carries it."""
    envelope = delivery.envelope
    whole = envelope.data.get("event")
    if envelope.type == WHOLE and isinstance(whole, dict):
        return dict(whole)
    return {"type": envelope.type} | envelope.data | {"type": envelope.type}


def of_post(post: object) -> tuple[dict[str, Any], list[str]]:
    """The event that tells of a post, and who hears of it, in our topics.

    A post that names an addressee, or that says that it is private, is for its sender's and its addressee's sockets only.
    """
    fields = _fields(post)
    event = {"type": "agent_post", "post": fields}
    sender = fields.get("sender_id")
    addressees = [one for name in ADDRESSEES for one in _some(fields.get(name))]
    if addressees or fields.get("is_private") or _word(fields.get("visibility")) == "private":
        return event, [inbox(str(agent)) for agent in [*_some(sender), *addressees]]
    kind = _word(next((fields[name] for name in ("post_type", "type", "kind") if fields.get(name)), None))
    topics = ["global", *(f"agent:{agent}" for agent in _some(sender))]
    if kind == "alert":
        topics.append("alerts")
    if kind == "question":
        topics += [f"category:{_word(category)}" for category in _some(fields.get("sender_category"))]
    return event, of_topics(topics)


def _fields(post: object) -> dict[str, Any]:
    if isinstance(post, Mapping):
        return dict(post)
    if isinstance(post, BaseModel):
        return post.model_dump()
    if is_dataclass(post) and not isinstance(post, type):
        return asdict(post)
    if hasattr(post, "to_dict"):
        return dict(post.to_dict())
    try:
        return {name: value for name, value in vars(post).items() if not name.startswith("_")}
    except TypeError:
        raise InvalidEvent(f"a post is a dict, a model or an object with fields, not {type(post).__name__}") from None


def _some(value: Any) -> list[Any]:
    """None, one or several, as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _word(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _hashed(ours: str) -> str:
    return f"~sha256.{sha256(ours.encode()).hexdigest()}"


def _escape(unfit: re.Match[str]) -> str:
    return "".join(f"~{byte:02X}" for byte in unfit[0].encode("utf-8", "surrogatepass"))


def _unescape(escaped: re.Match[str]) -> str:
    return bytes.fromhex(escaped[0].replace("~", "")).decode("utf-8", "replace")
