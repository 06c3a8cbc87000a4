"""The listeners' ledger: what each of them was told, word for word, beside the log that was published.

A listener that stands in a log may be told three things: the event after the one before, a gap that says which numbers
are not coming, and nothing more. Everything else is a fault, and :func:`audit` says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

from bus import Delivery, Gap
from tests.faults.line import sound

__all__ = ["BEGINNING", "Heard", "LiveLedger", "Place", "Said", "Transcript", "Verdict", "audit"]


class Place(NamedTuple):
    """An event, and the number under which a log holds it. ``id`` may be unknown (``None``)."""

    seq: int
    id: str | None


BEGINNING = Place(0, "")
"""Before the first event of a log."""


class Heard(NamedTuple):
    """A delivery as a transcript keeps it; ``sound`` where its content was what belongs to its id."""

    seq: int
    id: str
    sound: bool
    position: str = ""


class Transcript:
    """What a listener to ``**`` was told. ``after`` is where it began; all of it may be asked from any thread."""

    def __init__(self, name: str, after: Place) -> None:
        self.name = name
        self.after = after
        self.items: list[Heard | Gap] = []

    def __repr__(self) -> str:
        return f"<Transcript of {self.name} after {self.after}, {len(self.items)} items>"

    def take(self, item: object) -> Heard | None:
        """Note an item; a delivery is returned as it was noted. What is neither delivery nor gap ends a listener."""
        if isinstance(item, Gap):
            self.items.append(item)
        elif isinstance(item, Delivery):
            heard = Heard(item.position.seq, item.envelope.id, sound(item), item.position)
            self.items.append(heard)
            return heard
        return None

    def heard(self) -> list[Heard]:
        """The deliveries."""
        return [item for item in self.items if isinstance(item, Heard)]

    def gaps(self) -> list[Gap]:
        """The gaps."""
        return [item for item in self.items if isinstance(item, Gap)]


class Known(NamedTuple):
    """Where an event stands, and what comes before it."""

    seq: int
    before: str


class Said:
    """All that was ever published to a log, on every branch of it, and the branch that remained."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.last: list[str] = []
        """The ids of the branch that remained; the first has number 1."""

    def branch(self, ids: Sequence[str]) -> Self:
        """Add a branch, from number 1 on: the one that counts, until there is another. Branches share a beginning."""
        self.last = list(ids)
        for seq, (before, event_id) in enumerate(zip(["", *ids], ids, strict=False), start=1):
            known = self.known.setdefault(event_id, Known(seq, before))
            assert known == (seq, before), f"{event_id} stands twice in what was said"
        return self


@dataclass(slots=True)
class Verdict:
    """What is wrong with a transcript.

    ``missing`` numbers were neither heard nor inside a gap; ``repeated`` were heard again; ``wrong`` were no such event,
    or followed one that they do not follow, or a gap that does not say exactly what is missing.
    """

    missing: set[int] = field(default_factory=set)
    repeated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.missing or self.repeated or self.wrong)

    def lines(self, name: str) -> list[str]:
        """For a person."""
        missing = [str(seq) for seq in sorted(self.missing)]
        found = {"missing and untold": missing, "heard again": self.repeated, "wrong": self.wrong}
        return [f"{name}: {len(what)} {how}, such as {', '.join(what[:3])}" for how, what in found.items() if what]


def audit(told: Transcript, said: Said) -> Verdict:
    """Compare a transcript, which goes on to the end of the log, with what was said."""
    verdict = Verdict()
    at: Place = told.after
    gap: Gap | None = None
    seen: set[str] = set()
    numbers = set(range(told.after.seq + 1, len(said.last) + 1))  # to be heard, or told to be gone
    for item in told.items:
        if isinstance(item, Gap):
            gap = item
            numbers -= _gone(item)
            continue
        known = said.known.get(item.id)
        if known is None or known.seq != item.seq or not item.sound:
            verdict.wrong.append(f"{item} is no event that was published so")
            continue
        if gap is not None and gap.reason == "fork":
            seen.clear()  # another branch, told as such: it is heard from where the two part, or from its beginning
            numbers |= _gone(gap) & set(range(item.seq, len(said.last) + 1))
        if item.id in seen:
            verdict.repeated.append(item.id)
        elif why := _does_not_follow(at, gap, item, known):
            verdict.wrong.append(why)
        if said.last[item.seq - 1 : item.seq] == [item.id]:
            numbers.discard(item.seq)
        seen.add(item.id)
        at, gap = Place(item.seq, item.id), None
    verdict.missing = numbers
    return verdict


def _does_not_follow(at: Place, gap: Gap | None, item: Heard, known: Known) -> str:
    if gap is None:
        follows = item.seq == at.seq + 1 and at.id in (None, known.before)
        return "" if follows else f"{item} came after {at}"
    if gap.reason == "trimmed":
        exact = gap.first == at.seq + 1 and gap.last == item.seq - 1 and gap.first <= gap.last
    else:  # all of the other branch, or life, that is kept; or of a fork what follows the last event in common
        exact = item.seq <= gap.first or item.seq == gap.last + 1
    return "" if exact else f"{gap} stands between {at} and {item}"


def _gone(gap: Gap) -> set[int]:
    return set(range(gap.first, gap.last + 1))


@dataclass(frozen=True, slots=True)
class LiveLedger:
    """The numbers of one live fault: what was published, and what all its listeners together were told of it.

    ``missing``, ``repeated`` and ``wrong`` are those of :class:`Verdict`, summed.
    """

    CAPTION: ClassVar = "missing: neither heard nor told as a gap; wrong: an event or a gap that does not follow"

    published: int = 0
    listeners: int = 0
    heard: int = 0
    gaps: int = 0
    missing: int = 0
    repeated: int = 0
    wrong: int = 0

    def cells(self) -> dict[str, str]:
        """See :class:`tests.faults.ledger.Numbers`."""
        return {name: str(getattr(self, name)) for name in self.__slots__}

    def plus(self, transcripts: Iterable[Transcript], said: Said) -> tuple[LiveLedger, list[str]]:
        """The sum with these, and what in them breaks a promise, a line each."""
        told = list(transcripts)
        verdicts = [audit(each, said) for each in told]
        ledger = LiveLedger(
            self.published + len(said.known),
            self.listeners + len(told),
            self.heard + sum(len(each.heard()) for each in told),
            self.gaps + sum(len(each.gaps()) for each in told),
            self.missing + sum(len(each.missing) for each in verdicts),
            self.repeated + sum(len(each.repeated) for each in verdicts),
            self.wrong + sum(len(each.wrong) for each in verdicts),
        )
        lines = [line for each, verdict in zip(told, verdicts, strict=True) for line in verdict.lines(each.name)]
        return ledger, lines
