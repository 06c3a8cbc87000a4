"""Workers that stand still or are full: what is slow is not dead, and what was dead for long does not know it."""

from __future__ import annotations

import re
import time

from tests.faults.harness import Fault, Finding
from tests.faults.processes import Process
from tests.faults.work import Work
from tests.faults.world import QUEUE, World

__all__ = ["FAULTS"]

REFUSED = re.compile(r"(\d+) no longer ours to settle")
RECLAIMED = "workers whose leases ran out"


def frozen_worker(world: World) -> Finding:
    publishing = world.publishing
    frozen = world.start_worker()
    world.bus.store.pause(QUEUE)
    slow = [Work(n=publishing.number(), key=key, takes_s=1) for key in ("a", "b", None, None)]
    behind = [Work(n=publishing.number(), key="a") for _ in range(3)]
    for event in slow + behind:
        publishing.publish(event)
    world.bus.store.resume(QUEUE)
    slow_ids = {f"event-{event.n}" for event in slow}
    world.wait(lambda: begun_by(world, frozen) == slow_ids, "the slow ones to begin", 10)
    frozen.freeze()
    frozen_s = time.monotonic()
    assert not world.journal.done(), "it was frozen in the middle of its work"
    heir = world.start_worker()
    world.wait(lambda: begun_by(world, heir) == slow_ids, "them to begin elsewhere", world.lease_s + 15)
    waited_s = time.monotonic() - frozen_s

    frozen.thaw()  # while the heir is at it: a settle that counted would end the heir's runs
    world.wait(
        lambda: sum(map(int, REFUSED.findall(frozen.text))) == len(slow),
        "its late settles to be refused, and logged",
        15,
    )
    world.drain(10)

    runs = world.journal.runs()
    assert {run.id for run in runs if run.pid == heir.pid and run.done} >= slow_ids, "they were done elsewhere"
    assert len(runs) == len(slow) + len(slow) + len(behind), "only what it had in its hands ran twice"
    assert not REFUSED.search(heir.text)
    publishing.publish(Work(n=publishing.number(), key="a"))
    world.drain(5)
    return Finding(
        "1 SIGSTOP past the lease", f"ran elsewhere after {waited_s:.1f} s, {len(slow)} settles refused", waited_s
    )


def begun_by(world: World, worker: Process) -> set[str]:
    """What a worker has begun."""
    return {run.id for run in world.journal.runs() if run.pid == worker.pid}


def full_slots(world: World) -> Finding:
    publishing = world.publishing
    threads = world.threads = world.many(2, 8)
    long_s = 3.1 * world.lease_s
    busy = world.start_worker()
    # Brisk work first: it teaches the worker to take far ahead, so that a lot is in its hands behind the long ones.
    world.bus.store.pause(QUEUE)
    brisk = [Work(n=publishing.number()) for _ in range(600)]
    long = [Work(n=publishing.number(), key=f"k{n}", takes_s=long_s) for n in range(threads)]
    behind = [Work(n=publishing.number(), key=f"k{n % 50}") for n in range(200)]
    for event in brisk + long + behind:
        publishing.publish(event)
    world.bus.store.resume(QUEUE)
    long_ids = {f"event-{event.n}" for event in long}
    world.wait(lambda: long_ids <= {run.id for run in world.journal.runs()}, "all threads to be busy", 15)
    idle = world.start_worker()
    busy_keys = {event.key for event in long}
    free = {f"event-{event.n}" for event in behind if event.key not in busy_keys}
    world.wait(lambda: free <= world.journal.done(), "the other one to do what was fetched behind them", long_s)
    assert not long_ids & world.journal.done(), "while the long ones run"

    world.drain(long_s + 10)

    runs = world.journal.runs()
    longest_s = max((run.ended_s or run.began_s) - run.began_s for run in runs)
    assert longest_s > 3 * world.lease_s
    assert RECLAIMED not in busy.text + idle.text
    assert not REFUSED.search(busy.text)
    assert len(runs) == len({run.id for run in runs}), "each ran exactly once"
    return Finding(f"{threads} slots busy for {longest_s:.0f} s", f"0 false reclaims, {len(free)} handed on", longest_s)


FAULTS = (
    Fault(
        "frozen-worker", "what a frozen worker held runs elsewhere, and its late settles are refused", frozen_worker, 3
    ),
    Fault("full-slots", "handlers longer than three leases are not reclaimed: each runs once", full_slots, 2),
)
