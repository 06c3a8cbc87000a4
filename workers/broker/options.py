"""What the options of an actor may be, as far as a wrong one would only show once a message has failed, or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.errors import InvalidHandler, instead_of

__all__ = ["check_names", "check_options"]

WHOLE = "a whole number from 0 up, or None for no end of them"
SPAN = "a number of milliseconds from 0 up"
LIMIT = "a number of milliseconds above 0"

_SPANS = {"min_backoff": SPAN, "max_backoff": SPAN, "time_limit": LIMIT, "max_age": LIMIT}
_OURS = {"queue_name": "queue", "actor_name": "name"}


def check_options(actor: str, options: Mapping[str, Any]) -> None:
    """Raise :class:`~workers.errors.InvalidHandler` for a number that is none, or cannot be meant."""
    retries = options.get("max_retries")
    if retries is not None and (not _is(int, retries) or retries < 0):
        raise InvalidHandler(f"max_retries= of {actor} is {WHOLE}")
    for name, what in _SPANS.items():
        if name not in options or (name == "max_age" and options[name] is None):
            continue
        span = options[name]
        if not _is((int, float), span) or not (span > 0 if what is LIMIT else span >= 0):
            raise InvalidHandler(f"{name}= of {actor} is {what}")
    retry_when = options.get("retry_when")
    if retry_when is not None and not callable(retry_when):
        raise InvalidHandler(f"retry_when= of {actor} is a function of the number of retries and the error")


def check_names(handler: str, options: Mapping[str, Any], known: set[str]) -> None:
    """Raise :class:`~workers.errors.InvalidHandler` for options that no middleware knows, and say what they may have been."""
    for name in options:
        if name in _OURS:
            raise InvalidHandler(f"handler {handler}: write {_OURS[name]}= for {name}=")
        if name not in known:
            raise InvalidHandler(f"handler {handler}: there is no option {name}={instead_of(name, sorted(known))}")


def _is(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
