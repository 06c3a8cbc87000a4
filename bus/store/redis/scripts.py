"""The Lua scripts, and how their arguments and answers look: one body behind the blocking and the loop door.

Each script is a file in ``bus/store/lua`` whose header names KEYS, ARGV and answer; what it uses of ``lanes.lua``,
``placing.lua`` and ``taking.lua`` is put in front of it. A :class:`Call` is one invocation, ready to be sent by either kind of client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from bus.position import Position
from bus.store.base import (
    Announced,
    Appended,
    Batch,
    Beat,
    Bindings,
    Census,
    Company,
    Count,
    Ended,
    Entry,
    Exchange,
    Job,
    OwnLimits,
    Page,
    Post,
    Retrying,
    Route,
    Settlement,
    Stale,
    Take,
    Taken,
    Whisper,
)

__all__ = [
    "Call",
    "Script",
    "announce",
    "append",
    "beat",
    "bind",
    "census",
    "close_log",
    "collect",
    "cue",
    "drop",
    "enqueue",
    "exchange",
    "flush",
    "joined",
    "logs",
    "pause",
    "poke",
    "read",
    "record",
    "replay",
    "retrying",
    "rights",
    "script",
    "seek",
    "unbind",
]

T = TypeVar("T")
Argument = str | bytes | int

_DEFINITION = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
_UNREAD = re.compile(r"'[^'\n]*'|--.*")
"""What names nothing in Lua: our strings, and the comments."""
_NAME = re.compile(r"\w+")

ROUTES_AT = 10
"""Where in the arguments of an append the routes begin; in Lua the first one is 1."""
PIECE = 50
"""Posts in one script call at most: so long nobody else is served."""
RETENTION_MS = 7 * 24 * 3600 * 1000
"""How long dead letters are kept."""
END_REMEMBERED_MS = 30 * 24 * 3600 * 1000
"""How long a log that was closed is known to be, at least."""


class Script(NamedTuple):
    """A script's text and its SHA-1, under which the server knows it (https://redis.io/docs/latest/commands/evalsha)."""

    sha: str
    text: str


class Call(NamedTuple, Generic[T]):
    """One script invocation: which, with what, and how to read its answer."""

    script: Script
    arguments: Sequence[Argument]
    answer: Callable[[Any], T]
    tells: bool = False
    """Whether somebody else may be waiting to be told of it, sooner than we for the answer."""


@cache
def script(name: str) -> Script:
    """The named script, composed: its own first line (the flags), what it uses of the shared parts, the rest."""
    room = files("bus.store") / "lua"
    flags, _, body = (room / f"{name}.lua").read_text("utf-8").partition("\n")
    shared = "\n\n".join((room / f"{part}.lua").read_text("utf-8") for part in ("lanes", "placing", "taking"))
    text = "\n\n".join([flags, *_used(shared, body), body])
    return Script(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


def _used(shared: str, body: str) -> list[str]:
    """The paragraphs of the shared part that define what the body, or one of them, names.

    The server makes every function anew at each call: all of them were a tenth of a publish's time there. In Lua what is
    named was defined before, so the last paragraph is looked at first.
    """
    named = _names(body)
    used: list[str] = []
    for paragraph in reversed(shared.split("\n\n")):
        if named & set(_DEFINITION.findall(paragraph)):
            named |= _names(paragraph)
            used.insert(0, paragraph)
    return used


def _names(code: str) -> set[str]:
    return set(_NAME.findall(_UNREAD.sub("", code)))


# -- the log side ------------------------------------------------------------------------------------------------------


def append(batch: Batch) -> list[Call[list[Appended] | Stale | Ended]]:
    """See :meth:`bus.store.base.Store.append`. Calls to be sent together, and read by :func:`joined`.

    They are sent one by one: the server is at work on the first piece while we pack the next.
    """
    posts = batch.posts
    if len(posts) <= PIECE:
        return [_append(batch, 1, 1)]
    parts = [batch._replace(posts=posts[at : at + PIECE]) for at in range(0, len(posts), PIECE)]
    return [_append(part, piece, len(parts)) for piece, part in enumerate(parts, 1)]


def _append(batch: Batch, piece: int, pieces: int) -> Call[list[Appended] | Stale | Ended]:
    arguments: list[Argument] = [
        batch.log,
        batch.version,
        batch.epoch,
        batch.limits.cap if batch.own.cap is None else f"={batch.own.cap}",
        batch.limits.ttl_ms if batch.own.ttl_ms is None else f"={batch.own.ttl_ms}",
        max(1, batch.window_ms),
        piece,
        pieces,
    ]
    routes: dict[Route, int] = {}
    posts: list[Argument] = []
    for post_id, token, topics, body, jobs, due in batch.posts:
        posts += (post_id, token, topics, body, due, len(jobs))
        for route, key in jobs:
            posts += (routes.setdefault(route, ROUTES_AT + 3 * len(routes)), key)
    arguments.append(ROUTES_AT + 3 * len(routes))
    for route in routes:
        arguments += route
    return Call(script("append"), arguments + posts, partial(_appended, batch.posts), tells=True)


def joined(
    first: list[Appended] | Stale | Ended, others: Iterable[tuple[Call[list[Appended] | Stale | Ended], Any]]
) -> list[Appended] | Stale | Ended:
    """What became of a batch: the answer to its first call, and to each of the ``others`` as it came from the server.

    Those behind the first that was refused did not go in, and what refused it will be told when it is sent again. Raises an
    error that does not say that nothing was written.
    """
    if isinstance(first, list):
        for call, came in others:
            if isinstance(came, Exception):
                if "user_script:" in str(came):  # it was broken off
                    raise came
                break
            answer = call.answer(came)
            if not isinstance(answer, list) or not answer:
                break
            first += answer
    return first


def _appended(posts: Sequence[Post], answer: Sequence[Any]) -> list[Appended] | Stale | Ended:
    if answer[0] == b"stale":
        return stale(answer[1], answer[2])
    if answer[0] == b"closed":
        return Ended(Position.written(answer[1].decode()))
    if answer[0] == b"behind":
        return []
    epoch, last = answer[1].decode(), answer[2]
    known = dict(zip(answer[3::2], answer[4::2], strict=True)) if len(answer) > 3 else {}
    if not known:
        return [
            Appended(Position.written(f"{epoch}-{number}-{post.token}"), False)  # noqa: FBT003 - by position is faster
            for number, post in enumerate(posts, last + 1)
        ]
    appended: list[Appended] = []
    for place, post in enumerate(posts, 1):
        before = known.get(place)
        if before is None:
            last += 1
        position = f"{epoch}-{last}-{post.token}" if before is None else before.decode()
        appended.append(Appended(Position.written(position), duplicate=before is not None))
    return appended


def stale(version: bytes | None, pairs: Sequence[bytes] | dict[bytes, bytes]) -> Stale:
    """Bindings as the server answers them: a flat list from a script, a dict from a plain HGETALL."""
    items = pairs.items() if isinstance(pairs, dict) else zip(pairs[::2], pairs[1::2], strict=True)
    return Stale(int(version or 0), {name.decode(): binding for name, binding in items})


def announce(log: str, epoch: str, whispers: Sequence[Whisper]) -> Call[Announced | Ended]:
    """See :meth:`bus.store.base.Store.announce`."""

    def told(answer: Sequence[Any]) -> Announced | Ended:
        position, heard = _position(answer), answer[3]
        return Ended(position) if heard < 0 else Announced(position, heard)

    arguments = (log, epoch, *(part for whisper in whispers for part in whisper))
    return Call(script("announce"), arguments, told, tells=True)


def close_log(log: str, epoch: str, own: OwnLimits) -> Call[Position]:
    """See :meth:`bus.store.base.Store.close_log`."""
    limits = ["" if limit is None else limit for limit in own]
    return Call(script("close"), (log, epoch, *limits, END_REMEMBERED_MS), _position)


def seek(log: str, epoch: str, at_ms: int) -> Call[Position]:
    """See :meth:`bus.store.base.Store.seek`."""
    return Call(script("seek"), (log, epoch, at_ms), _position)


def _position(answer: Sequence[Any]) -> Position:
    return Position(answer[0].decode(), int(answer[1]), answer[2].decode())


def logs() -> Call[list[str]]:
    """See :meth:`bus.store.base.Store.logs`."""
    return Call(script("logs"), (), lambda names: sorted({name.decode() for name in names}))


def read(log: str, epoch: str, after: int, limit: int) -> Call[Page]:
    """See :meth:`bus.store.base.Store.read`."""
    return Call(script("read"), (log, epoch, after, limit), _page)


def _page(answer: Sequence[Any]) -> Page:
    entries = [
        Entry(answer[at], answer[at + 1].decode(), answer[at + 2].decode(), answer[at + 3].decode(), answer[at + 4])
        for at in range(4, len(answer), 5)
    ]
    return Page(answer[0].decode(), int(answer[1]), answer[2].decode(), entries, bool(answer[3]))


def bind(bindings: Bindings) -> Call[int]:
    """See :meth:`bus.store.base.Store.bind`."""
    return Call(script("bind"), [part for pair in sorted(bindings.items()) for part in pair], int)


def unbind(handlers: Sequence[str]) -> Call[list[bool]]:
    """See :meth:`bus.store.base.Store.unbind`."""
    return Call(script("unbind"), handlers, _each)


# -- the queue side ----------------------------------------------------------------------------------------------------


def enqueue(job: Job, window_ms: int) -> Call[bool]:
    """See :meth:`bus.store.base.Store.enqueue`."""
    arguments = (job.id, window_ms, *job.route, job.key, job.body, job.due)
    return Call(script("enqueue"), arguments, bool, tells=True)


def exchange(
    worker: str,
    lease_ms: int,
    company: Company,
    patience_ms: int,
    settlements: Sequence[Settlement],
    takes: Sequence[Take],
) -> Call[Exchange]:
    """See :meth:`bus.store.base.Store.exchange`."""

    def answered(answer: Sequence[Any]) -> Exchange:
        aparts = [came[0] for came in answer[1:] if came[0]]
        return Exchange(_each(answer[0]), _all_taken(takes, answer), aparts[0].decode() if aparts else "")

    # One argument for a settlement: writing arguments and reading answers is what Python does most while it drains a queue.
    arguments: list[Argument] = [worker, lease_ms, " ".join(map(str, company)), patience_ms, len(settlements)]
    arguments += [b"%s|%d|%s|%d|%s" % (s[0].encode(), s[1], s[2].encode(), s[3], s[4]) for s in settlements]
    for wish in takes:
        most = wish.most or (wish.limit,) * len(wish.handlers)
        arguments += (wish.ticket, wish.limit, wish.queue, int(wish.idle), len(wish.handlers))
        arguments += [part for pair in zip(wish.handlers, most, strict=True) for part in pair]
    return Call(script("exchange"), arguments, answered)


def collect(worker: str, takes: Sequence[Take]) -> Call[list[Taken]]:
    """What :meth:`bus.store.base.Store.wait` hands out."""
    arguments: list[Argument] = [worker]
    for wish in takes:
        most = wish.most or (wish.limit,) * len(wish.handlers)
        arguments += (wish.ticket, wish.limit, wish.queue, len(wish.handlers))
        arguments += [part for pair in zip(wish.handlers, most, strict=True) for part in pair]
    return Call(script("collect"), arguments, partial(_all_taken, takes))


def _all_taken(takes: Sequence[Take], answer: Sequence[Any]) -> list[Taken]:
    return [
        _taken(wish, *came[at : at + 3])
        for wish, came in zip(takes, answer[1:], strict=True)
        for at in range(1, len(came), 3)
    ]


def _taken(wish: Take, head: bytes, body: bytes, notes: bytes) -> Taken:
    job, priority, lost, handler, key = head.decode().split("|", 4)
    return Taken(job, wish.ticket, _shared_route(wish.queue, handler, priority), key, body, notes, int(lost))


def cue(said: bytes) -> Taken:
    """What a worker that stands by is handed (see ``placing.lua``). Raises ``ValueError`` for what is nothing of the kind."""
    ticket, job, priority, queue, handler, length, rest = said.split(b"|", 6)
    end = int(length)
    return Taken(
        job.decode(), int(ticket), _route_of(queue, handler, priority), rest[:end].decode(), rest[end:], b"", 0
    )


@lru_cache(maxsize=1_024)
def _route_of(queue: bytes, handler: bytes, priority: bytes) -> Route:
    return _shared_route(queue.decode(), handler.decode(), priority.decode())


@lru_cache(maxsize=1_024)
def _shared_route(queue: str, handler: str, priority: str) -> Route:
    """One for all jobs that go there: a worker holds thousands at once."""
    return Route(queue, handler, int(priority))


def beat(
    worker: str,
    lease_ms: int,
    ticket: int,
    held: Sequence[tuple[str, int]],
    max_lost: int,
    *,
    serves: Sequence[str] = (),
    unanswered: Sequence[int] = (),
    stopping: bool = False,
    standby: int = 0,
) -> Call[Beat]:
    """See :meth:`bus.store.base.Store.beat`; a lease of 0 ms leaves."""

    def found(answer: tuple[int, int, int, int, Sequence[bytes]]) -> Beat:
        next_due_ms, recovered, handed_back, forgotten, buried = answer
        gone = [job.decode() for job in buried]
        return Beat(next_due_ms if next_due_ms >= 0 else None, recovered, handed_back, bool(forgotten), gone)

    tickets = " ".join(map(str, (ticket, *unanswered)))
    told = (" ".join(serves), int(stopping), standby)
    hands = [f"{job}|{of}" for job, of in held]
    return Call(script("beat"), (worker, lease_ms, tickets, max_lost, RETENTION_MS, *told, *hands), found)


def poke(name: str) -> Call[None]:
    """See :meth:`bus.store.base.Store.poke`."""
    return Call(script("poke"), (name,), lambda _: None)


def replay(jobs: Sequence[tuple[str, bytes]]) -> Call[list[bool]]:
    """See :meth:`bus.store.base.Store.replay`."""
    return Call(script("replay"), [part for job in jobs for part in job], _each)


def drop(jobs: Sequence[str]) -> Call[list[bool]]:
    """See :meth:`bus.store.base.Store.drop`."""
    return Call(script("drop"), jobs, _each)


def _each(answer: Sequence[int]) -> list[bool]:
    return [bool(one) for one in answer]


def pause(name: str, *, paused: bool) -> Call[bool]:
    """See :meth:`bus.store.base.Store.pause` and ``resume``."""
    return Call(script("pause"), (name, int(paused)), bool)


def census() -> Call[Census]:
    """See :meth:`bus.store.base.Store.census`."""
    return Call(script("census"), (), _census)


def rights(commands: Sequence[str]) -> Call[tuple[str, ...]]:
    """Which of these commands the user may not use (see :mod:`bus.store.redis.server`)."""
    return Call(script("rights"), commands, lambda answer: tuple(name.decode() for name in answer))


def _census(answer: Sequence[Any]) -> Census:
    serves = zip(answer[1][::2], answer[1][1::2], strict=True)
    counts, at = [], 2
    while at < len(answer):
        name, unfinished, ready, delayed, held, suspects, oldest, workers = answer[at : at + 8]
        at += 8
        pairs = answer[at : at + 2 * workers]
        at += 2 * workers
        queue, _, handler = name.decode().partition("|")
        in_flight = {worker.decode(): int(n) for worker, n in zip(pairs[::2], pairs[1::2], strict=True)}
        counts.append(Count(queue, handler, unfinished, ready, delayed, held, suspects, in_flight, oldest))
    return Census(
        frozenset(name.decode() for name in answer[0]),
        {worker.decode(): frozenset(names.decode().split()) for worker, names in serves},
        sorted(counts),
    )


def retrying(limit: int) -> Call[list[Retrying]]:
    """See :meth:`bus.store.base.Store.retrying`."""

    def found(answer: Sequence[Any]) -> list[Retrying]:
        rows = [answer[at : at + 9] for at in range(0, len(answer), 9)]
        return [
            Retrying(
                job.decode(),
                Route(queue.decode(), handler.decode(), int(priority)),
                key.decode(),
                due,
                behind,
                body,
                notes,
            )
            for job, priority, queue, handler, key, due, behind, body, notes in rows
        ]

    return Call(script("retrying"), (limit,), found)


def record(job: str, step: str, value: bytes, linger_ms: int) -> Call[bytes]:
    """See :meth:`bus.store.base.Store.record`."""
    return Call(script("record"), (job, step, value, linger_ms), bytes)


def flush(queue: str, handler: str) -> Call[int]:
    """See :meth:`bus.store.base.Store.flush`."""
    return Call(script("flush"), (queue, handler), int)
