"""The words of a store's queue side: jobs and where they go, taking and settling, and what people ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

__all__ = [
    "ALONE",
    "COMPANY",
    "PATIENCE_MS",
    "PRIORITIES",
    "SUSPECT",
    "Beat",
    "Census",
    "Company",
    "Count",
    "Dead",
    "Exchange",
    "Job",
    "Retrying",
    "Route",
    "Settlement",
    "Take",
    "Taken",
    "Verdict",
    "Woken",
]

PRIORITIES = 3
"""Priorities are 0 (high), 1 (normal) and 2 (low); a take empties 0 before it looks at 1."""


class Route(NamedTuple):
    """Where jobs go. Names hold no ``|``, control characters or spaces; priority is 0, 1 or 2."""

    queue: str
    handler: str
    priority: int


class Job(NamedTuple):
    """Work without an event (a plain Dramatiq message). ``id`` makes :meth:`Store.enqueue` safe to repeat."""

    id: str
    route: Route
    key: str
    body: bytes
    due: str = ""


class Take(NamedTuple):
    """A wish for at most ``limit`` jobs of these handlers on this queue, under this ticket (higher at each take).

    ``most`` says how many of each handler at the most, in their order; nothing there means ``limit`` for each. ``idle``:
    nothing is in the worker's hands by its own books. They may know of work that goes on though the store struck it out
    (its queue was dropped, its lease ran out), and only where neither knows of any a suspect is handed out to be alone.
    """

    ticket: int
    queue: str
    handlers: tuple[str, ...]
    limit: int
    most: tuple[int, ...] = ()
    idle: bool = True


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


SUSPECT = 2
"""Leases that ran out under a job before it is a suspect. Not one: or all that a killed worker held would be made to wait."""

Company = tuple[int, int, int]
COMPANY: Company = (256, 16, 1)
"""How many suspects a worker has at a time: of those under which two leases ran out, three, and more than that.

One of them may kill its worker, and nobody knows which. So they are in smaller company each time, and all alone the last time
before ``max_lost`` (five): then no innocent job ends as poison, and thousands that were in flight in a worker that was
killed do not wait for one another.
"""
ALONE = SUSPECT + len(COMPANY) - 1
"""Leases that ran out under a job before it is taken alone."""
PATIENCE_MS = 60_000
"""How long a worker is set apart to make room for such a job, at first.

If it is in vain, for something there does not end, it is another worker's turn; it works on for as long, and then it may be
set apart again, each time for twice as long, up to ten minutes: what Dramatiq allows a job by default. So no ordinary handler
takes too long to be waited for, and none stops a worker for good.
"""


class Settlement(NamedTuple):
    """The end of one delivery. ``notes`` replace the job's notes on retry, pass and dead."""

    job: str
    ticket: int
    verdict: Verdict
    delay_ms: int = 0
    notes: bytes = b""


class Beat(NamedTuple):
    """What a heartbeat found: when the next delayed work is due (ms from now, ``None`` for never), and what it moved.

    Of the recovered ones the jobs ``buried`` had lost too many leases and went to the dead letters. ``forgotten``: the store did not know the worker. It is the first beat, or the lease had run out, or the store has
    lost its data, bindings included.
    """

    next_due_ms: int | None
    recovered: int
    handed_back: int
    forgotten: bool
    buried: Sequence[str] = ()


class Count(NamedTuple):
    """The unfinished work of one handler on one queue.

    ``ready`` are entries that can be taken now (a lane with work counts once), ``delayed`` jobs that are not due yet,
    ``held`` lanes that wait for the retry of their head, ``suspects`` jobs that may be taken a few at a time,
    ``in_flight`` jobs by worker. ``unfinished`` counts every job; what is in none of the others waits in a lane behind another. ``oldest`` is
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


class Exchange(NamedTuple):
    """The answers of :meth:`Store.exchange`, in the order of the questions.

    ``apart`` names the handler (``queue|handler``) for whose suspect the worker is set apart, or nothing. Then it is of little
    use to ask again before it holds nothing (now and then: another worker may have taken it meanwhile), and that handler's
    work should be asked for first, by itself.
    """

    settled: list[bool]
    taken: list[Taken]
    apart: str = ""


class Woken(NamedTuple):
    """The end of a :meth:`Store.wait`: the name that rang, or ``None`` for the time, and what was taken thereupon."""

    rang: str | None
    taken: list[Taken]
