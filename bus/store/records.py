"""The words of a store's log side: entries, frames, pages, and what is asked and answered when events are appended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bus.position import ROOT_TOKEN, Position
from bus.store.jobs import Route

__all__ = [
    "CONFIRMED",
    "NO_LIMITS",
    "QUIET",
    "Announced",
    "Appended",
    "Batch",
    "Bindings",
    "Confirmed",
    "Ended",
    "Entry",
    "Frame",
    "Heard",
    "Limits",
    "OwnLimits",
    "Page",
    "Post",
    "Quiet",
    "Stale",
    "Whisper",
    "decode_frame",
    "encode_frame",
]


class Entry(NamedTuple):
    """One event as a log keeps it. ``topics`` is one string, separated by spaces."""

    seq: int
    token: str
    prev: str
    topics: str
    body: bytes


class Frame(NamedTuple):
    """One live announcement. ``ephemeral`` ones carry the seq and token they came *after*, and no number of their own.

    ``end`` says that the log was closed: the entry has the seq and token of its last event, and nothing else.
    """

    epoch: str
    entry: Entry
    ephemeral: bool = False
    end: bool = False


class Whisper(NamedTuple):
    """Something for live listeners only. ``topics`` is one string, separated by spaces."""

    topics: str
    body: bytes


class Confirmed:
    """What a subscription yields each time the server has (re)confirmed it: there may be a hole just before."""

    __slots__ = ()


class Quiet:
    """What a subscription yields now and then while nothing is announced: the link is alive, the log may have gone on."""

    __slots__ = ()


CONFIRMED = Confirmed()
QUIET = Quiet()

Heard = Frame | Confirmed | Quiet
"""What a subscription yields."""


class Page(NamedTuple):
    """A consistent look at a log: its epoch, its top, and a run of entries in order.

    A log that holds nothing has ``top == 0`` and the root token. Entries past their age are left out, as if trimmed: a
    page begins at the first that is not, and has no hole after it. Of a log that is ``closed`` the top is the last number
    there will be.
    """

    epoch: str
    top: int
    top_token: str
    entries: list[Entry]
    closed: bool = False


class Limits(NamedTuple):
    """What a log keeps: at most ``cap`` entries (exactly), none older than ``ttl_ms``."""

    cap: int
    ttl_ms: int


class OwnLimits(NamedTuple):
    """Limits that a log is given for its own, in place of its publishers' defaults; ``None`` gives none.

    The log keeps them, so they hold for every publisher from then on; the last ones that were given count.
    """

    cap: int | None = None
    ttl_ms: int | None = None


NO_LIMITS = OwnLimits()


class Post(NamedTuple):
    """One event to append, with its jobs as (route, lane key or ``""`` for no lane).

    ``due`` delays the jobs only: ``""`` is now, ``"+1500"`` is in 1,500 ms, ``"=1790000000000"`` is at that time. Of
    what is due in the same millisecond the older job comes first.
    """

    id: str
    token: str
    topics: str
    body: bytes
    jobs: tuple[tuple[Route, str], ...] = ()
    due: str = ""


class Batch(NamedTuple):
    """Events for one log, in order, and what they share.

    ``epoch`` is offered: it counts only where the log has none yet. ``version`` is that of the bindings with which the
    jobs were matched; where the store knows a newer one it answers :class:`Stale` and has written nothing. ``limits``
    are the publisher's defaults, for a log without ``own`` ones.
    """

    log: str
    limits: Limits
    window_ms: int
    epoch: str
    version: int
    posts: list[Post]
    own: OwnLimits = NO_LIMITS


class Appended(NamedTuple):
    """What became of one post. A duplicate has the position of the first, and no jobs of its own."""

    position: Position
    duplicate: bool


Bindings = Mapping[str, bytes]
"""All bindings of the namespace, handler name to encoded binding."""


class Stale(NamedTuple):
    """The bindings have changed since the caller matched: nothing was written; match again with these."""

    version: int
    bindings: Bindings


class Announced(NamedTuple):
    """What became of an announcement: the log's top at that moment, and how many heard it.

    ``heard`` counts what the store tells (a process's connection, a loop's inbox); 0 means that nobody listens to the log.
    """

    position: Position
    heard: int


class Ended(NamedTuple):
    """The log is closed, and ``position`` is its last: nothing was written or announced."""

    position: Position


# -- the live frame ----------------------------------------------------------------------------------------------------

_EPHEMERAL = "~"
_END = "."


def encode_frame(frame: Frame) -> bytes:
    """A frame as it travels: ``epoch.seq token prev topics``, a newline, the body.

    An ephemeral one has ``~`` for prev, the end of a log ``.``.
    """
    entry = frame.entry
    prev = _END if frame.end else _EPHEMERAL if frame.ephemeral else entry.prev
    return f"{frame.epoch}.{entry.seq} {entry.token} {prev} {entry.topics}\n".encode() + entry.body


def decode_frame(data: bytes) -> Frame:
    """The inverse of :func:`encode_frame`; raises ``ValueError`` for anything else."""
    head, _, body = data.partition(b"\n")
    place, token, prev, topics = head.decode("ascii").split(" ", 3)
    epoch, _, seq = place.partition(".")
    if prev in (_EPHEMERAL, _END):
        entry = Entry(int(seq), token, ROOT_TOKEN, topics, body)
        return Frame(epoch, entry, ephemeral=prev == _EPHEMERAL, end=prev == _END)
    return Frame(epoch, Entry(int(seq), token, prev, topics, body))
