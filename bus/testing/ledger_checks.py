"""Checks of what is kept beside the jobs: who serves what, what a held lane waits for, bindings that go, the step ledger."""

from __future__ import annotations

from bus.store.base import Route, Store
from bus.testing.lease_checks import lose_lease
from bus.testing.store_checks import HOME, NEVER, Worker, append, batch, collected, enqueue, post, until

__all__ = ["LEDGER_CHECKS"]


def serving(store: Store) -> dict[str, list[str]]:
    """What the census says."""
    return {worker: sorted(names) for worker, names in store.census().serving.items()}


def check_a_beat_tells_what_a_worker_serves(store: Store) -> None:
    one, two = Worker(store), Worker(store, "w2")
    store.beat(one.name, 60_000, 0, (), 5, serves=["q|h", "q|h2"])
    store.beat(two.name, 60_000, 0, (), 5, serves=[])

    assert serving(store) == {"w1": ["q|h", "q|h2"], "w2": []}, f"it is told as {serving(store)}"
    store.beat(one.name, 60_000, 0, (), 5, serves=["q|h3"])
    assert serving(store)["w1"] == ["q|h3"], "the last beat does not count"
    store.leave(two.name)
    assert serving(store) == {"w1": ["q|h3"]}, "who has left serves still"
    enqueue(store, b"1", handler="h3")
    one.take(handlers=("h3",))
    lose_lease(one, to=Worker(store, "w3"))
    assert "w1" not in serving(store), "the dead serve still"


def check_lanes_that_wait_for_a_retry_are_told(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", b"3", key="a|b", priority=0)
    enqueue(store, b"4", key="c")
    enqueue(store, b"5", due=NEVER)
    first, second = worker.take()
    worker.settle(first, "retry", 60_000, b"notes")
    worker.settle(second, "retry", 30_000)

    sooner, later = store.retrying()

    assert sooner[:3] == (second.job, Route("q", "h", 1), "c"), f"the next due is {sooner}"
    assert later[:3] == (first.job, Route("q", "h", 0), "a|b"), f"the last due is {later}"
    assert (sooner.behind, later.behind) == (0, 2), "not all that wait behind are told"
    assert (later.body, later.notes) == (b"1", b"notes"), f"the job is told as {later}"
    assert 59_000 < later.due_in_ms <= 60_000, f"due in {later.due_in_ms} ms, not a minute"
    assert [one.job for one in store.retrying(1)] == [second.job], "the limit does not count"


def check_a_removed_binding_makes_publishers_match_anew(store: Store) -> None:
    version = store.bind({"one": b"1", "two": b"2"})

    assert store.unbind(["one", "never heard of"]) == [True, False], "not what was there was removed"

    newer = store.bindings()
    assert newer.bindings == {"two": b"2"}, f"left are {newer.bindings}"
    assert newer.version > version, "publishers would go on matching with what was removed"
    stale = store.append(batch(post(), version=version))
    assert stale == newer, f"a publisher with the old bindings is told {stale}"
    assert store.unbind(["one"]) == [False], "it was removed twice"
    assert store.bindings() == newer, "nothing was removed, and the version moved"


def check_a_removed_bindings_work_stays(store: Store) -> None:
    store.bind({"h": b"1", "h2": b"2"})
    version = store.bindings().version
    append(store, batch(post(b"1", jobs=[(HOME, ""), (Route("q", "h2", 1), "")]), version=version))
    worker = Worker(store)
    worker.settle(worker.take_one(handlers=("h2",)))

    store.unbind(["h", "h2"])

    assert [(count.handler, count.unfinished) for count in store.census().counts] == [("h", 1)], "what is told is left"
    assert worker.drain() == [b"e1"], "accepted work was lost with its binding"


def check_the_first_to_record_a_step_counts(store: Store) -> None:
    assert store.recall("1", "pay") is None, "a step that nobody did is known"

    assert store.record("1", "pay", b"first", 60_000) == b"first", "the first to say does not count"
    assert store.record("1", "pay", b"second", 60_000) == b"first", "another word took the first one's place"

    assert store.recall("1", "pay") == b"first", "what was recorded is not known"
    assert (store.recall("1", "tell"), store.recall("2", "pay")) == (None, None), "steps are mixed up"
    assert store.record("2", "pay", b"", 60_000) == b"", "nothing is a value, too"
    assert store.recall("2", "pay") == b"", "nothing is a value, too"


def check_steps_are_forgotten_after_a_while(store: Store) -> None:
    store.record("1", "one", b"1", 25)
    store.record("2", "one", b"1", 60_000)
    until(lambda: store.recall("1", "one") is None, "a step to be forgotten")

    assert store.record("1", "one", b"2", 60_000) == b"2", "a forgotten step counts still"
    assert store.recall("2", "one") == b"1", "another work's steps were forgotten, too"


def check_steps_outlive_their_job(store: Store) -> None:
    """A worker that has lost its lease, and does not know it, must not do them again."""
    worker = Worker(store)
    enqueue(store, b"1", b"2")
    done, dropped = worker.take()
    for one in (done, dropped):
        store.record(one.job, "pay", b"paid", 60_000)
    worker.settle(done)
    worker.settle(dropped, "dead")
    store.drop([dropped.job])

    assert [store.recall(one.job, "pay") for one in (done, dropped)] == [b"paid"] * 2, "what was done is forgotten"


LEDGER_CHECKS = collected(globals())
