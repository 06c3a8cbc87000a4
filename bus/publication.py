"""What is about to be published, and the hooks that have a say in it before it is.

::

    @bus.before_publish
    def sign(draft: Publication) -> Publication:
        if not may_post(draft.event):
            raise Refused("apprentices may not post", rule="standing")
        return replace(draft, topics=("global", "audit"))    # dataclasses.replace: a draft is never changed in place

A hook sees every event on its way to every door (``publish``, ``publish_many``, their blocking twins, ``ephemeral``, a
handler's ``ctx``), once, before it is wrapped; a retry after a lost reply does not ask it again. It decides for this
process only: who writes to the server by other means does not pass here.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from bus.errors import BusError, HookFailed, InvalidEvent, InvalidSettings
from bus.events import Event
from bus.store.base import NO_LIMITS, OwnLimits
from bus.topics import topic_set

__all__ = ["Delay", "Draft", "Hook", "Hooks", "Publication", "drafted"]

Delay = timedelta | float
"""A length of time: a ``timedelta``, or seconds."""


@dataclass(slots=True)
class Publication:
    """One event of a ``publish_many``, with the options of a single ``publish``; to a hook, the draft of it.

    Not frozen, which takes three times as long to make. ``own`` are the log's own limits, which :meth:`bus.Bus.log` fills in.
    """

    event: Event | Mapping[str, Any]
    topics: Iterable[str] = ("global",)
    key: str | None = None
    id: str | None = None
    delay: Delay | None = None
    at: datetime | None = None
    log: str | None = None
    own: OwnLimits = NO_LIMITS


Draft = tuple[
    Event | Mapping[str, Any],
    Iterable[str],
    str | None,
    str | None,
    Delay | None,
    datetime | None,
    str | None,
    OwnLimits,
]
"""A publication's fields. Most are never more than that: only a hook has to be shown an object, which costs a microsecond."""

_fields: Callable[[Publication], Draft] = attrgetter("event", "topics", "key", "id", "delay", "at", "log", "own")


def drafted(publication: object) -> Draft:
    """A publication as a draft. Raises ``InvalidEvent`` for what is none, such as an event without one around it."""
    if not isinstance(publication, Publication):
        kind = type(publication).__name__
        raise InvalidEvent(f"publish_many takes Publication(event, topics=...), not {kind}: put each event in one")
    return _fields(publication)


Hook = Callable[[Publication], Publication]
"""Gives the draft back, as it is or another one; or raises, and nothing is published.

It is a plain function, called on the publisher's own thread or event loop: it must not block, nor publish. The draft's
``topics`` are a tuple of valid topics; its ``event`` is what the publisher gave, typed or a mapping.
"""


class Hooks:
    """The hooks of one bus, in order of registration. Safe from any thread."""

    def __init__(self) -> None:
        self.all: tuple[Hook, ...] = ()
        self._adding = threading.Lock()

    def add(self, hook: Hook) -> None:
        """Ask this one last, from the next event on. Raises :class:`~bus.errors.InvalidSettings` for one that is async."""
        if not callable(hook) or inspect.iscoroutinefunction(hook):
            raise InvalidSettings(
                "a before_publish hook is a plain function: publish_sync could not wait for an async one"
            )
        with self._adding:
            self.all += (hook,)

    def ask(self, publication: Publication) -> Publication:
        """The publication as the hooks leave it.

        Raises what a hook raises if that is a :class:`~bus.errors.BusError` (:class:`~bus.errors.Refused` above all), and
        :class:`~bus.errors.HookFailed` for everything else: what nobody has judged is not published.
        """
        draft = replace(publication, topics=topic_set(publication.topics))
        for hook in self.all:
            draft = _asked(hook, draft)
        return draft


def _asked(hook: Hook, draft: Publication) -> Publication:
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    try:
        answer = hook(draft)
    except BusError:
        raise
    except Exception as error:
        raise HookFailed(name, f"raised {type(error).__name__}") from error
    if not isinstance(answer, Publication):
        raise HookFailed(name, f"returned {type(answer).__name__}: return the draft, or raise bus.Refused")
    return replace(answer, topics=topic_set(answer.topics))
