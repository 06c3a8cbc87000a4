"""The Dramatiq broker whose queues are lanes in the bus's store.

One class serves both modes; in memory it is a ``StubBroker`` as well, so that Dramatiq's testing idioms work unchanged.
There are no delay queues: delayed work stays in the store until it is due.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import MiddlewareError

from bus import Bus, BusUnavailable, UnsafeServer
from bus.clock import Clock
from bus.store.base import Store, Taken
from workers.broker.consumer import LaneConsumer
from workers.broker.lease import Lease
from workers.broker.message import POISON, Buried, LaneMessage, job_of, open_job
from workers.broker.options import check_options
from workers.broker.staff import Staff
from workers.broker.view import QueueView
from workers.errors import BootFailed, InvalidHandler

__all__ = ["LaneBroker", "MemoryBroker", "make_broker"]

JOIN_POLL_S = 0.002
JOIN_POLL_MOST_S = 0.05
REACH_PAUSE_S = 0.1
JOB_ENDS = ("process_message", "skip_message")
MOST_UNSURE = 1_000
"""Messages of unknown fate that are remembered, so that enqueueing one again does not make it two."""


Hook = tuple[Middleware, Callable[..., None]]
"""A middleware, and what it does."""


class LaneBroker(Broker):
    """Made by :class:`workers.App`. Everything that reaches the store raises ``ConnectionClosed`` when it is away."""

    letters_in_sight = 100
    """How many of a queue's ``dead_letters`` are kept here: a worker inside a server must not gather them for ever."""

    def __init__(
        self, bus: Bus, middleware: list[Middleware], *, concurrency: int = 1000, fail_fast_default: bool = True
    ) -> None:
        self.bus = bus
        self.fail_fast_default = fail_fast_default
        self.owns_process = False
        """Set by a command line whose process only works: a boot that fails ends it, with an exit code."""
        self.must_succeed: frozenset[str] = frozenset()
        """Signals whose hooks may not fail: a command line that starts a worker names those of the boot."""
        self.usual_prefetch: int | None = None
        """What the worker prefetches where nobody has chosen a number."""
        self.dead_letters_by_queue: defaultdict[str, list[MessageProxy]] = defaultdict(list)
        self.staff = Staff()
        self.lease = Lease(lambda: bus.store, int(bus.limits.lease_s * 1000), self.staff, concurrency)
        self._unsure: dict[str, str] = {}  # message id -> id of the job that it may have become
        self._stack: list[Middleware] = []
        self._hooks: dict[str, list[Hook]] = {}
        super().__init__(middleware)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.bus!r} with {len(self.actors)} actors on {len(self.queues)} queues>"

    @property
    def clock(self) -> Clock:
        """The bus's."""
        return self.bus.clock

    @property
    def store(self) -> Store:
        """The bus's store, reached."""
        return self.bus.store

    @property
    def dead_letters(self) -> list[MessageProxy]:
        """The last messages that went to the dead letters in this process, for tests; the store has all of them."""
        return [message for messages in self.dead_letters_by_queue.values() for message in messages]

    def bury(self, message: LaneMessage) -> None:
        """Keep it in sight of tests, with its exception; a process that only works gathers none."""
        self._tell_of(message.buried())
        if not self.owns_process:
            message.keep_exception = True
            letters = self.dead_letters_by_queue[message.queue_name]
            letters.append(message)
            del letters[: -self.letters_in_sight]

    def bury_unread(self, taken: Taken, error: str) -> None:
        """A job goes to the dead letters, and no message of this process ever was it."""
        try:
            self._tell_of(open_job(taken, self.clock).buried()._replace(error=error))
        except Exception:  # noqa: BLE001 - that may be why
            self._tell_of(Buried(taken.route, "", 1, error))

    def bury_poison(self, jobs: Sequence[str]) -> None:
        """The sweep of this process has buried these. Blocks for two round trips each. Raises ``BusUnavailable``."""
        for job in jobs:
            dead = self.store.dead_letter(job)
            if dead is not None:
                self.bury_unread(Taken(job, 0, dead.route, dead.key, dead.body, dead.notes, dead.lost), POISON)

    def _tell_of(self, buried: Buried) -> None:
        """A signal of our own, for every death that this process brings about or finds: ``after_bury``."""
        self.emit_after("bury", buried)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    # Six hooks a message, ten middleware, and nearly all of them empty: call only those that do something. Who that is is
    # mostly known, and looked up where it is needed: a call to find it out would be made four times a job.

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """As Dramatiq's, without the detour through hooks that a middleware does not have."""
        hook = "before_" + signal
        known = self._hooks.get(hook) if self.middleware == self._stack else None
        for middleware, act in known if known is not None else self._listening(hook):
            try:
                act(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is logged or raised
                self._failed(middleware, "before", signal, error)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """As :meth:`emit_before`, from the last middleware to the first, and whatever they raise is logged.

        An exit too, where a job has ended: the others have yet to judge it, and to tell its end.
        """
        hook = "after_" + signal
        known = self._hooks.get(hook) if self.middleware == self._stack else None
        for middleware, act in reversed(known if known is not None else self._listening(hook)):
            try:
                act(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is logged or raised
                self._failed(middleware, "after", signal, error)
            except BaseException as wish:
                # On the main thread it may be a signal's (in a test that drains there).
                if signal not in JOB_ENDS or threading.current_thread() is threading.main_thread():
                    raise
                self._failed(middleware, "after", signal, wish)

    def _failed(self, middleware: Middleware, when: str, signal: str, error: BaseException) -> None:
        """Log it, as Dramatiq does, unless somebody has said that it may not fail."""
        if signal in self.must_succeed:
            why = f"{type(error).__name__}: {error}"
            raise BootFailed(f"the worker could not start: {middleware!r} failed in {when}_{signal}: {why}") from error
        self.logger.critical("%r failed in %s_%s", middleware, when, signal, exc_info=error)

    def _listening(self, hook: str) -> list[Hook]:
        """Who has a hook, remembered until the stack changes (it is a public list, so it is compared).

        Who has found it out just before a change writes it where nobody looks any more.
        """
        if self.middleware != self._stack:
            self._stack, self._hooks = list(self.middleware), {}
        hooks = self._hooks
        found = hooks.get(hook)
        if found is None:
            idle = (None, getattr(Middleware, hook, None))
            found = [(one, getattr(one, hook)) for one in self._stack if getattr(type(one), hook, None) not in idle]
            if hook.startswith("before_"):
                found.sort(key=lambda each: getattr(each[0], "goes_last", False))  # past what an app has added later
            hooks[hook] = found
        return found

    # -- declaring -----------------------------------------------------------------------------------------------------

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue. Safe twice."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = QueueView(self, queue_name)
            self.emit_after("declare_queue", queue_name)

    def declare_actor(self, actor: Any) -> None:
        if "|" in actor.actor_name or not actor.actor_name.isprintable() or " " in actor.actor_name:
            raise InvalidHandler(f"an actor's name has no '|', space or control character: rename {actor.actor_name!r}")
        check_options(actor.actor_name, actor.options)
        if actor.options.get("throws") is not None:
            actor.options["throws"] = _exception_classes(actor.actor_name, actor.options["throws"])
        self.staff.join(actor)
        super().declare_actor(actor)
        self.lease.ring(actor.queue_name)
        self.lease.refresh()

    def handlers_of(self, queue: str) -> tuple[str, ...]:
        """The actors that this process declares on a queue: it takes work for no others."""
        return self.staff.handlers_of(queue)

    # -- messages ------------------------------------------------------------------------------------------------------

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Queue a message, ``delay`` milliseconds from now or for its ``eta``. Such wait in the store, at any distance.

        Raises ``QueueNotFound`` for a queue that no actor of this process declares, and ``ConnectionClosed``, whose cause
        says whether the message was ``refused`` or its fate is ``unknown``: then this process may enqueue the same message
        again within the idempotency window, and it counts once. Otherwise each call queues a job, as Dramatiq's does.
        """
        if message.queue_name not in self.queues:
            raise QueueNotFound(message.queue_name)
        due = f"+{int(delay)}" if delay else ""
        if delay is not None:
            message = message.copy(options={"eta": current_millis() + delay})
        self.emit_before("enqueue", message, delay)
        stored = message.copy()
        eta = stored.options.pop("eta", None)
        if delay is None and isinstance(eta, int | float):
            due = f"={int(eta)}"
        self.put(stored, due)
        self.emit_after("enqueue", message, delay)
        return message

    def put(self, message: Message[Any], due: str = "") -> None:
        """Queue a message as it is, past the middleware; ``due`` as in :class:`bus.store.base.Post`."""
        job_id = self._unsure.pop(message.message_id, None) or str(uuid.uuid4())
        job = job_of(message, job_id, self._priority(message.actor_name), due)
        try:
            self._reach(lambda: self.store.enqueue(job, int(self.bus.limits.window_s * 1000)))
        except ConnectionClosed as error:
            if isinstance(error.__cause__, BusUnavailable) and error.__cause__.outcome == "unknown":
                self._unsure[message.message_id] = job_id
                if len(self._unsure) > MOST_UNSURE:
                    del self._unsure[next(iter(self._unsure))]
            raise

    def _priority(self, actor_name: str) -> int:
        """Dramatiq's priorities are any number, lower first, 0 by default; ours are three."""
        actor = self.actors.get(actor_name)
        priority = actor.priority if actor is not None else 0
        return 1 if priority == 0 else 0 if priority < 0 else 2

    def _reach(self, act: Callable[[], Any]) -> Any:
        """Do something in the store, again within the deadline where the connection broke: ids make that safe."""
        deadline = time.monotonic() + self.bus.limits.deadline_s
        unknown = False
        while True:
            sent_at = time.monotonic()
            try:
                self.bus.usable()
                return act()
            except BusUnavailable as error:
                unknown = unknown or error.outcome == "unknown"  # a later refusal says nothing of what was sent before
                took_s = time.monotonic() - sent_at
                if sent_at + 2 * took_s + REACH_PAUSE_S > deadline or isinstance(error, UnsafeServer):
                    error.outcome = "unknown" if unknown else "refused"
                    raise ConnectionClosed(str(error)) from error
                time.sleep(REACH_PAUSE_S)

    # -- consuming -----------------------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """A consumer of one queue. The first one starts the process's lease, which :meth:`close` ends.

        A worker's own ``prefetch`` lets us take as the pace of the work asks; one that was chosen is held to.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        self.bus.usable()
        self.lease.start()
        exact = self.usual_prefetch is not None and prefetch != self.usual_prefetch
        return LaneConsumer(self, self.lease, queue_name, prefetch, timeout, exact=exact)

    def close(self) -> None:
        """End the lease; what was in flight is handed back. Safe twice."""
        self.lease.close()

    # -- for tests -----------------------------------------------------------------------------------------------------

    def flush(self, queue_name: str) -> None:
        """Drop a queue's unfinished jobs."""
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        self._reach(lambda: self.store.flush(queue_name))

    def flush_all(self) -> None:
        """Drop the unfinished jobs of all declared queues."""
        for queue_name in list(self.queues):
            self.flush(queue_name)
        for messages in self.dead_letters_by_queue.values():
            messages.clear()

    def join(self, queue_name: str, *, timeout: int | None = None, fail_fast: bool | None = None) -> None:
        """Wait until a queue has no unfinished jobs, delayed ones included; ``timeout`` is in milliseconds.

        With ``fail_fast`` the first message that went to the dead letters in this process raises its exception here.
        Raises ``QueueNotFound`` and ``QueueJoinTimeout``.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        pause_s = JOIN_POLL_S
        while self._reach(lambda: self.store.pending(queue_name)):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(f"timed out after {timeout} ms with unfinished jobs on queue {queue_name!r}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, JOIN_POLL_MOST_S)
        if self.fail_fast_default if fail_fast is None else fail_fast:
            for message in self.dead_letters_by_queue[queue_name]:
                raise message._exception or RuntimeError("a message went to the dead letters") from None  # noqa: SLF001


class MemoryBroker(LaneBroker, StubBroker):
    """The broker of a bus in memory: a ``StubBroker`` for Dramatiq's testing idioms, with lanes behind it."""

    letters_in_sight = sys.maxsize

    def put(self, message: Message[Any], due: str = "") -> None:
        """As ever, and take what is for an actor that nobody declared: Dramatiq's worker buries it.

        On Redis such a message waits for a process that knows its actor; in memory a test would wait for ever.
        """
        if message.actor_name not in self.actors:
            self.staff.expect(message.queue_name, message.actor_name)
            self.lease.refresh()
        super().put(message, due)


def _exception_classes(actor: str, throws: Any) -> tuple[type[BaseException], ...]:
    """What ``throws`` names. Anything else would raise in the moment in which a failure is judged."""
    found = tuple(throws) if isinstance(throws, tuple | list) else (throws,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in found):
        raise InvalidHandler(f"throws= of {actor} must be an exception class, or several")
    return found


def make_broker(bus: Bus, middleware: list[Middleware], *, concurrency: int) -> LaneBroker:
    """The broker that fits a bus's mode."""
    kind = MemoryBroker if bus.mode == "memory" else LaneBroker
    return kind(bus, middleware, concurrency=concurrency)
