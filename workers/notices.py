"""What workers tell of themselves and of their work: live, to whoever listens to ``$worker:**`` at that moment.

These names are API: a field or a type is added, never changed. Nothing here carries data of an app's: no payload, no key,
and of an error its class alone.

::

    type                  fields                              told when
    $worker.booted        boot_ms                             all is open, and work is about to be taken
    $worker.quiet         running                             it takes no more work; so many jobs still run
    $worker.stopped       stop_ms                             all is closed; so long after it was quiet
    $worker.started       waited_ms                           a handler is called
    $worker.succeeded     duration_ms                         it returned
    $worker.failed        duration_ms, error                  it raised; retried or dead follows
    $worker.retried       retry_in_ms                         it will be tried again
    $worker.dead          error                               it goes to the dead letters
    $worker.handed_back   duration_ms                         left to another worker, and not an attempt: this one stops, or
                                                              knows no such new version of the event
    $worker.skipped                                           a middleware had it skipped

    topic                 of
    $worker:{worker}                                          the first three
    $worker:{worker}:{handler}                                the others, which have the fields handler, queue, event_id and
                                                              attempt as well

``worker`` is the name of its lease: host, process, and a token. ``event_id`` is the message's id where a plain actor works.
``attempt`` counts from 1. ``duration_ms`` is how long the handler ran (on a thread, with the hooks of middleware that the app
has added); ``waited_ms`` how long ago the event was published, by the publisher's clock and with any delay it was given,
known for the first attempt.

What is started ends once: it succeeded, failed (and was retried or is dead), or was handed back. Only a worker that dies tells
no end. Jobs die unstarted as well: too old (``SkipMessage``), not to be read (``Undecodable``, with an empty ``event_id``), or
``poison``, under which too many workers died: that is told by the worker that found it.

Told is not settled: what a worker could not write because it had lost its lease was told all the same, and will happen
again.
"""

from __future__ import annotations

from bus import Event

__all__ = [
    "JobDead",
    "JobFailed",
    "JobHandedBack",
    "JobNotice",
    "JobRetried",
    "JobSkipped",
    "JobStarted",
    "JobSucceeded",
    "Notice",
    "WorkerBooted",
    "WorkerQuiet",
    "WorkerStopped",
]


class Notice(Event):
    """Anything that a worker tells."""

    worker: str


class WorkerBooted(Notice, type="$worker.booted"):
    """See the table."""

    boot_ms: float


class WorkerQuiet(Notice, type="$worker.quiet"):
    """See the table."""

    running: int


class WorkerStopped(Notice, type="$worker.stopped"):
    """See the table."""

    stop_ms: float


class JobNotice(Notice):
    """Anything that a worker tells of one job."""

    handler: str
    queue: str
    event_id: str
    attempt: int


class JobStarted(JobNotice, type="$worker.started"):
    """See the table."""

    waited_ms: int | None = None


class JobSucceeded(JobNotice, type="$worker.succeeded"):
    """See the table."""

    duration_ms: float


class JobFailed(JobNotice, type="$worker.failed"):
    """See the table."""

    duration_ms: float
    error: str


class JobRetried(JobNotice, type="$worker.retried"):
    """See the table."""

    retry_in_ms: int


class JobDead(JobNotice, type="$worker.dead"):
    """See the table."""

    error: str | None = None


class JobHandedBack(JobNotice, type="$worker.handed_back"):
    """See the table."""

    duration_ms: float


class JobSkipped(JobNotice, type="$worker.skipped"):
    """See the table."""
