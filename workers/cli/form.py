"""From what a person typed, or a line of a file, to a publication."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bus import Publication
from bus.settings import check_log
from bus.topics import check_topic

__all__ = ["Form", "UnfitEvent", "read_fields", "read_line"]

_PLACE = re.compile(r"\{([^{}]+)\}")


class UnfitEvent(Exception):
    """What was typed, or a line, makes no event; the text says why and quotes no data."""


class Form:
    """How every event of a run is addressed. Raises ``InvalidTopic`` and ``InvalidLog`` for what can never work."""

    def __init__(self, topics: Sequence[str], *, key: str | None, id: str | None, log: str | None) -> None:
        for topic in topics:
            check_topic(_PLACE.sub("x", topic))
        check_log(log)
        self.key_was_seen = False
        self._topics = topics
        self._key = key
        self._id = id
        self._log = log

    def publication(self, event: Mapping[str, Any]) -> Publication:
        """The event, addressed by its own fields. Raises :class:`UnfitEvent`; the bus checks the rest."""
        topics = [_PLACE.sub(lambda place: _name_in(event, place[1], "--topic"), topic) for topic in self._topics]
        event_id = _name_in(event, self._id, "--id") if self._id is not None else None
        return Publication(event, topics, key=self._lane(event), id=event_id, log=self._log)

    def _lane(self, event: Mapping[str, Any]) -> str | None:
        """As a handler's ``key=`` reads it: missing, null and empty mean no key."""
        value = event.get(self._key) if self._key is not None else None
        if value is None or value == "":
            return None
        self.key_was_seen = True
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)


def _name_in(event: Mapping[str, Any], field: str, option: str) -> str:
    value = event.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UnfitEvent(f"{option} needs text or a whole number in the field {field[:80]!r}")
    return str(value)


def read_fields(fields: Sequence[str]) -> dict[str, Any]:
    """The data that was typed as ``FIELD=VALUE`` and ``FIELD:=JSON``."""
    data: dict[str, Any] = {}
    for given in fields:
        name, equals, value = given.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            raise UnfitEvent(f'{given[:80]!r} is no field: write FIELD=VALUE, as in text="hi"')
        if name in data:
            raise UnfitEvent(f"the field {name[:80]!r} is given twice")
        if name == "type":
            raise UnfitEvent("the type comes first, without 'type=', as in 'callboard publish agent.post.created'")
        data[name] = _json(value, f"the value of {name[:80]!r}") if is_json else _value(value)
    return data


def _value(text: str) -> Any:
    """A JSON number, true, false, null, object or array; otherwise the text itself, quotes and all."""
    try:
        value = _loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def read_line(line: bytes, default_type: str | None) -> dict[str, Any]:
    """One line of JSON Lines: an object with a ``"type"``, for which there may be a default."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnfitEvent("it is not UTF-8 text") from None
    event = _json(text, "it")
    if not isinstance(event, dict):
        raise UnfitEvent('it is not a JSON object, as in {"type": "agent.post.created", "agent_id": "a1"}')
    if "type" not in event:
        if default_type is None:
            raise UnfitEvent('it has no "type": add one, or name one for all such lines with --type')
        event["type"] = default_type
    return event


def _json(text: str, what: str) -> Any:
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        raise UnfitEvent(f"{what} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise UnfitEvent(f"{what} is not JSON that can be read: a number is too long, NaN, or it is too deep") from None


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
