"""Jobs that are bad themselves: bytes that nobody can read, and work that kills whoever does it."""

from __future__ import annotations

import time

from bus.store.base import Job, Route
from tests.faults.harness import Fault, Finding
from tests.faults.work import FRAGILE, WORK, Work
from tests.faults.world import QUEUE, World
from workers.deadletters import DeadLetters

__all__ = ["FAULTS"]

UNREADABLE = (
    b"",
    b"\xff\xfe\x00",
    b"?what is this",
    b"e",
    b"e{",
    b"e[]",
    b"enull",
    b'e{"id": 1}',
    b"e" + b"[" * 100_000,
    b"e\xed\xa0\x80",
    b"m",
    b"m{",
    b"m[]",
    b"m{}",
    b'm{"queue_name": "default", "actor_name": "plain", "args": 5, "kwargs": [], "options": 0, "message_id": 1}',
)
LOST_DELIVERIES = 5


def undecodable(world: World) -> Finding:
    store = world.bus.store
    world.bus.open_sync()
    world.start_worker().kill()  # it has bound the handlers; the next one finds everything at once
    for place, body in enumerate(UNREADABLE):
        name = f"bad-{place}"
        # Half of them stand at the heads of lanes, with good ones behind them.
        lane = f"lane-{place}" if place % 2 else ""
        assert store.enqueue(Job(name, Route(QUEUE, WORK, 1), lane, body), 60_000)
        world.buried.add(name)
        if lane:
            world.publishing.publish(Work(n=world.publishing.number(), key=lane))
        world.publishing.publish(Work(n=world.publishing.number()))
    began = time.monotonic()
    world.start_worker()

    world.drain(15)
    took_s = time.monotonic() - began

    letters = list(DeadLetters(world.bus).find())
    assert world.logs().count("cannot be read and goes to the dead letters") == len(UNREADABLE)
    assert sorted(dead.body for dead in store.dead()) == sorted(UNREADABLE), "the bytes are kept as they were"
    assert {letter.error for letter in letters} == {"Undecodable"}
    assert all(len(letter.attempts) == 1 and letter.attempts[0].message for letter in letters)
    assert all(len(world.journal.of(event_id)) == 1 for event_id in world.publishing.ids("accepted"))
    assert "unexpected error" not in world.logs(), "the consumer lives on"
    return Finding(f"{len(UNREADABLE)} unreadable jobs", f"{len(letters)} dead letters, all neighbours run", took_s)


def crash_loop(world: World) -> Finding:
    world.start_worker()
    publishing = world.publishing
    innocents(world)
    poison = [Work(n=publishing.number(), key="poison", dies="exit")]
    if not world.quick:
        poison.append(Work(n=publishing.number(), dies="kill"))
    topics = (FRAGILE, WORK)  # no retry, and fifty
    began = time.monotonic()
    world.supervised = True
    for event, topic in zip(poison, topics, strict=False):
        world.buried.add(f"event-{event.n}")
        publishing.publish(event, topic=topic)
    innocents(world)
    behind = Work(n=publishing.number(), key="poison")
    publishing.publish(behind, topic=FRAGILE)

    longest_s = len(poison) * LOST_DELIVERIES * (world.lease_s + 8) + 10
    world.wait(lambda: world.bus.store.dead_count() >= len(poison), "the poison to be buried", longest_s)
    took_s = time.monotonic() - began
    world.drain(20)

    letters = list(DeadLetters(world.bus).find())
    assert world.restarts >= LOST_DELIVERIES, "the worker really died, again and again"
    assert {letter.event.id for letter in letters if letter.event} == world.buried, "no innocent is among them"
    assert {letter.reason for letter in letters} == {"poison"}
    assert {letter.lost for letter in letters} == {LOST_DELIVERIES}
    for event_id in world.buried:
        assert 1 <= len(world.journal.of(event_id)) <= LOST_DELIVERIES, "never in an endless loop"
    assert f"event-{behind.n}" in world.journal.done(), "its lane goes on"
    return Finding(
        f"{world.restarts} workers killed by {len(poison)} job(s)",
        f"buried after {LOST_DELIVERIES} lost deliveries, {took_s:.0f} s",
        took_s,
    )


def innocents(world: World) -> None:
    """Some work beside the poison: on other keys and on none, of the same handlers."""
    for number in range(world.many(12, 30)):
        event = Work(n=world.publishing.number(), key=f"k{number % 4}" if number % 3 else None, takes_s=0.02)
        world.publishing.publish(event, topic=(WORK, FRAGILE)[number % 2])


FAULTS = (
    Fault("undecodable", "bytes that nobody can read are buried, and what was taken with them runs", undecodable),
    Fault(
        "crash-loop",
        "a job that kills its worker is buried as poison after 5 lost deliveries, and no innocent with it",
        crash_loop,
        quick_lease_s=2,
    ),
)
