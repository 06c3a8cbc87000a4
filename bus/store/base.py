"""What a store promises: one log side, one queue side, over bytes.

A store keeps *bytes* and knows nothing of events, envelopes or Dramatiq. Two implementations stand beside this file and
pass one contract suite (:mod:`bus.testing`): :class:`~bus.store.memory.MemoryStore` and
:class:`~bus.store.redis.RedisStore`. Whoever writes a third runs the same suite.

Words used here
---------------
log       a numbered, capped record. Entry ``n`` carries its own random *token* and the token of entry ``n - 1``.
          ``epoch`` names one life of the log; a log that lost its data starts another.
route     where a job goes: (queue, handler, priority).
lane      the first-in-first-out mailbox of one (queue, handler, key). Its head stays in the lane while it is worked on,
          so that "back to the head of its lane" needs no move, and nothing behind it can pass.
ticket    the number of the take that handed a job out. A job is settled by (worker, job, ticket); a worker that has
          lost its lease holds no such record any more, so its late settle is refused.

::

    append ──> [delayed] ──due──> lane tail ──head──> ready list ──take──> in flight (leased to a worker)
                                     ^                   ^                    │
                                     │                   ├── back / lease lost┤
                                     └── next in lane ───┤                    ├── ack ──> gone
                                                         └──due── held lane <─┤ retry
                                                                              └── dead ─> dead letters

Rules for every method
----------------------
* :class:`Store` methods block, are safe from any thread, and take whatever their Redis round trip takes.
* :class:`LoopStore` methods belong to the event loop that opened them.
* A lost connection raises :class:`~bus.errors.BusUnavailable`; for a write the outcome is then *unknown*. ``append`` is
  safe to repeat (ids), ``settle`` is safe to repeat (tickets), ``enqueue`` is safe to repeat with the same id.
* Times are the store's own (Redis ``TIME``), in milliseconds; no client's clock is trusted with a lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from bus.position import ROOT_TOKEN, Position

__all__ = [
    "CONFIRMED",
    "PRIORITIES",
    "Appended",
    "Batch",
    "Beat",
    "Bindings",
    "Census",
    "Confirmed",
    "Count",
    "Dead",
    "Entry",
    "Frame",
    "Job",
    "Limits",
    "LoopStore",
    "Page",
    "Post",
    "Retrying",
    "Route",
    "Settlement",
    "Stale",
    "Store",
    "Take",
    "Taken",
    "Verdict",
    "decode_frame",
    "encode_frame",
]

PRIORITIES = 3
"""Priorities are 0 (high), 1 (normal) and 2 (low); a take empties 0 before it looks at 1."""


# -- the log side ------------------------------------------------------------------------------------------------------


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


class Route(NamedTuple):
    """Where jobs go. Names hold no ``|``, control characters or spaces; priority is 0, 1 or 2."""

    queue: str
    handler: str
    priority: int


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


# -- the queue side ----------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """Work without an event (a plain Dramatiq message). ``id`` makes :meth:`Store.enqueue` safe to repeat."""

    id: str
    route: Route
    key: str
    body: bytes
    due: str = ""


class Take(NamedTuple):
    """A wish for at most ``limit`` jobs of these handlers on this queue, under this ticket (higher at each take)."""

    ticket: int
    queue: str
    handlers: tuple[str, ...]
    limit: int


class Taken(NamedTuple):
    """A job in the hands of the worker that took it.

    ``notes`` are the bytes that the last settle left with the job (``b""`` at first), ``lost`` counts the leases that
    ran out under it.
    """

    job: str
    ticket: int
    route: Route
    key: str
    body: bytes
    notes: bytes
    lost: int


Verdict = Literal["ack", "retry", "pass", "dead", "back"]
"""``ack``: done. ``retry``: due again in ``delay_ms``, its lane held meanwhile. ``pass``: the same, but later jobs of the
lane may pass it. ``dead``: to the dead letters. ``back``: at once available again, at the head of its lane."""


class Settlement(NamedTuple):
    """The end of one delivery. ``notes`` replace the job's notes on retry, pass and dead."""

    job: str
    ticket: int
    verdict: Verdict
    delay_ms: int = 0
    notes: bytes = b""


class Beat(NamedTuple):
    """What a heartbeat found: when the next delayed work is due (ms from now, ``None`` for never), and what it moved.

    ``forgotten``: the store did not know the worker. It is the first beat, or the lease had run out, or the store has
    lost its data, bindings included.
    """

    next_due_ms: int | None
    recovered: int
    handed_back: int
    forgotten: bool


class Count(NamedTuple):
    """The unfinished work of one handler on one queue.

    ``ready`` are entries that can be taken now (a lane with work counts once), ``delayed`` jobs that are not due yet,
    ``held`` lanes that wait for the retry of their head, ``suspects`` jobs that wait to be taken alone, ``in_flight`` jobs
    by worker. ``unfinished`` counts every job; what is in none of the others waits in a lane behind another. ``oldest`` is
    the body of the oldest ready job.
    """

    queue: str
    handler: str
    unfinished: int
    ready: int
    delayed: int
    held: int
    suspects: int
    in_flight: Mapping[str, int]
    oldest: bytes


class Census(NamedTuple):
    """A look at all the work of a namespace: what is paused, and the counts by queue and handler, in order of name.

    ``serving`` says of each worker with a lease for what it takes work: ``queue|handler``, as its last beat told.
    """

    paused: frozenset[str]
    serving: Mapping[str, frozenset[str]]
    counts: list[Count]


class Retrying(NamedTuple):
    """A job that will be tried again in ``due_in_ms``, and the lane that it holds meanwhile, with ``behind`` jobs in it."""

    job: str
    route: Route
    key: str
    due_in_ms: int
    behind: int
    body: bytes
    notes: bytes


class Dead(NamedTuple):
    """A dead letter. ``reason`` is the store's own word (``dead``: settled so; ``poison``: lost too many leases)."""

    job: str
    at_ms: int
    reason: str
    route: Route
    key: str
    body: bytes
    notes: bytes
    lost: int


# -- the protocols -----------------------------------------------------------------------------------------------------


class LoopStore(Protocol):
    """The log side on one event loop. Made by :meth:`Store.on_loop`; every method belongs to that loop."""

    async def append(self, batches: Sequence[Batch]) -> list[list[Appended] | Stale]:
        """As :meth:`Store.append`, without blocking the loop."""

    async def announce(self, log: str, epoch: str, topics: str, body: bytes) -> Position:
        """As :meth:`Store.announce`, without blocking the loop."""

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        """As :meth:`Store.read`, without blocking the loop."""

    def subscribe(self, log: str) -> AsyncIterator[Frame | Confirmed]:
        """Live frames of a log, after a first :data:`CONFIRMED`; again one whenever frames may have been missed.

        Raises :class:`~bus.errors.BusUnavailable` when the link is dead; call again to go on. Close it with ``aclose``.
        """

    async def close(self) -> None:
        """Close this loop's connections, within a deadline. Safe twice."""


class Store(Protocol):
    """Logs and queues of one namespace. Blocking, and safe from any thread."""

    @property
    def mode(self) -> str:
        """``"memory"`` or ``"redis"``."""

    def open(self) -> None:
        """Reach the server and check that it is fit for use. Safe twice.

        Raises :class:`~bus.errors.BusUnavailable`, or :class:`~bus.errors.UnsafeServer` for one that may lose data.
        """

    def close(self) -> None:
        """Close all connections of the blocking side. Safe twice; usable again after :meth:`open`."""

    def on_loop(self) -> LoopStore:
        """The log side for the running event loop; the caller closes it on that same loop."""

    # the log side

    def append(self, batches: Sequence[Batch]) -> list[list[Appended] | Stale]:
        """Number, log, announce and queue every post that is new: each event whole or not at all.

        A round trip and an answer for each batch, in order; the first failure ends it. Events of one log keep the order of the posts.
        """

    def announce(self, log: str, epoch: str, topics: str, body: bytes) -> Position:
        """Tell live listeners only: no number, no record. Returns the top of the log at that moment."""

    def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        """At most ``limit`` entries with ``seq > after``. ``epoch`` is offered to a log that has none yet."""

    def logs(self) -> list[str]:
        """The names of all logs that have been written to, sorted."""

    # bindings

    def bind(self, bindings: Bindings) -> int:
        """Add or replace bindings by handler name. Returns the version; it moves only where something changed."""

    def unbind(self, handlers: Sequence[str]) -> list[bool]:
        """Remove bindings; ``False`` for a name that has none. What is queued already stays queued. Safe twice."""

    def bindings(self) -> Stale:
        """The current version and all bindings."""

    # the queue side

    def enqueue(self, job: Job, window_ms: int) -> bool:
        """Queue one job; ``False`` if that id was queued within the window already. An event may have the same id."""

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        """Settle, then take, in one round trip. A settlement that the worker has no right to is refused (``False``).

        A job under which two leases ran out is a *suspect*: it may be what kills its workers. A suspect goes only to a
        worker that holds nothing, alone in its take, and that worker is handed nothing more until it has settled it. Where
        no worker is free for one, the next that asks is *set apart*: it is handed nothing until it holds nothing.
        """

    def beat(
        self, worker: str, lease_ms: int, received: int, held: Sequence[str], max_lost: int, serves: Sequence[str] = ()
    ) -> Beat:
        """Renew the worker's lease, hand back what it does not hold, and do the sweep that any worker may do.

        ``held`` names the jobs in the worker's hands; of the takes up to ticket ``received`` everything else is handed
        back. The sweep recovers the jobs of expired leases (to the head of their lanes, or as ``poison`` to the dead
        letters once ``max_lost`` leases ran out under one), moves due work to its lanes and drops dead letters past
        their retention, and rings again wherever work is ready and nobody was told. ``serves`` names what the worker takes
        work for (``queue|handler``), for the census.
        """

    def leave(self, worker: str) -> int:
        """Hand back all that the worker still holds, in the order of its takes, and end its lease; no sweep.

        Returns how many. Safe twice.
        """

    def wait(self, names: Sequence[str], timeout_s: float) -> str | None:
        """Block until one of the named wake-ups rings (its name is returned) or the time is over (``None``).

        ``queue|handler`` rings for one waiter when work is ready there, ``$due`` when delayed work was added,
        ``@worker`` when that worker is :meth:`poked <poke>`. A ring that finds nobody waiting is kept, once.
        """

    def poke(self, name: str) -> None:
        """Ring a wake-up by hand. Never blocks for long; safe from any thread."""

    def pause(self, name: str) -> bool:
        """Have nothing of a queue (``queue``) or of one handler (``queue|handler``) taken any more, by anybody.

        What was taken is finished. Returns whether that changed something; it lasts until :meth:`resume`.
        """

    def resume(self, name: str) -> bool:
        """Undo :meth:`pause`, and ring for what has come meanwhile. Returns whether it was paused."""

    def census(self) -> Census:
        """How much work there is, by queue and handler. For people and tools: it costs more than a publish."""

    def retrying(self, limit: int = 100) -> list[Retrying]:
        """Lanes that wait for the retry of their head, the next due first. Costs as much as a census."""

    def pending(self, queue: str) -> int:
        """Jobs of a queue that are not finished: ready, waiting in lanes, delayed, held or in flight."""

    def queues(self) -> list[str]:
        """The names of all queues that hold or held jobs, sorted."""

    def flush(self, queue: str) -> int:
        """Drop all unfinished jobs of a queue (in flight ones too: their settles will be refused). Returns how many."""

    def replay(self, jobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Make dead letters work again: (job, the notes to begin anew with), each to the tail of its lane, in order.

        ``False`` for one that is no dead letter (any more). Leases that ran out under it are forgotten.
        """

    def drop(self, jobs: Sequence[str]) -> list[bool]:
        """Drop dead letters for good; ``False`` for one that is none. Safe twice."""

    def dead_letter(self, job: str) -> Dead | None:
        """One dead letter, or ``None`` where there is none of that number."""

    def dead(self, limit: int = 100, skip: int = 0) -> list[Dead]:
        """The newest dead letters, newest first."""

    def dead_count(self) -> int:
        """How many dead letters are kept."""

    # the step ledger

    def recall(self, job: str, step: str) -> bytes | None:
        """What a step of a job gave, or ``None`` where that is not recorded (any more)."""

    def record(self, job: str, step: str, value: bytes, keep_ms: int) -> bytes:
        """Keep what a step gave. The first to say counts; returns what is kept. Safe twice.

        All steps of a job are forgotten together: ``keep_ms`` after the last was recorded, or an hour after the job was
        done or dropped.
        """


class Exchange(NamedTuple):
    """The answers of :meth:`Store.exchange`, in the order of the questions.

    ``apart`` names the queue with a suspect for which the worker is set apart, or nothing: then it is of no use to ask
    again before it holds nothing, and that queue should ask first.
    """

    settled: list[bool]
    taken: list[Taken]
    apart: str = ""


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
