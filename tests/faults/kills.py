"""Processes that are killed: workers, one after the other, and a publisher in the middle of its stream."""

from __future__ import annotations

import time
from typing import NamedTuple

from bus import Receipt
from tests.faults.harness import Fault, Finding
from tests.faults.journal import Run
from tests.faults.processes import Process
from tests.faults.publishing import Load
from tests.faults.work import Work
from tests.faults.world import NAMESPACE, World

__all__ = ["FAULTS"]

RECOVERY_S = 10.0


# -- workers -----------------------------------------------------------------------------------------------------------


class Kill(NamedTuple):
    """A worker that was killed, when, and the ids of what it held."""

    at_s: float
    held: frozenset[str]


def kill_storm(world: World) -> Finding:
    events, keys, most = world.many(1_000, 10_000), world.many(50, 200), world.many(3, 40)
    world.threads = 2  # and work that is brisk but for a few: so there is always something taken and not begun
    world.listen()
    world.start_workers(3)
    kills: list[Kill] = []
    next_s = time.monotonic() + 1
    with Load(
        world.publishing,
        per_s=world.many(2_000, 1_500),
        keys=keys,
        total=events,
        event=lambda n, key: Work(n=n, key=key, takes_s=0.004 if n % 20 else 0.3),
    ) as load:

        def storm() -> bool:
            nonlocal next_s
            if len(kills) < most and time.monotonic() >= next_s:
                victim = ready(world)
                if victim is not None:
                    next_s = time.monotonic() + 1
                    kills.append(kill(world, victim))
            return load.over and (len(kills) >= most or len(world.journal.done()) >= events)

        world.wait(storm, f"{most} kills, or all events to be handled before", 150)
    world.drain(60)

    assert len(kills) >= 3
    times = recoveries(kills, world.journal.runs())
    assert times
    assert sum(len(kill.held) for kill in kills) >= len(kills), "those that were killed held something"
    slowest_s = max(times)
    assert slowest_s < RECOVERY_S, f"what a killed worker held ran again only after {slowest_s:.1f} s"
    held = sum(len(kill.held) for kill in kills)
    return Finding(
        f"{len(kills)} SIGKILLs, {held} jobs held", f"slowest recovery {slowest_s:.1f} s (< {RECOVERY_S:g})", slowest_s
    )


def ready(world: World) -> Process | None:
    """The worker that has worked longest. The newest of them is still starting."""
    return next((worker for worker in world.workers if "ready:" in worker.text), None)


def kill(world: World, victim: Process) -> Kill:
    """Kill it, read in the store's books what it held, and start another in its place."""
    at_s = victim.kill()
    assert not victim.alive
    held = held_by(world, victim.pid)
    world.replace(victim)
    return Kill(at_s, held)


def held_by(world: World, pid: int) -> frozenset[str]:
    """The ids of the events in the hands of a worker. No door of the store says so: these are its keys (lanes.lua)."""
    prefix = f"callboard:{{{NAMESPACE}}}:"
    with world.server.client() as client:
        workers = [name.decode() for name in client.zrange(prefix + "workers", 0, -1)]
        jobs = [job for name in workers if f"-{pid}-" in name for job in client.hkeys(f"{prefix}held:{name}")]
        bodies = client.hmget(prefix + "jobs", jobs) if jobs else []
    return frozenset(body.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode() for body in bodies if body)


def recoveries(kills: list[Kill], runs: list[Run]) -> list[float]:
    """How long after a kill each job that the worker held ran again.

    A job whose next worker was killed as well, before it came to it, counts from that kill on.
    """
    begun: dict[str, list[float]] = {}
    ended: dict[str, float] = {}
    for run in runs:
        begun.setdefault(run.id, []).append(run.began_s)
        if run.ended_s is not None:
            ended[run.id] = min(run.ended_s, ended.get(run.id, run.ended_s))
    times = []
    for number, kill in enumerate(kills):
        for event_id in kill.held:
            again_s = min((at for at in begun.get(event_id, []) if at > kill.at_s), default=None)
            later = (other.at_s for other in kills[number + 1 :] if event_id in other.held)
            if any(again_s is None or at_s < again_s for at_s in later):
                continue
            if again_s is None:
                assert ended.get(event_id, kill.at_s) < kill.at_s, f"{event_id} never ran again"  # its ack had arrived
                continue
            times.append(again_s - kill.at_s)
    return times


# -- publishers --------------------------------------------------------------------------------------------------------


def killed_publisher(world: World) -> Finding:
    total, enough = world.many(800, 4_000), world.many(150, 1_500)
    world.listen()
    world.start_workers(world.many(1, 2))
    publisher = start_publisher(world, total)
    try:
        world.wait(lambda: publisher.text.count("\naccepted") >= enough, "the publisher to be in the middle", 60)
        publisher.kill()
    finally:
        publisher.kill()
    tried = noted(publisher, "trying")
    accepted = noted(publisher, "accepted")
    assert publisher.exit_code == -9
    assert enough <= len(accepted) < total, "it was killed in the middle"
    for event_id in tried:
        world.publishing.note(event_id, "accepted" if event_id in accepted else "unknown")
    world.drain(30)
    handled_then = len(world.journal.done())

    # Whoever takes its place does not know how far it came, and begins again.
    again = 0
    for n in range(total):
        answer = world.publishing.publish(Work(n=n, key=f"k{n % 20}"), id=f"stream-{n}")
        assert isinstance(answer, Receipt)
        assert answer.duplicate or f"stream-{n}" not in accepted
        again += answer.duplicate
    world.drain(30)

    assert again >= len(accepted)
    runs = world.journal.runs()
    assert len(runs) == len({run.id for run in runs}) == total, "each ran exactly once"
    return Finding(
        f"1 SIGKILL after {len(accepted)} of {total}", f"{handled_then} handled; {again} published again, 0 run again"
    )


def start_publisher(world: World, total: int) -> Process:
    """Start ``tests.faults.publisher``."""
    return world.start("publisher", ["tests.faults.publisher", str(total)], BUS_URL=world.server.url)


def noted(publisher: Process, word: str) -> set[str]:
    """The ids that it noted with this word, whole lines only: it was killed while it wrote."""
    lines = [line.split() for line in publisher.text.split("\n")[:-1]]
    return {line[1] for line in lines if line and line[0] == word}


FAULTS = (
    Fault(
        "kill-storm",
        "every event is handled, in the order of its key, and what a killed worker held runs again within 10 s",
        kill_storm,
        quick_lease_s=3,
    ),
    Fault(
        "killed-publisher",
        "what a killed publisher was told is accepted is handled, and published again it counts once",
        killed_publisher,
    ),
)
