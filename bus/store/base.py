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

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from bus.position import Position
from bus.store.facts import Facts
from bus.store.jobs import (
    ALONE,
    COMPANY,
    PATIENCE_MS,
    PRIORITIES,
    SUSPECT,
    Beat,
    Census,
    Company,
    Count,
    Dead,
    Exchange,
    Job,
    Retrying,
    Route,
    Settlement,
    Take,
    Taken,
    Verdict,
    Woken,
)
from bus.store.records import (
    CONFIRMED,
    NO_LIMITS,
    QUIET,
    Announced,
    Appended,
    Batch,
    Bindings,
    Confirmed,
    Ended,
    Entry,
    Frame,
    Heard,
    Limits,
    OwnLimits,
    Page,
    Post,
    Quiet,
    Stale,
    Whisper,
    decode_frame,
    encode_frame,
)

__all__ = [
    "ALONE",
    "COMPANY",
    "CONFIRMED",
    "NO_LIMITS",
    "PATIENCE_MS",
    "PRIORITIES",
    "QUIET",
    "SUSPECT",
    "Announced",
    "Appended",
    "Batch",
    "Beat",
    "Bindings",
    "Census",
    "Company",
    "Confirmed",
    "Count",
    "Cues",
    "Dead",
    "Ended",
    "Entry",
    "Exchange",
    "Facts",
    "Frame",
    "Heard",
    "Job",
    "Limits",
    "LoopStore",
    "OwnLimits",
    "Page",
    "Post",
    "Quiet",
    "Retrying",
    "Route",
    "Settlement",
    "Stale",
    "Store",
    "Take",
    "Taken",
    "Verdict",
    "Whisper",
    "Woken",
    "decode_frame",
    "encode_frame",
]


class LoopStore(Protocol):
    """The log side on one event loop. Made by :meth:`Store.on_loop`; every method belongs to that loop."""

    async def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        """As :meth:`Store.append`, without blocking the loop."""

    async def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        """As :meth:`Store.announce`, without blocking the loop."""

    async def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        """As :meth:`Store.close_log`, without blocking the loop."""

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        """As :meth:`Store.read`, without blocking the loop."""

    async def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        """As :meth:`Store.seek`, without blocking the loop."""

    def subscribe(self, log: str) -> AsyncIterator[Heard]:
        """Live frames of a log, after a first :data:`CONFIRMED`; again one whenever frames may have been missed.

        Where a link may go silent without a word, a :data:`QUIET` now and then asks for a look at the log. Raises
        :class:`~bus.errors.BusUnavailable` when the link is dead; call again to go on. Close it with ``aclose``.
        """

    async def close(self) -> None:
        """Close this loop's connections, within a deadline. Safe twice."""


class Cues(Protocol):
    """Where one thread of a worker that stands by hears of the job that it is handed. Made by :meth:`Store.cues`."""

    def hear(self, timeout_s: float | None) -> Taken | None:
        """Wait for the next one, for so long, or until :meth:`call`. For one thread at a time.

        Raises :class:`~bus.errors.BusUnavailable` where the link is dead, or closed: then there will be no more.
        """

    def call(self) -> None:
        """End a wait now, or the next one. From any thread; never blocks."""

    def close(self) -> None:
        """Hang up: nothing is handed over any more. From any thread; safe twice."""


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

    def facts(self) -> Facts:
        """Look at the server below, fit or not; needs no :meth:`open`. Some round trips, and nothing is written.

        Raises :class:`~bus.errors.BusUnavailable`.
        """

    def on_loop(self) -> LoopStore:
        """The log side for the running event loop; the caller closes it on that same loop."""

    # the log side

    def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        """Number, log, announce and queue every post that is new: each event whole or not at all.

        An answer for each post, in their order, which is that of the log. They may be fewer than the posts, but not none: then
        the others were not appended, and what was in the way is told to who appends them again. A closed log takes nothing
        new (:class:`Ended`); of posts that it has already, all of a batch, the positions are told still.
        """

    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        """Tell live listeners only, in order: no number, no record. Returns the top of the log, and how many heard it."""

    def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        """End a log, which need not exist yet: announce that, and say so on every page from now on. Returns its top.

        Entries stay for as long as their age allows; the end is remembered for 30 days, or longer where they stay
        longer. Then the log is as if it had never been, and another life of it may begin. Safe twice: announces again.
        """

    def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        """At most ``limit`` entries with ``seq > after``. ``epoch`` is offered to a log that has none yet."""

    def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        """The position after which come exactly the entries that were appended at that time or later, of those kept.

        Where that is all of them, the position just before the first. Takes a handful of looks into the log, whatever its
        length. After the store's clock was set back, times in the log are out of order: then the entry before the
        position is older than that time, and the one after it is not, and there may be more such places.
        """

    def logs(self) -> list[str]:
        """The names of all logs that have been written to, sorted; closed ones for as long as their end is remembered."""

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

        A job under which two leases ran out is a *suspect*: it may be what kills its workers. A worker has no more of them at
        a time than :data:`~bus.store.jobs.COMPANY` says, beside fresh work, and never such that lost more leases beside such
        that lost fewer. One that must be alone goes to a worker that holds nothing, which is handed nothing more until it
        has settled it; where no worker is free for it, the next that asks is *set apart*: it is handed nothing until it
        holds nothing, or until :data:`~bus.store.jobs.PATIENCE_MS` is over. Suspects and fresh work take turns.
        """

    def beat(
        self,
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
    ) -> Beat:
        """Renew the worker's lease, hand back what it does not hold, and do the sweep that any worker may do.

        ``held`` names the jobs in the worker's hands, each with the ticket of its take. Of the takes up to its last ``ticket``, but for those whose answers
        are still on their way (``unanswered``), everything else is handed back. The sweep recovers the jobs of expired leases (to the head of their lanes, or as ``poison`` to the dead
        letters once ``max_lost`` leases ran out under one; five, or innocents may end so too), moves due work to its lanes and drops dead letters past
        their retention, and rings again wherever work is ready and nobody was told. ``serves`` names what the worker takes
        work for (``queue|handler``), for the census. Where the last beat of a worker said ``stopping``, what it left behind
        is recovered as well, but no lease counts as lost: it did not die of that. With a ``standby`` it stands by under
        that ticket from now on (see :meth:`cues`), otherwise no longer.
        """

    def leave(self, worker: str) -> int:
        """Hand back all that the worker still holds, in the order of its takes, and end its lease; no sweep.

        Returns how many. Safe twice.
        """

    def wait(self, names: Sequence[str], timeout_s: float, worker: str = "", takes: Sequence[Take] = ()) -> Woken:
        """Block until one of the named wake-ups rings or the time is over; then take, in the same round trip.

        The takes are for fresh work, and for a worker that has a lease; one that has none (any more) is handed nothing. Nor is
        anybody while there are suspects or something is paused: then only :meth:`exchange` hands out. ``queue|handler`` rings for one waiter when work is ready there, ``$due`` when delayed work was added,
        ``@worker`` when that worker is :meth:`poked <poke>`. A ring that finds nobody waiting is kept, once.
        """

    def cues(self, worker: str) -> Cues | None:
        """Hear what the worker is handed while it stands by; ``None`` where a ring is as quick.

        A worker that stands by and holds nothing is handed the next new job of what it serves by the very call that queues
        it, unless other work is ready there, something is paused, or there are suspects. It holds that job from then on,
        under the ticket with which it stands by. Whoever hangs up, or dies, is handed nothing. Raises :class:`~bus.errors.BusUnavailable`.
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

    def flush(self, queue: str, handler: str = "") -> int:
        """Drop all unfinished jobs of a queue, or of one handler on it. Returns how many.

        Those in flight too: their settles will be refused.
        """

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

    def record(self, job: str, step: str, value: bytes, linger_ms: int) -> bytes:
        """Keep what a step gave. The first to say counts; returns what is kept. Safe twice.

        All steps of a job are kept as long as the job, its time among the dead letters included, and forgotten together an
        hour after it was done or dropped. Of a job that is not kept (any more) they are forgotten in ``linger_ms``.
        """
