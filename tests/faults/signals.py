"""Signals to workers: ``python -m tests.faults signals [--quick] [--only NAME ...] [--json FILE]``.

A row is a state in which a worker is caught, and a way in which it was started. In each the journal proves that the
signal found that state. Then: the process ends within its bound, ``finally`` ran wherever anything can still run, what
was handed back begins elsewhere within a second, nothing is lost, and no process and no connection is left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests import leaks
from tests.faults import harness
from tests.faults.harness import Fault, Finding
from tests.faults.journal import Journal, Run
from tests.faults.processes import Process, state_of
from tests.faults.stage import STAGE, How, Stage
from tests.faults.ways import WAYS, Way, end_strays, strays
from tests.faults.world import World
from tests.waiting import wait_until

__all__ = ["FAULTS", "QUICK", "main"]

AFTER_GRACE_S = 9.0
"""What a stop may take beyond the grace, whatever hangs: 8 s are promised, and one is for a busy machine."""
HANDED_ON_S = 1.0
HUNG_S = 6.0
"""A server that hangs may hold a stop up, but not to the watchdog's deadline."""
LOST_S = 3.0
"""A lost lease is noticed so soon after its end."""


@dataclass(frozen=True)
class Caught:
    """A handler in whose midst the signal comes, and what becomes of it."""

    how: How
    takes_s: float
    grace_s: float
    ends: Literal["done", "cancelled", "left"]
    exit_codes: tuple[int, ...] = (0,)

    def publish(self, world: World) -> str:
        """Publish its event, and one behind it in its lane; returns its id."""
        topic = f"{STAGE}:async" if self.how == "async" else f"{STAGE}:thread"
        first = Stage(n=world.publishing.number(), key="k", how=self.how, takes_s=self.takes_s)
        behind = Stage(n=world.publishing.number(), key="k")
        for event in (first, behind):
            world.publishing.publish(event, topic=topic)
        return f"event-{first.n}"


ASYNC = Caught("async", 60, 0.5, "cancelled")
BRIEF = Caught("async", 1.5, 5, "done")
SYNC = Caught("sync", 1.5, 5, "done")
LONG = Caught("sync", 60, 20, "left", (1,))
RELEASED = Caught("released", 60, 0.5, "left", (0, 1))
HELD = Caught("held", 60, 0.5, "left", (1, -signal.SIGKILL))


# -- catching it in the act --------------------------------------------------------------------------------------------


def begun(world: World, event_id: str) -> Run:
    """The first run of an event. (One that lets its process do nothing else loses its lease, and another may follow.)"""
    world.wait(lambda: world.journal.of(event_id), "the handler to begin", 20)
    return world.journal.of(event_id)[0]


def strike(world: World) -> None:
    """From now on time counts for the handlers: those that were waiting for the signal go on."""
    world.journal.path.with_name("signalled").touch()


def heir_of(world: World) -> Process:
    """Another worker, idle."""
    return WAYS["callboard"].start(world, 3)


def ended(worker: Process, since_s: float, bound_s: float, exit_codes: Sequence[int] | None = (0,)) -> float:
    """Wait for its end, within the bound; returns how long that took."""
    code = worker.wait(bound_s + 10)
    took_s = time.monotonic() - since_s
    assert took_s <= bound_s, f"it ended after {took_s:.1f} s; {bound_s:g} are allowed"
    assert exit_codes is None or code in exit_codes, f"exit code {code}"
    return took_s


def passed_on(world: World, event_id: str, left: Run, since_s: float, within_s: float) -> float:
    """Wait until an event has begun in another process than the one that was left; returns how long after."""

    def runs() -> list[Run]:
        return [run for run in world.journal.of(event_id) if run.pid != left.pid]

    world.wait(runs, f"{event_id} to begin elsewhere", within_s + 5)
    waited_s = runs()[0].began_s - since_s
    assert waited_s <= within_s, f"{event_id} began elsewhere after {waited_s:.1f} s"
    return max(0.0, waited_s)


def clear_away(world: World, *heirs: Process) -> None:
    """Everything is done, and nobody is left but the heirs; then they go too."""
    wait_until(lambda: not strays(world, *heirs), "no process to be left", 3)
    world.drain(world.lease_s + 15)
    for heir in heirs:
        heir.signal(signal.SIGTERM)
    for heir in heirs:
        assert heir.wait(20) == 0
    wait_until(lambda: not strays(world), "the heirs' processes to be gone", 3)
    world.bus.close_sync()
    with world.server.client() as client:
        assert not leaks.connections_left(client, frozenset())


def tidy(run: Callable[[World], Finding]) -> Callable[[World], Finding]:
    def and_tidy(world: World) -> Finding:
        try:
            return run(world)
        finally:
            end_strays(world)

    return and_tidy


# -- the rows ----------------------------------------------------------------------------------------------------------


def idle(way: Way, world: World) -> Finding:
    worker = way.start(world, 5)
    took_s = ended(worker, worker.signal(signal.SIGTERM), 5, None if way.name == "honcho" else (0,))
    assert_closed(world, way)
    clear_away(world)
    return Finding("SIGTERM, idle", f"gone after {took_s:.1f} s", took_s)


def booting(way: Way, world: World) -> Finding:
    worker = way.start(world, 5, wait=False, FAULT_BOOT="1")
    boot = Journal(world.journal.path.with_name("resource"))
    world.wait(boot.runs, "its boot to hang", 30)
    took_s = ended(worker, worker.signal(signal.SIGTERM), 8)
    assert all(run.failed for run in boot.runs()), "its finally ran"
    clear_away(world)
    return Finding("SIGTERM while it boots", f"gone after {took_s:.1f} s, finally ran", took_s)


def at_work(way: Way, caught: Caught, world: World, *, everybody: bool = False) -> Finding:
    worker = way.start(world, caught.grace_s)
    event_id = caught.publish(world)
    begun(world, event_id)
    heir = heir_of(world)
    assert begun(world, event_id).ended_s is None, "it is in the midst of it"
    strike(world)
    for pid in strays(world, heir) if everybody else ():
        if pid != worker.pid:
            os.kill(pid, signal.SIGTERM)
    sent_s = worker.signal(signal.SIGTERM)
    codes = None if way.name in ("dramatiq", "honcho") else caught.exit_codes
    took_s = ended(worker, sent_s, caught.grace_s + AFTER_GRACE_S, codes)
    waited_s = what_became(world, caught, event_id, sent_s + took_s)
    if caught.ends == "cancelled":
        cancelled_s = (world.journal.of(event_id)[0].ended_s or 0) - sent_s
        assert cancelled_s >= caught.grace_s - 0.1, f"it had {cancelled_s:.1f} s of its grace"
    if caught.ends != "left":
        assert_closed(world, way)
    clear_away(world, heir)
    return Finding(f"SIGTERM, {caught.how} handler", f"gone after {took_s:.1f} s, on after {waited_s:.2f} s", took_s)


def what_became(world: World, caught: Caught, event_id: str, gone_s: float) -> float:
    """That its run ended as it had to; returns how long its event, or the next of its lane, waited for another process."""
    first = world.journal.of(event_id)[0]
    if caught.ends == "left":
        assert first.ended_s is None
        return passed_on(world, event_id, first, gone_s, world.lease_s + LOST_S)
    assert first.ended_s is not None, "its finally ran"
    if caught.ends == "cancelled":
        assert first.failed
        return passed_on(world, event_id, first, first.ended_s, HANDED_ON_S)
    assert first.done
    behind = f"event-{int(event_id.removeprefix('event-')) + 1}"
    return passed_on(world, behind, first, first.ended_s, HANDED_ON_S)


def retrying(way: Way, world: World) -> Finding:
    worker = way.start(world, 5)
    event_id = Caught("fails", 0, 5, "done").publish(world)
    world.wait(lambda: world.journal.of(event_id) and world.bus.store.retrying(), "it to wait for its retry", 20)
    due_s = time.monotonic() + world.bus.store.retrying()[0].due_in_ms / 1000
    strike(world)
    took_s = ended(worker, worker.signal(signal.SIGTERM), 5)
    (first,) = world.journal.of(event_id)
    assert first.failed
    heir = heir_of(world)
    late_s = passed_on(world, event_id, first, max(due_s, time.monotonic()), HANDED_ON_S)
    clear_away(world, heir)
    return Finding("SIGTERM between two attempts", f"gone after {took_s:.1f} s, retried {late_s:.2f} s late", took_s)


def away(way: Way, caught: Caught | None, world: World, *, frozen: bool) -> Finding:
    """``caught`` is what it is in the midst of; ``None`` is nothing."""
    worker = way.start(world, caught.grace_s if caught is not None else 5)
    event_id = caught.publish(world) if caught is not None else ""
    if caught is not None:
        begun(world, event_id)
    strike(world)
    (world.server.freeze if frozen else world.server.kill)()
    sent_s = worker.signal(signal.SIGTERM)
    works_s = min(caught.grace_s, caught.takes_s) if caught is not None else 0
    took_s = ended(worker, sent_s, works_s + HUNG_S)
    runs = world.journal.of(event_id)
    for run in runs:
        assert run.failed if caught is not None and caught.ends == "cancelled" else run.done, "its finally ran"
    assert_closed(world, way)
    assert not frozen or state_of(world.server.pid) == "T", "it hung to the last"
    (world.server.thaw if frozen else world.server.start)()
    heir = heir_of(world)
    if caught is not None and caught.ends == "cancelled":
        passed_on(world, event_id, runs[0], time.monotonic(), world.lease_s + LOST_S)
    clear_away(world, heir)
    what = f"server {'frozen' if frozen else 'gone'}, {caught.how if caught is not None else 'no'} handler"
    return Finding(f"SIGTERM, {what}", f"gone after {took_s:.1f} s, all closed", took_s)


def assert_closed(world: World, way: Way) -> None:
    """The resources of the worker that was started first have closed, in all of its processes."""
    resources = Journal(world.journal.path.with_name("resource")).runs()[: way.processes]
    assert len(resources) == way.processes
    assert all(run.done for run in resources), "a resource did not close"


def twice(way: Way, world: World) -> Finding:
    worker = way.start(world, LONG.grace_s)
    event_id = LONG.publish(world)
    begun(world, event_id)
    heir = heir_of(world)
    strike(world)
    first_s = worker.signal(signal.SIGTERM)
    wait_until(lambda: time.monotonic() - first_s > 1, "a second to pass")
    assert worker.alive, "it drains"
    took_s = ended(worker, worker.signal(signal.SIGTERM), 2, None if way.name == "dramatiq" else (1,))
    waited_s = what_became(world, LONG, event_id, time.monotonic())
    clear_away(world, heir)
    return Finding("SIGTERM twice", f"gone {took_s:.2f} s after the second, on after {waited_s:.1f} s", took_s)


def child_killed(way: Way, world: World) -> Finding:
    worker = way.start(world, 3)
    event_id = ASYNC.publish(world)
    victim = begun(world, event_id).pid
    assert victim != worker.pid
    strike(world)
    os.kill(victim, signal.SIGKILL)
    killed_s = time.monotonic()
    heirs = [heir_of(world)] if way.name == "dramatiq" else []
    world.wait(lambda: len(world.journal.of(event_id)) > 1, "its event to run again", world.lease_s + LOST_S + 5)
    waited_s = world.journal.of(event_id)[1].began_s - killed_s
    assert waited_s <= world.lease_s + LOST_S
    if way.name == "dramatiq":  # its master stops the node; that is why there is another one
        assert worker.wait(20) != 0
    else:
        worker.wait_for("was killed by SIGKILL: another takes its place")
        wait_until(lambda: worker.text.count(way.ready) == way.processes + 1, "a child in its place", 20)
        assert worker.alive
    clear_away(world, *heirs, *([] if way.name == "dramatiq" else [worker]))
    return Finding("SIGKILL of one child", f"its event runs again after {waited_s:.1f} s", waited_s)


def master_killed(way: Way, caught: Caught, world: World) -> Finding:
    worker = way.start(world, caught.grace_s)
    event_id = caught.publish(world)
    begun(world, event_id)
    heir = heir_of(world)
    strike(world)
    sent_s = worker.signal(signal.SIGKILL)
    ended(worker, sent_s, 2, (-signal.SIGKILL,))
    wait_until(lambda: not strays(world, heir), "its children to be gone", caught.grace_s + AFTER_GRACE_S)
    took_s = time.monotonic() - sent_s
    waited_s = what_became(world, caught, event_id, time.monotonic())
    clear_away(world, heir)
    return Finding(
        f"SIGKILL of the master, {caught.how} handler",
        f"children gone after {took_s:.1f} s, on after {waited_s:.2f} s",
        took_s,
    )


def row(state: str, way: str, promise: str, run: Callable[..., Finding], *args: object, **options: object) -> Fault:
    server = {"appendonly": True} if state.startswith("server") else {}
    act = tidy(partial(run, WAYS[way], *args, **options))
    return Fault(f"{state}/{way}", promise, act, quick_lease_s=2, server=server)


PROCFILE_S = 2
"""The grace that the Procfile gives."""
CANCELLED = (
    "an async handler is cancelled at the grace's end, its finally runs, and its event goes on elsewhere at once"
)
FINISHED = "a handler may finish, and what waits behind it goes on elsewhere at once"
UNHEARD = "a server that does not answer holds a stop up for seconds; all is closed, and the exit code is 0"
C_CODE = "what C code holds is left at the deadline, and runs again when the lease ends"

FAULTS = (
    *(row("idle", way, "an idle worker stops within seconds", idle) for way in WAYS),
    *(row("boot", way, "a boot is unwound: what was opened is closed", booting) for way in ("callboard", "processes")),
    *(row("async", way, CANCELLED, at_work, ASYNC) for way in ("callboard", "processes", "dramatiq", "embedded")),
    *(row("async-brief", way, FINISHED, at_work, BRIEF) for way in ("callboard", "processes", "embedded")),
    row("async-brief", "dramatiq", FINISHED, at_work, Caught("async", 3, 6, "done")),
    row("everybody", "processes", CANCELLED, partial(at_work, everybody=True), ASYNC),
    *(row("sync", way, FINISHED, at_work, SYNC) for way in ("callboard", "processes", "embedded")),
    row("sync", "dramatiq", FINISHED, at_work, Caught("sync", 3, 6, "done")),  # it looks for signals once a second
    row("sync", "honcho", FINISHED, at_work, Caught("sync", 1, PROCFILE_S, "done")),
    row("async", "honcho", CANCELLED, at_work, Caught("async", 60, PROCFILE_S, "cancelled")),
    row("async-brief", "honcho", FINISHED, at_work, Caught("async", 1, PROCFILE_S, "done")),
    *(row("released", way, C_CODE, at_work, RELEASED) for way in ("callboard", "processes")),
    *(row("held", way, C_CODE, at_work, HELD) for way in ("callboard", "processes")),
    row("retry", "callboard", "a retry keeps its time and its place, whoever makes it", retrying),
    *(row("server-gone", way, UNHEARD, away, ASYNC, frozen=False) for way in ("callboard", "processes", "embedded")),
    *(row("server-frozen", way, UNHEARD, away, ASYNC, frozen=True) for way in ("callboard", "processes", "embedded")),
    *(row("server-frozen-sync", way, UNHEARD, away, SYNC, frozen=True) for way in ("callboard", "embedded")),
    *(row("server-frozen-idle", way, UNHEARD, away, None, frozen=True) for way in ("callboard", "embedded")),
    *(row("twice", way, "a second signal ends it at once", twice) for way in ("callboard", "processes", "dramatiq")),
    *(
        row("child-killed", way, "its events run again, and siblings go on", child_killed)
        for way in ("processes", "dramatiq")
    ),
    row("master-killed", "processes", "no orphan: the children drain as at SIGTERM", master_killed, ASYNC),
    row("master-killed-held", "processes", "no orphan, though C code holds a child", master_killed, HELD),
)

QUICK = (
    "boot/callboard",
    "async/callboard",
    "sync/processes",
    "sync/honcho",
    "held/callboard",
    "server-frozen/callboard",
    "server-frozen/embedded",
    "twice/callboard",
    "child-killed/processes",
    "master-killed/processes",
)
"""What CI runs, in about a minute."""


def main(arguments: Sequence[str]) -> int:
    return harness.main("signals", FAULTS, arguments)
