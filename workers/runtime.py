"""What a worker process has open while it works, and the order in which it opens and closes.

::

    boot:  bus -> teller -> event loop -> the bus's side on it -> lifespans, in order -> bindings -> lease -> stage -> work
    stop:  quiet (take no more) -> work ends -> async work past the grace is cancelled -> lifespans, in reverse -> the bus's side
           (connections closed, listeners ended) -> event loop (tasks cancelled) -> lease -> teller (has told it all) -> bus
                                              beside these, from the first on: goodbye (settle, hand back)

A boot that fails closes what had opened, in reverse. Every step of a stop has a deadline. Lifespans do not wait for the
goodbye: they close though the server hangs.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from dramatiq import Worker

from bus import Bus, BusError
from bus.bindings import Binding
from workers.broker import LaneBroker
from workers.errors import BootFailed
from workers.loop import Stage, WorkerLoop
from workers.notices import WorkerBooted, WorkerQuiet, WorkerStopped
from workers.resources import Lifespan, Resources
from workers.teller import Teller
from workers.whereabouts import apps_part, counted

__all__ = ["Runtime"]

BOOT_S = 60.0
STOP_S = 5.0
"""For all of a stop, once the grace is over: well below what the watchdog allows (``workers/leaving.py``)."""
CANCEL_S = 3.0
SETTLE_S = 1.0
LEAST_S = 0.5
"""Whatever was used up by what came before."""
MOST_JOBS = 5
"""Of those that do not end, so many are named by their numbers."""

log = logging.getLogger("callboard.workers")


class Runtime:
    """One for each App. ``start`` and ``stop`` bear being called twice."""

    def __init__(self, bus: Bus, lifespans: Sequence[Lifespan], teller: Teller) -> None:
        self.teller = teller
        self.loop = WorkerLoop()
        self.stage = Stage(self.loop)
        self.stopping = False
        self.failed = False
        """Whether something of the app's own, its handlers apart, has not ended as it should: a lifespan, a task."""
        self.when_lost: Callable[[], object] | None = None
        """What ends this process where a lifespan has failed, if its command line knows better than by SIGTERM."""
        self._bus = bus
        self._lifespans = lifespans
        self._resources: Resources | None = None
        self._worker: Worker | None = None
        self._working = False
        self._quiet_at: float | None = None

    def start(self, broker: LaneBroker, worker: Worker, bindings: Callable[[], Iterable[Binding]]) -> None:
        """Open everything. Raises :class:`~workers.errors.BootFailed`, with the cause behind it, and leaves nothing open."""
        if self._resources is not None:
            if worker is not self._worker:
                raise BootFailed(
                    "a worker of this app works in this process: one at a time, with as many threads as you like"
                )
            return
        self._worker = worker
        self.stopping = self.failed = False
        began_at = time.monotonic()
        try:
            self._bus.usable()
            self.teller.start(broker.lease.renew())
            self.loop.start()
            self._resources = Resources(self._bus, self._lifespans, partial(self._lose, broker))
            self.loop.call(self._resources.open(), BOOT_S)
            self._bus.bind(bindings())
            # A server that comes back empty knows no bindings, and publishers would queue work for nobody.
            broker.lease.start(lambda: self._bus.bind(bindings()), broker.bury_poison)
            self.stage.open(broker, worker)
        except BaseException as error:
            hint = self._resources.hint if self._resources is not None else ""
            self.stop(broker)
            if not isinstance(error, Exception):
                raise
            cause = error.with_traceback(apps_part(error.__traceback__))  # our own frames tell nobody anything
            raise BootFailed(f"the worker could not start: {_line(error)}{hint}") from cause
        self._working = True
        self._tell_of_pauses(broker)
        self.teller.say(WorkerBooted, boot_ms=_ms_since(began_at))
        if self.failed:  # a lifespan is lost already
            self.quiet(broker)

    def runs(self, worker: Worker) -> bool:
        """Whether it is this worker's: one that was refused must not stop the other."""
        return self._worker in (None, worker)

    def runs_on(self, thread: threading.Thread) -> bool:
        """Whether async handlers, the hooks around them, or what they have called on a thread run on this one."""
        return self.loop.runs_on(thread) or self.stage.backstage.runs_on(thread)

    def quiet(self, broker: LaneBroker) -> None:
        """Take no more work. Handlers see ``ctx.cancelled``. Safe twice."""
        self.stopping = True
        broker.lease.be_quiet()
        if self._working:
            self._working, self._quiet_at = False, time.monotonic()
            self.teller.say(WorkerQuiet, running=broker.lease.running())

    def stop(self, broker: LaneBroker) -> None:
        """Close everything that is open, in reverse. A step that fails or hangs is logged and the next one follows."""
        self.quiet(broker)
        ends_at = time.monotonic() + STOP_S
        self._end_running(broker)
        self._name_what_hangs(broker)
        _try("the stage", self.stage.close)
        broker.lease.end()
        _try("the worker's resources", lambda: self._close_resources(_left_s(ends_at)))
        _try("the event loop", lambda: self._end_loop(_left_s(ends_at)))
        _try("the lease", broker.close)
        if self._quiet_at is not None:
            self.teller.say(WorkerStopped, stop_ms=_ms_since(self._quiet_at))
            self._quiet_at = None
        _try("the teller", self.teller.close)
        _try("the bus", self._bus.rest)
        self._worker = None

    def _tell_of_pauses(self, broker: LaneBroker) -> None:
        """Whoever starts a worker that then does nothing should know why."""
        try:
            paused = self._bus.store.census().paused
        except BusError as error:
            log.debug("what is paused could not be looked up: %s", error)
            return
        called = {queue: queue for queue in broker.queues}
        called |= {f"{queue}|{name}": name for queue in broker.queues for name in broker.handlers_of(queue)}
        if halted := sorted(name for place, name in called.items() if place in paused):
            log.warning("paused, and nothing of it is taken until 'callboard queues resume': %s", ", ".join(halted))

    def _lose(self, broker: LaneBroker) -> None:
        """A lifespan has failed while it was open: what needs it must not go on taking work."""
        ends_already, self.failed = self.failed or self.stopping, True
        self.quiet(broker)
        if ends_already:
            return
        if self.when_lost is not None:
            self.when_lost()
        elif broker.owns_process:
            os.kill(os.getpid(), signal.SIGTERM)  # to the main thread: this is the loop's
        else:
            log.error("a lifespan has failed: this worker takes no more work; stop it, and start it again")

    def _close_resources(self, timeout_s: float) -> None:
        resources, self._resources = self._resources, None
        if resources is None:
            return
        try:
            self.loop.call(resources.close(), timeout_s)
        except TimeoutError:
            self.failed = True
            log.warning("%s did not close in time and is left behind", resources.at_hand)
        self.failed = self.failed or resources.unclean

    def _end_loop(self, timeout_s: float) -> None:
        left = self.loop.stop(timeout_s, self.stage.tasks())
        if left:
            self.failed = True
            log.warning("left behind on the event loop, for it does not let itself be cancelled: %s", counted(left))

    def _end_running(self, broker: LaneBroker) -> None:
        """Past the grace, async handlers are cancelled, and settled (handed back), before the lease is given up."""
        if self._resources is None or not broker.lease.running():
            return
        latest = time.monotonic() + CANCEL_S
        self.stage.cancel(CANCEL_S)
        deadline = min(latest, time.monotonic() + SETTLE_S)
        while broker.lease.running() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _name_what_hangs(self, broker: LaneBroker) -> None:
        """What neither ended within the grace nor let itself be cancelled: before somebody has to leave by force."""
        at_work = broker.lease.books.at_work()
        if at_work:
            jobs = ", ".join(job for _, job in at_work[:MOST_JOBS]) + (", ..." if len(at_work) > MOST_JOBS else "")
            handlers = counted(handler for handler, _ in at_work)
            place = self.loop.blocked_at()
            why = f", for the event loop is blocked at {place}" if place else ""
            log.warning("the grace is over, and these handlers do not end%s: %s (jobs %s)", why, handlers, jobs)


def _try(what: str, close: Callable[[], None]) -> None:
    try:
        close()
    except Exception:
        log.exception("closing %s failed; going on", what)


def _left_s(ends_at: float) -> float:
    return max(LEAST_S, ends_at - time.monotonic())


def _ms_since(at: float) -> float:
    return round((time.monotonic() - at) * 1000, 3)


def _line(error: Exception) -> str:
    """Our own errors say it all; of a foreign one the kind is needed as well."""
    return f"{error}" if type(error).__module__.startswith(("bus", "workers")) else f"{type(error).__name__}: {error}"
