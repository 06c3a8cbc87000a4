"""The ledger: what was promised to publishers, beside what workers did and listeners heard."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from tests.faults.journal import Run
from tests.faults.publishing import Outcome

__all__ = ["Books", "Ledger", "Numbers", "balanced"]


class Numbers(Protocol):
    """A row's part of the table. A dataclass of plain numbers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    CAPTION: ClassVar[str]
    """What a reader of the table must be told."""

    def cells(self) -> dict[str, str]:
        """By heading."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The numbers of one fault.

    ``attempted`` events: ``accepted``, ``rejected`` or ``unknown`` as their publishers were first told. ``started`` and
    ``ended`` count runs of handlers, ``duplicates`` those beyond an event's first. ``lost`` are events that were
    accepted and never handled to the end; ``inversions`` those whose first run began after that of a later one of their key.
    """

    CAPTION: ClassVar = "dup: runs beyond an event's first; inv: events that ran before an earlier one"

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

    def cells(self) -> dict[str, str]:
        """See :class:`Numbers`."""
        return {
            "tried": str(self.attempted),
            "accepted": str(self.accepted),
            "refused": str(self.rejected),
            "unknown": str(self.unknown),
            "started": str(self.started),
            "ended": str(self.ended),
            "heard": "-" if self.heard is None else str(self.heard),
            "lost": str(self.lost),
            "dup": str(self.duplicates),
            "inv": str(self.inversions),
        }


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
