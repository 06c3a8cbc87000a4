"""Publishers that are killed at every step of a publish, and successors that publish the same again."""

from __future__ import annotations

from tests.faults.doomed import STEPS
from tests.faults.harness import Fault, Finding
from tests.faults.live_world import LiveWorld
from tests.faults.processes import Process

__all__ = ["FAULTS"]


def dying_publishers(world: LiveWorld) -> Finding:
    times = world.many(12, 100)
    world.listen()
    world.start_worker()
    again = {step: die_at(world, step, times) for step in STEPS}
    assert again["before"] == 0, "what was not sent is not there"
    assert again["answered"] == times, "what was answered is there"
    assert again["sent"] > 0, "and what was sent is there as well, if the server was at it before the successor came"
    world.drain(30)

    ids = {f"{step}-{n}" for step in STEPS for n in (*range(times), "first")}
    runs = [run.id for run in world.journal.runs()]
    log = world.log()
    assert len(log) == len(ids)
    assert set(log) == ids, "the log holds each of them once"
    assert len(runs) == len(ids)
    assert set(runs) == ids, "each was handled once"
    # That a listener heard just what the log holds, in its order, is in the books.
    return Finding(
        f"{len(STEPS) * times} SIGKILLs: {times} at each of {len(STEPS)} steps",
        f"{len(ids)} published = logged = handled = heard; {sum(again.values())} were there before the successor",
    )


def die_at(world: LiveWorld, step: str, times: int) -> int:
    """Have publishers die at a step; returns how many of their events were there when the successor came."""
    doomed = world.start(step, ["tests.faults.doomed", step, str(times)], BUS_URL=world.server.url)
    try:
        assert doomed.wait(120) == 0, doomed.text
    finally:
        doomed.kill()
    ended = noted(doomed, "ended")
    assert len(ended) == times
    assert set(ended.values()) == {"9"}, "each was killed"
    accepted = noted(doomed, "accepted")
    assert accepted.keys() == ended.keys()
    for event_id in (f"{step}-first", *accepted):
        world.publishing.note(event_id, "accepted")
    return sum(how == "again" for how in accepted.values())


def noted(process: Process, word: str) -> dict[str, str]:
    """What it noted with this word, by id."""
    lines = [line.split() for line in process.text.splitlines()]
    return {line[1]: line[2] for line in lines if line and line[0] == word}


FAULTS = (
    Fault(
        "dying-publishers",
        "an event whose publisher is killed at any step, and whose successor publishes it again, is there exactly once",
        dying_publishers,
        world=LiveWorld,
    ),
)
