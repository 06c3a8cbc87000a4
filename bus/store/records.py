"""The words of a store's log side: entries, frames, pages, and what is asked and answered when events are appended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bus.position import ROOT_TOKEN
from bus.store.jobs import Route

__all__ = [
    "CONFIRMED",
    "Appended",
    "Batch",
    "Bindings",
    "Confirmed",
    "Entry",
    "Frame",
    "Limits",
    "Page",
    "Post",
    "Stale",
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
    """One live announcement. ``ephemeral`` ones carry the seq and token they came *after*, and no number of their own."""

    epoch: str
    entry: Entry
    ephemeral: bool = False


class Confirmed:
    """What a subscription yields each time the server has (re)confirmed it: there may be a hole just before."""

    __slots__ = ()


CONFIRMED = Confirmed()


class Page(NamedTuple):
    """A consistent look at a log: its epoch, its top, and a run of entries in order.

    A log that holds nothing has ``top == 0`` and the root token. Entries past their age are left out, as if trimmed: a
    page begins at the first that is not, and has no hole after it.
    """

    epoch: str
    top: int
    top_token: str
    entries: list[Entry]


class Limits(NamedTuple):
    """What a log keeps: at most ``cap`` entries (exactly), none older than ``ttl_ms``."""

    cap: int
    ttl_ms: int


class Post(NamedTuple):
    """One event to append, with its jobs as (index into the batch's routes, lane key or ``""`` for no lane).

    ``due`` delays the jobs only: ``""`` is now, ``"+1500"`` is in 1,500 ms, ``"=1790000000000"`` is at that time. Of
    what is due in the same millisecond the older job comes first.
    """

    id: str
    token: str
    topics: str
    body: bytes
    jobs: tuple[tuple[int, str], ...] = ()
    due: str = ""


class Batch(NamedTuple):
    """Events for one log, in order, and what they share.

    ``epoch`` is offered: it counts only where the log has none yet. ``version`` is that of the bindings with which the
    jobs were matched; where the store knows a newer one it answers :class:`Stale` and has written nothing.
    """

    log: str
    limits: Limits
    window_ms: int
    epoch: str
    version: int
    routes: tuple[Route, ...]
    posts: tuple[Post, ...]


class Appended(NamedTuple):
    """What became of one post. A duplicate has the position of the first, and no jobs of its own."""

    epoch: str
    seq: int
    token: str
    duplicate: bool


Bindings = Mapping[str, bytes]
"""All bindings of the namespace, handler name to encoded binding."""


class Stale(NamedTuple):
    """The bindings have changed since the caller matched: nothing was written; match again with these."""

    version: int
    bindings: Bindings


# -- the live frame ----------------------------------------------------------------------------------------------------

_EPHEMERAL = "~"


def encode_frame(frame: Frame) -> bytes:
    """A frame as it travels: ``epoch.seq token prev topics``, a newline, the body. Ephemeral ones have ``~`` for prev."""
    entry = frame.entry
    prev = _EPHEMERAL if frame.ephemeral else entry.prev
    return f"{frame.epoch}.{entry.seq} {entry.token} {prev} {entry.topics}\n".encode() + entry.body


def decode_frame(data: bytes) -> Frame:
    """The inverse of :func:`encode_frame`; raises ``ValueError`` for anything else."""
    head, _, body = data.partition(b"\n")
    place, token, prev, topics = head.decode("ascii").split(" ", 3)
    epoch, _, seq = place.partition(".")
    if prev == _EPHEMERAL:
        return Frame(epoch, Entry(int(seq), token, ROOT_TOKEN, topics, body), ephemeral=True)
    return Frame(epoch, Entry(int(seq), token, prev, topics, body))
