"""The live half, broken: the faults of ``python -m tests.faults live`` and ``storm``, in their quick forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bus import Gap
from tests.faults import live, storm
from tests.faults.harness import Fault, try_out
from tests.faults.transcripts import BEGINNING, Heard, Place, Said, Transcript, Verdict, audit
from tests.servers import Server

FAULTS = (*storm.FAULTS, *live.FAULTS)


@pytest.mark.fault
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_listeners_are_told_what_is_promised_when_things_break(
    fault: Fault, start_server: Callable[..., Server]
) -> None:
    row, failure = try_out(fault, quick=True, start_server=start_server)

    if failure is not None:
        raise failure
    assert row.ok


# The audit, which all of this stands on: it must see what is wrong.

SAID = Said().branch(["a1", "a2", "a3", "a4", "a5"]).branch(["a1", "a2", "b3", "b4", "b5", "b6"])
"""A log that parted after its second event."""


def told(*items: str | Gap, after: Place = BEGINNING) -> Verdict:
    """The verdict over a transcript; an event is given by its id, whose digit is its number."""
    transcript = Transcript("somebody", after)
    transcript.items += [Heard(int(item[1]), item, sound=True) if isinstance(item, str) else item for item in items]
    return audit(transcript, SAID)


@pytest.mark.parametrize(
    "items",
    [
        ["a1", "a2", "b3", "b4", "b5", "b6"],
        ["a1", "a2", "a3", Gap(3, 3, "fork"), "a1", "a2", "b3", "b4", "b5", "b6"],
        ["a1", "a2", "a3", Gap(3, 3, "fork"), "b3", "b4", "b5", "b6"],
        [Gap(1, 4, "trimmed"), "b5", "b6"],
        ["a1", Gap(2, 4, "trimmed"), "b5", "b6"],
    ],
)
def test_a_transcript_without_fault_has_none(items: list[str | Gap]) -> None:
    assert not told(*items)


@pytest.mark.parametrize(
    ("items", "missing", "repeated", "wrong"),
    [
        (["a1", "a2", "b3", "b4", "b6"], {5}, 0, 1),  # a hole
        (["a1", "a2", "b3", "b4", "b5"], {6}, 0, 0),  # at the end
        (["a1", "a2", "b3", "b3", "b4", "b5", "b6"], set(), 1, 0),
        (["a1", "b3", "a2", "b4", "b5", "b6"], set(), 0, 3),  # out of order
        (["a1", "a2", "a3", "b4", "b5", "b6"], {3}, 0, 1),  # from one branch to the other, the numbers in order
        (["a1", "a2", "a3", Gap(3, 3, "fork"), "b3", "b4", "b5"], {6}, 0, 0),  # told of a fork, and yet not all
        (["a1", "a2", "a3", Gap(3, 3, "fork"), "b5", "b6"], {4}, 0, 1),
        (["a1", "a2", "a3", Gap(3, 3, "fork"), "b3", "b5", "b6"], {4}, 0, 1),
        (["a1", "a2", "a3", Gap(3, 3, "fork")], {4, 5, 6}, 0, 0),
        (["a1", Gap(2, 3, "trimmed"), "b5", "b6"], {4}, 0, 1),  # a gap that says too little
        (["a1", Gap(2, 4, "trimmed"), "b4", "b5", "b6"], set(), 0, 1),  # or too much
        (["c1", "a2", "b3", "b4", "b5", "b6"], {1}, 0, 2),  # no such event
    ],
)
def test_what_is_wrong_in_a_transcript_is_found(
    items: list[str | Gap], missing: set[int], repeated: int, wrong: int
) -> None:
    verdict = told(*items)

    assert (verdict.missing, len(verdict.repeated), len(verdict.wrong)) == (missing, repeated, wrong)


def test_an_event_with_somebody_elses_content_is_wrong() -> None:
    transcript = Transcript("somebody", Place(5, "b5"))
    transcript.items.append(Heard(6, "b6", sound=False))

    assert audit(transcript, SAID).wrong
