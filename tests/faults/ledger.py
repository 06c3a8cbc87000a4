"""The ledger: what was promised to publishers, beside what workers did and listeners heard."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.journal import Run
from tests.faults.publishing import Outcome

__all__ = ["Books", "Ledger", "balanced"]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The numbers of one fault.

    ``attempted`` events: ``accepted``, ``rejected`` or ``unknown`` as their publishers were first told. ``started`` and
    ``ended`` count runs of handlers, ``duplicates`` those beyond an event's first. ``lost`` are events that were
    accepted and never handled to the end; ``inversions`` those whose first run began after that of a later one of their key.
    """

    attempted: int = 0
    accepted: int = 0
    rejected: int = 0
    unknown: int = 0
    started: int = 0
    ended: int = 0
    heard: int | None = None
    lost: int = 0
    duplicates: int = 0
    inversions: int = 0


@dataclass(frozen=True, slots=True)
class Books:
    """What a ledger is balanced from.

    ``told`` and ``known``: see :class:`~tests.faults.publishing.Publishing`. ``log``: the ids of the log, in its order.
    ``buried``: the ids of what rightly ended in the dead letters.
    """

    told: Mapping[str, Outcome]
    known: Mapping[str, Outcome]
    runs: Sequence[Run]
    log: Sequence[str]
    heard: Sequence[str] | None = None
    buried: Collection[str] = field(default_factory=frozenset)


def balanced(books: Books) -> tuple[Ledger, list[str]]:
    """The numbers, and what in them breaks a promise, a line each."""
    told = Counter(books.told.values())
    begun = Counter(run.id for run in books.runs if not run.failed)
    done = {run.id for run in books.runs if run.done}
    lost = sorted(promised(books) - done - set(books.buried))
    inversions = _inversions(books)
    ledger = Ledger(
        attempted=len(books.told),
        accepted=told["accepted"],
        rejected=told["rejected"],
        unknown=told["unknown"],
        started=len(books.runs),
        ended=sum(run.ended_s is not None for run in books.runs),
        heard=None if books.heard is None else len(books.heard),
        lost=len(lost),
        duplicates=sum(begun.values()) - len(begun),
        inversions=len(inversions),
    )
    faults = []
    if lost:
        faults.append(f"lost: {_some(lost)}")
    if inversions:
        faults.append(f"out of order: {_some(inversions)}")
    rejected = {event_id for event_id, known in books.known.items() if known == "rejected"}
    if ran := sorted(rejected & (begun.keys() | set(books.log))):
        faults.append(f"refused, and yet there: {_some(ran)}")
    return ledger, faults + _misheard(books)


def promised(books: Books) -> set[str]:
    """What must be handled: all that was accepted, and what the log has of that whose fate nobody was told."""
    accepted = {event_id for event_id, known in books.known.items() if known == "accepted"}
    return accepted | (set(books.log) & books.known.keys()) - {
        event_id for event_id, known in books.known.items() if known == "rejected"
    }


def _inversions(books: Books) -> list[str]:
    place = {event_id: at for at, event_id in enumerate(books.log)}
    seen: set[str] = set()
    last: dict[str, int] = defaultdict(lambda: -1)
    found = []
    for run in sorted(books.runs, key=lambda run: run.began_s):
        if not run.key or run.id in seen or run.id not in place:
            continue
        seen.add(run.id)
        if place[run.id] < last[run.key]:
            found.append(run.id)
        last[run.key] = max(last[run.key], place[run.id])
    return found


def _misheard(books: Books) -> list[str]:
    """A listener hears the log: every event, once, in its order."""
    if books.heard is None or list(books.heard) == list(books.log):
        return []
    missing = sorted(set(books.log) - set(books.heard))
    again = sorted(event_id for event_id, times in Counter(books.heard).items() if times > 1)
    if missing or again:
        return [f"not heard: {_some(missing)}; heard again: {_some(again)}"]
    return ["heard in another order than the log's"]


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:5]) or "none"
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown
