"""The plan of a publish, without a store: what is sent, in which pieces, and what is sent again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from pydantic import Field

from bus.bindings import Binding
from bus.clock import Clock
from bus.errors import BusUnavailable, LogClosed
from bus.events import Event
from bus.position import Position
from bus.publication import Publication, drafted
from bus.publisher import BATCH, BATCH_BYTES, Answer, Pause, Plan, Publisher, Receipt
from bus.settings import Limits
from bus.store.base import Appended, Batch, Ended, OwnLimits, Route, Stale


class Posted(Event, type="publisher.posted"):
    agent_id: str
    text: str = "hi"


class Plain(Event, type="publisher.by"):
    by: str | int | float | bool | None


class Listed(Event, type="publisher.by.listed"):
    by: str | int | float | bool | None
    more: list[int] = Field(default_factory=list)


POSTED = Posted(agent_id="a1")


def publisher(**limits: Any) -> Publisher:
    return Publisher("/a", Limits(**limits), Clock())


def batches(of: Publisher, *publications: Publication) -> list[Batch]:
    return of.batches(map(drafted, publications))


def bindings(version: int, *wanted: Binding) -> Stale:
    return Stale(version, {binding.handler: binding.encode() for binding in wanted})


def taken(batch: Batch, first: int = 1) -> list[Appended]:
    """As a store answers that has it all."""
    return [Appended(Position("e1", first + n, post.token), duplicate=False) for n, post in enumerate(batch.posts)]


@contextmanager
def going(plan: Plan) -> Iterator[Plan]:
    try:
        yield plan
    finally:
        plan.close()


def sent(plan: Plan, answer: Answer = None) -> Batch:
    """What it sends next; it may pause before."""
    step = plan.send(answer)
    while isinstance(step, Pause):
        step = plan.send(None)
    return step


def ended(plan: Plan, answer: Answer) -> list[Receipt]:
    with pytest.raises(StopIteration) as stop:
        plan.send(answer)
    receipts: list[Receipt] = stop.value.value
    return receipts


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_runs_of_one_log_go_together() -> None:
    own = OwnLimits(cap=5)
    made = [
        Publication(POSTED, id=str(n), log=log, own=its)
        for n, (log, its) in enumerate(
            [(None, OwnLimits()), ("main", OwnLimits()), ("b", own), ("b", OwnLimits()), ("main", own)]
        )
    ]

    found = batches(publisher(), *made)

    assert [(batch.log, batch.own, [post.id for post in batch.posts]) for batch in found] == [
        ("main", OwnLimits(), ["0", "1"]),
        ("b", own, ["2"]),
        ("b", OwnLimits(), ["3"]),
        ("main", own, ["4"]),
    ]


def test_a_batch_is_bounded_in_number() -> None:
    found = batches(publisher(), *[Publication(POSTED)] * (2 * BATCH + 1))

    assert [len(batch.posts) for batch in found] == [BATCH, BATCH, 1]


def test_a_batch_is_bounded_in_size() -> None:
    third = Posted(agent_id="a1", text="x" * (BATCH_BYTES // 3))
    small = Publication(POSTED)

    found = batches(publisher(max_bytes=BATCH_BYTES), *[Publication(third)] * 5, small, Publication(third), small)

    assert [len(batch.posts) for batch in found] == [2, 2, 4]
    assert all(sum(len(post.body) for post in batch.posts) <= BATCH_BYTES for batch in found)


# -- once more ---------------------------------------------------------------------------------------------------------


def test_what_was_matched_with_old_bindings_is_matched_anew() -> None:
    mine = publisher()
    plain = {"type": "publisher.plain", "agent_id": {"of": 1}}
    logs = [
        Publication(POSTED),
        Publication(plain),
        Publication(POSTED, key="mine"),
        Publication(POSTED, ["b"]),
        Publication({"type": "publisher.other"}),
        Publication(POSTED, log="later"),
    ]
    types = ("publisher.posted", "publisher.plain")
    everything = Binding.make(handler="all", types=types)
    by_agent = Binding.make(handler="by-agent", queue="q", types=types, topics=("global",), key="agent_id")
    first, later = batches(mine, *logs)
    assert {post.jobs for post in first.posts} == {()}

    with going(mine.plan([first, later])) as plan:
        assert sent(plan) == first
        assert {post.jobs for post in sent(plan, bindings(6)).posts} == {()}
        again = sent(plan, bindings(7, everything, by_agent))
        then = sent(plan, taken(again))
        receipts = ended(plan, taken(then))

    one, two = everything.route, by_agent.route
    assert again.version == then.version == 7
    assert [post._replace(jobs=()) for post in again.posts] == first.posts
    assert [post.jobs for post in again.posts] == [
        ((one, ""), (two, "a1")),
        ((one, ""), (two, '{"of":1}')),
        ((one, "mine"), (two, "mine")),
        ((one, ""),),
        (),
    ]
    assert [post.jobs for post in then.posts] == [((one, ""), (two, "a1"))]
    assert [receipt.jobs for receipt in receipts] == [2, 2, 2, 1, 0, 2]
    assert [batch.version for batch in batches(mine, *logs)] == [7, 7]


@pytest.mark.parametrize(
    ("value", "lane"), [("a1", "a1"), ("", ""), (None, ""), (7, "7"), (True, "true"), (-0.0, "-0.0"), (1e22, "1e+22")]
)
def test_a_lane_is_what_the_event_says_however_it_was_given(value: Any, lane: str) -> None:
    """One whose fields are plain, one that is written as JSON only, and a dict."""
    mine = publisher()
    by_field = Binding(handler="h", types=("publisher.by", "publisher.by.listed", "publisher.by.dict"), key="by")
    given: list[Any] = [Plain(by=value), Listed(by=value), {"type": "publisher.by.dict", "by": value}]

    with going(mine.plan(batches(mine, Publication(POSTED)))) as plan:
        sent(plan)
        sent(plan, bindings(7, by_field))
    (batch,) = batches(mine, *[Publication(one) for one in given])

    assert [[key for _, key in post.jobs] for post in batch.posts] == [[lane]] * 3


def test_what_is_not_written_is_no_lane() -> None:
    """A secret that is left out of an event would stand in the names of keys."""

    class Hidden(Event, type="publisher.by.hidden"):
        by: str = Field(exclude=True)

    class Endless(Event, type="publisher.by.endless", allow_inf_nan=True, ser_json_inf_nan="null"):
        by: float

    mine = publisher()
    by_field = Binding(handler="h", types=("publisher.by.hidden", "publisher.by.endless"), key="by")

    with going(mine.plan(batches(mine, Publication(POSTED)))) as plan:
        sent(plan)
        sent(plan, bindings(7, by_field))
    (batch,) = batches(mine, Publication(Hidden(by="4111")), Publication(Endless(by=math.inf)))

    assert [[key for _, key in post.jobs] for post in batch.posts] == [[""]] * 2


def test_an_epoch_is_offered_once() -> None:
    mine = publisher()

    offered = [batch.epoch for _ in range(50) for batch in batches(mine, Publication(POSTED))]

    assert len(set(offered)) == 50
    assert all(re.fullmatch("[0-9a-f]{8}", epoch) for epoch in offered)


def test_a_lost_reply_is_answered_by_the_same_again() -> None:
    mine = publisher()
    (first,) = batches(mine, Publication(POSTED), Publication(POSTED))

    with going(mine.plan([first])) as plan:
        sent(plan)
        again = sent(plan, BusUnavailable("lost", outcome="unknown"))
        known = [one._replace(duplicate=True) for one in taken(again)]
        receipts = ended(plan, known)

    assert again._replace(epoch=first.epoch) == first
    assert again.epoch != first.epoch, "the log may have begun another life: an epoch is offered once"
    assert [receipt.duplicate for receipt in receipts] == [False, False], "it is our own, come again"


def test_once_unknown_is_always_unknown() -> None:
    mine = publisher(deadline_s=0.05)
    (first,) = batches(mine, Publication(POSTED, id="mine"))

    with going(mine.plan([first])) as plan:
        sent(plan)
        sent(plan, BusUnavailable("lost", outcome="unknown"))
        with pytest.raises(BusUnavailable) as told:
            refused_for_ever(plan)

    assert (told.value.outcome, told.value.id) == ("unknown", "mine")


def test_what_a_store_did_not_take_is_sent_again_behind_what_it_took() -> None:
    mine = publisher()
    (first,) = batches(mine, *[Publication(POSTED, id=str(n)) for n in range(5)])

    with going(mine.plan([first])) as plan:
        sent(plan)
        rest = sent(plan, taken(first)[:2])
        last = sent(plan, taken(rest, 3)[:1])
        receipts = ended(plan, taken(last, 4))

    assert [post.id for post in rest.posts] == ["2", "3", "4"]
    assert [post.id for post in last.posts] == ["3", "4"]
    assert len({first.epoch, rest.epoch, last.epoch}) == 3, (
        "the log may have begun another life: an epoch is offered once"
    )
    assert [(receipt.id, receipt.position.seq) for receipt in receipts] == [(str(n), n + 1) for n in range(5)]


@pytest.mark.parametrize("before", ["refused", "unknown"])
def test_a_refusal_names_the_first_that_was_not_taken(before: Literal["refused", "unknown"]) -> None:
    """Of a try before nothing is known but its outcome: all of it may have arrived."""
    mine = publisher(deadline_s=0.05)
    (first,) = batches(mine, *[Publication(POSTED, id=str(n)) for n in range(5)])

    with going(mine.plan([first])) as plan:
        sent(plan)
        again = sent(plan, BusUnavailable("away", outcome=before))
        sent(plan, taken(again)[:2])
        with pytest.raises(BusUnavailable) as told:
            refused_for_ever(plan)

    assert (told.value.outcome, told.value.id) == (before, "2")


def test_what_may_have_gone_in_has_the_jobs_that_it_was_sent_with() -> None:
    """Until the store says that it has not, whatever other publishers have learnt meanwhile."""
    mine = publisher()
    (first,) = batches(mine, Publication(POSTED))

    with going(mine.plan([first])) as plan:
        sent(plan)
        learnt_by_another(mine)
        again = sent(plan, BusUnavailable("lost", outcome="unknown"))
        (known,) = ended(plan, taken(again))

    assert (again.version, again.posts, known.jobs) == (first.version, first.posts, 0)


def test_what_had_not_gone_in_is_matched_with_what_others_have_learnt() -> None:
    mine = publisher()
    (first,) = batches(mine, Publication(POSTED))

    with going(mine.plan([first])) as plan:
        sent(plan)
        again = sent(plan, learnt_by_another(mine))
        (receipt,) = ended(plan, taken(again))

    assert (again.version, receipt.jobs) == (7, 1)


def learnt_by_another(mine: Publisher) -> Stale:
    """What the store tells another plan of this publisher: by now somebody wants these events."""
    bound = bindings(7, Binding.make(handler="h", types=("publisher.posted",)))
    with going(mine.plan(batches(mine, Publication(POSTED)))) as plan:
        sent(plan)
        assert sent(plan, bound).version == 7
    return bound


def test_a_log_that_ended_meanwhile_names_the_first_that_it_did_not_take() -> None:
    mine = publisher()
    (first,) = batches(mine, *[Publication(POSTED, id=str(n)) for n in range(3)])

    with going(mine.plan([first])) as plan:
        sent(plan)
        sent(plan, taken(first)[:1])
        with pytest.raises(LogClosed) as told:
            plan.send(Ended(Position("e1", 1, "t")))

    assert told.value.id == "1"


def refused_for_ever(plan: Plan) -> None:
    while True:
        sent(plan, BusUnavailable("away", outcome="refused"))


def test_a_route_is_where_its_binding_says() -> None:
    mine = publisher()
    binding = Binding.make(handler="h", queue="q", types=("publisher.posted",), priority=2)
    (first,) = batches(mine, Publication(POSTED, delay=1.5))

    with going(mine.plan([first])) as plan:
        sent(plan)
        again = sent(plan, bindings(1, binding))

    assert [(post.jobs, post.due) for post in again.posts] == [(((Route("q", "h", 2), ""),), "+1500")]
