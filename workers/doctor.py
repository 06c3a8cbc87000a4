"""The doctor: looks at a server and the work on it, and says what is wrong and what to do. Reads only.

No text here holds a URL, a password or anything of an event; names of handlers and queues it does hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from bus import Bus, BusError
from bus.bindings import Binding
from bus.store.base import Facts
from workers.queues import Queues, QueueState

__all__ = ["Finding", "Verdict", "examine"]

Verdict = Literal["ok", "warning", "problem"]

OLDEST_MAJOR = 7
FULL_WARNING, FULL_PROBLEM = 0.8, 0.95
CLOCK_WARNING_MS, CLOCK_PROBLEM_MS = 2_000, 60_000
TRIP_WARNING_MS, TRIP_PROBLEM_MS = 20, 500
WAITING_WARNING_S = 60.0
NAMED = 5


class Finding(NamedTuple):
    """One thing that was looked at. ``advice`` says what to do, where something is to be done."""

    check: str
    verdict: Verdict
    what: str
    advice: str = ""


def examine(bus: Bus, declared: Sequence[Binding] | None = None) -> list[Finding]:
    """Look at everything, the server first. ``declared`` are the bindings of an app's handlers, to be compared.

    Blocks for some round trips; never raises for what it finds.
    """
    if bus.mode == "memory":
        return [_memory()]
    try:
        facts = bus.store.facts()
    except BusError as error:
        advice = "start it, or correct BUS_URL; nothing else could be looked at"
        return [Finding("server", "problem", str(error), advice)]
    return [*_server(facts), *_work(bus, declared)]


# -- the server --------------------------------------------------------------------------------------------------------


def _memory() -> Finding:
    what = "this bus is in memory: one process, and everything in it is lost when that ends"
    advice = "right for tests and demos; set BUS_URL=redis://... for workers and other processes to meet on a server"
    return Finding("server", "warning", what, advice)


def _server(facts: Facts) -> Iterator[Finding]:
    yield _version(facts)
    yield _role(facts)
    yield _persistence(facts)
    yield _policy(facts)
    yield _fullness(facts)
    yield _rights(facts)
    yield _clock(facts)
    yield _latency(facts)


def _version(facts: Facts) -> Finding:
    major = (facts.version or "").partition(".")[0]
    if not major.isdigit():
        return Finding("server", "warning", facts.server, "Redis 7.0 or newer, or Valkey, is needed: ask its operator")
    if int(major) < OLDEST_MAJOR:
        return Finding("server", "problem", facts.server, "upgrade it: Redis 7.0 or newer, or Valkey, is needed")
    return Finding("server", "ok", facts.server)


def _role(facts: Facts) -> Finding:
    if facts.role in ("slave", "replica"):
        return Finding("role", "problem", "a read-only replica", "connect to its primary")
    if facts.replicas_missing:
        what = f"a primary that takes no writes before {facts.replicas_missing} more replicas are there"
        return Finding("role", "problem", what, "start them, or set 'min-replicas-to-write 0'")
    return Finding("role", "ok", facts.role or "not told")


def _persistence(facts: Facts) -> Finding:
    check = "persistence"
    if facts.persisting is False:
        what = "its last write to disk, or its last snapshot, failed"
        return Finding(check, "problem", what, "free its disk, and look at its log: it may refuse events until then")
    if facts.appendonly:
        return Finding(check, "ok", "append-only file: a crash loses a second at most, nothing with appendfsync always")
    if facts.appendonly is None:
        return Finding(check, "warning", "not told to this user", "ask its operator for 'appendonly yes'")
    what = "snapshots only: a crash loses all since the last" if facts.snapshots else "no append-only file"
    return Finding(check, "warning", what, "set 'appendonly yes' for work that must outlive a crash of the server")


def _policy(facts: Facts) -> Finding:
    check = "memory policy"
    if facts.policy is None:
        return Finding(check, "warning", "not told to this user", "ask its operator for 'maxmemory-policy noeviction'")
    if facts.policy != "noeviction":
        what = f"{facts.policy}: it throws accepted events away when memory is short"
        return Finding(check, "problem", what, "set 'maxmemory-policy noeviction'; the bus refuses to open until then")
    return Finding(check, "ok", facts.policy)


def _fullness(facts: Facts) -> Finding:
    check = "memory"
    if facts.used_bytes is None:
        return Finding(check, "warning", "not told to this user", "allow it INFO (see the ACL in bus/README.md)")
    used = f"{facts.used_bytes / 1e6:,.0f} MB used"
    if not facts.max_bytes:
        return Finding(check, "ok", f"{used}, without a limit of its own")
    part = facts.used_bytes / facts.max_bytes
    what = f"{used} of {facts.max_bytes / 1e6:,.0f} MB, {part:.0%}"
    advice = "raise its maxmemory, or drain its queues: a full server takes no new events"
    verdict: Verdict = "problem" if part >= FULL_PROBLEM else "warning" if part >= FULL_WARNING else "ok"
    return Finding(check, verdict, what, "" if verdict == "ok" else advice)


def _rights(facts: Facts) -> Finding:
    missing = sorted({*facts.denied} - {"INFO"})
    if missing:
        what = f"this user may not use {', '.join(missing)}"
        return Finding("rights", "problem", what, "grant what the ACL in bus/README.md names")
    if facts.denied:
        return Finding(
            "rights", "warning", "this user may not use INFO", "grant +info, or see to version and policy yourself"
        )
    return Finding("rights", "ok", "this user may do all that is needed")


def _clock(facts: Facts) -> Finding:
    if facts.clock_ahead_ms is None:
        return Finding("clock", "warning", "not told to this user", "grant +time: leases rest on it")
    off_ms = abs(facts.clock_ahead_ms)
    # To half a round trip: finer than a millisecond it would only look exact.
    what = f"{off_ms:.0f} ms {'ahead of' if facts.clock_ahead_ms > 0 else 'behind'} this machine's"
    verdict: Verdict = "problem" if off_ms >= CLOCK_PROBLEM_MS else "warning" if off_ms >= CLOCK_WARNING_MS else "ok"
    advice = "synchronise both by NTP: publish(at=...) and the ages of events compare them"
    return Finding("clock", verdict, what, "" if verdict == "ok" else advice)


def _latency(facts: Facts) -> Finding:
    trip_ms = facts.round_trip_ms
    verdict: Verdict = "problem" if trip_ms >= TRIP_PROBLEM_MS else "warning" if trip_ms >= TRIP_WARNING_MS else "ok"
    advice = "every publish waits for one: move it nearer, or look for what holds it up (SLOWLOG)"
    return Finding("round trip", verdict, f"{trip_ms:.1f} ms", "" if verdict == "ok" else advice)


# -- the work ----------------------------------------------------------------------------------------------------------


def _work(bus: Bus, declared: Sequence[Binding] | None) -> Iterator[Finding]:
    try:
        states, paused = Queues(bus).look(), Queues(bus).paused()
        workers = len(bus.store.census().serving)
        bound, dead = bus.store.bindings().bindings, bus.store.dead_count()
    except BusError as error:
        yield Finding("work", "problem", f"it could not be looked at: {error}", "mend what is named above first")
        return
    yield _workers(workers, states)
    yield _orphans(states)
    if declared is not None:
        yield _declared(declared, bound)
    yield _waiting(states)
    yield _suspects(states)
    yield _paused(paused)
    yield _dead(dead)


def _workers(workers: int, states: Sequence[QueueState]) -> Finding:
    waiting = sum(state.unfinished for state in states)
    if workers:
        return Finding("workers", "ok", f"{workers} alive")
    advice = "start one: callboard worker MODULE:APP"
    if waiting:
        return Finding("workers", "problem", f"none is alive, and {waiting} jobs wait", advice)
    return Finding("workers", "warning", "none is alive", advice)


def _orphans(states: Sequence[QueueState]) -> Finding:
    orphans = [state for state in states if state.orphaned]
    names = sorted({state.handler for state in orphans})
    if not names:
        bound = sum(state.bound for state in states)
        return Finding("handlers", "ok", f"{bound} bound, each served by a worker" if bound else "none is bound")
    which, is_bound = names[0] if len(names) == 1 else "HANDLER", any(state.bound for state in orphans)
    end = (
        f"remove the binding: callboard queues forget {which}"
        if is_bound
        else f"drop its work: callboard queues drop {which} --yes"
    )
    advice = f"start a worker that has {'it' if len(names) == 1 else 'them'}, or {end}"
    return Finding("handlers", "warning", f"work comes or waits that nobody serves: {_some(names)}", advice)


def _declared(declared: Sequence[Binding], bound: object) -> Finding:
    there = dict(bound) if isinstance(bound, dict) else {}
    missing = sorted(one.handler for one in declared if one.handler not in there)
    other = sorted(one.handler for one in declared if there.get(one.handler, one.encode()) != one.encode())
    advice = "start a worker of this code, or have the deploy call app.bind()"
    if missing:
        return Finding("app", "warning", f"not bound, so events are no work for them: {_some(missing)}", advice)
    if other:
        return Finding("app", "warning", f"bound as another version of the code declares them: {_some(other)}", advice)
    return Finding("app", "ok", f"all {len(declared)} handlers are bound as declared")


def _waiting(states: Sequence[QueueState]) -> Finding:
    ages = [
        (state.oldest_s, state.handler, state.consumers)
        for state in states
        if state.oldest_s is not None and not state.paused
    ]
    if not ages:
        halted = any(state.ready for state in states)
        return Finding("waiting", "ok", "nothing but what is paused" if halted else "nothing")
    oldest_s, handler, consumers = max(ages)
    if oldest_s < WAITING_WARNING_S:
        return Finding("waiting", "ok", f"the oldest for {oldest_s:.0f} s")
    what = f"the oldest for {oldest_s:,.0f} s, for {handler}"
    advice = "add workers or threads" if consumers else "start a worker that serves it"
    return Finding("waiting", "warning", what, f"{advice}, and look at 'callboard queues'")


def _suspects(states: Sequence[QueueState]) -> Finding:
    count = sum(state.suspects for state in states)
    if not count:
        return Finding("suspects", "ok", "none")
    what = f"{count} jobs wait to be taken a few at a time, for two or more of their workers died"
    advice = "look for what kills workers (memory, kill -9); fresh work goes on beside them, but for those that are tried alone"
    return Finding("suspects", "warning", what, advice)


def _paused(names: Sequence[str]) -> Finding:
    if not names:
        return Finding("paused", "ok", "nothing")
    which = names[0] if len(names) == 1 else "NAME"
    return Finding("paused", "warning", _some(names), f"if nobody means it any more: callboard queues resume {which}")


def _dead(dead: int) -> Finding:
    if not dead:
        return Finding("dead letters", "ok", "none")
    advice = "callboard dead list shows them; replay or drop each"
    return Finding("dead letters", "warning", f"{dead} kept", advice)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
