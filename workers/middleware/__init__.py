"""The middleware stack of an app's broker, in one place, with the reasons for its order.

Dramatiq runs "before" hooks from first to last and "after" hooks from last to first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dramatiq.middleware import Middleware

from bus.bindings import Binding
from workers.middleware.current import CURRENT, CurrentJob
from workers.middleware.following import Callbacks, Pipelines
from workers.middleware.lifecycle import EXIT_BOOT, EXIT_USAGE, Lifecycle, WorkerBootError
from workers.middleware.limits import AgeLimit, ShutdownNotifications, TimeLimit
from workers.middleware.retries import LaneRetries, NotForUs, Unreadable
from workers.middleware.telling import Telling
from workers.runtime import Runtime

__all__ = [
    "CURRENT",
    "EXIT_BOOT",
    "EXIT_USAGE",
    "CurrentJob",
    "LaneRetries",
    "Lifecycle",
    "NotForUs",
    "Telling",
    "Unreadable",
    "WorkerBootError",
    "stack",
]


def stack(runtime: Runtime, bindings: Callable[[], Iterable[Binding]]) -> list[Middleware]:
    """The default stack."""
    return [
        AgeLimit(),  # first as in Dramatiq's own stack, so that before= and after= it mean what they mean there
        Lifecycle(runtime, bindings),  # the first with anything to boot, and the last to see a shutdown end
        TimeLimit(),
        ShutdownNotifications(),
        CurrentJob(),  # before callbacks and pipelines, so that what they enqueue has its cause
        Callbacks(),
        Pipelines(),
        # Next to the handler, after all that may skip a message, so that only what runs is started and our hooks do not
        # count as its time; and before those who judge, for "after" hooks run backwards, and it tells what they have judged.
        *([] if runtime.teller.mute else [Telling(runtime.teller)]),
        LaneRetries(),  # the first to judge an outcome: what follows may look at message.failed
    ]
