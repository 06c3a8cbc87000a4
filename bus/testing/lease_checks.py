"""Checks of leases: beats, what a worker has lost, what a dead worker leaves, and saying goodbye."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bus.store.base import PRIORITIES, Store
from bus.testing.store_checks import CALM_LEASE_MS, Worker, bodies, collected, enqueue, until

__all__ = ["LEASE_CHECKS", "WORKER_CHECKS"]

LONG_NAME = "h" * 100
"""Long enough that no store keeps its books on it in a short form by chance."""


def lose_lease(worker: Worker, *, to: Worker, max_lost: int = 1_000) -> None:
    """Have the one's lease run out and the other sweep."""
    worker.beat(received=0, lease_ms=1)
    until(lambda: to.beat(received=0, max_lost=max_lost).recovered, "a lease to run out")


# -- beats -------------------------------------------------------------------------------------------------------------


def check_a_beat_hands_back_what_the_worker_does_not_hold(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2", key="a")
    enqueue(store, b"3", b"4")
    lost, held, stray = worker.take()
    assert [lost.body, held.body, stray.body] == [b"1", b"3", b"4"], "three of four can be taken"

    beat = worker.beat([held])

    assert (beat.handed_back, beat.recovered) == (2, 0), f"two of three are not held: {beat}"
    assert worker.beat([held]).handed_back == 0, "the same was handed back twice"
    assert bodies(other.take()) == [b"1", b"4"], "something else was handed back"
    assert [worker.settle(one) for one in (lost, stray)] == [False, False], "what was handed back could be settled"
    assert worker.settle(held) is True, "what is held could not be settled"


def check_a_beat_hands_back_what_the_worker_holds_under_another_ticket(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1")
    old = worker.take_one()
    worker.settle(old, "back")
    again = worker.take_one()

    assert worker.beat([again]).handed_back == 0, "what the worker holds was handed back"
    assert worker.beat([old]).handed_back == 1, (
        "the reply to a later take of the same job was lost, and it stays where it is"
    )
    assert bodies(worker.take()) == [b"1"], "it cannot be taken again"


def check_a_beat_leaves_alone_what_is_newer_than_the_worker_knows(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2", b"3")
    received = worker.take(1)
    on_its_way = worker.take(1)

    beat = worker.beat(held=[], received=received[0].ticket)

    assert beat.handed_back == 1, f"one was received and is not held: {beat}"
    assert bodies(other.take()) == [b"1", b"3"], "another worker got something else"
    assert worker.settle(on_its_way[0]) is True, "a take whose answer is still on its way was handed back"


def check_a_beat_leaves_alone_what_is_being_answered(store: Store) -> None:
    """A take that rests on a wake-up is on its way for long, and later ones are answered before it."""
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2")
    (resting,) = worker.take(1)
    (lost,) = worker.take(1)

    beat = store.beat(worker.name, CALM_LEASE_MS, worker.tickets, (), 5, unanswered=[resting.ticket])

    assert beat.handed_back == 1, f"one of two is on its way: {beat}"
    assert bodies(other.take()) == [lost.body], "another worker got something else"
    assert worker.settle(resting) is True, "a take whose answer is still on its way was handed back"


def check_whoever_waits_is_handed_work_as_it_is_woken(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    worker.beat()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, ["q|other", "q|h"], 5, worker.name, [worker.wish(2)])
        enqueue(store, b"1", key="a")
        woken = waiting.result(10)
    enqueue(store, b"2", b"3", b"4")
    more = store.wait(["q|h"], 1, worker.name, [worker.wish(2), worker.wish(queue="empty")])

    assert (woken.rang, bodies(woken.taken)) == ("q|h", [b"1"]), f"it was woken with {woken}"
    assert bodies(more.taken) == [b"2", b"3"], f"the limit does not count: {more}"
    assert all(worker.settle(one) for one in (*woken.taken, *more.taken)), "what it was handed it cannot settle"
    assert store.wait(["q|h"], 0).rang == "q|h", "who fills up does not pass the wake-up on"
    enqueue(store, b"5", handler="h2")
    late = store.wait(["q|never"], 0, worker.name, [worker.wish(handlers=("h2",))])
    assert (late.rang, bodies(late.taken)) == (None, [b"5"]), f"when its time was over it got {late}"
    assert bodies(other.take()) == [b"4"], "something is lost"


def check_whoever_waits_is_told_of_lost_leases_and_notes(store: Store) -> None:
    doomed, worker = Worker(store), Worker(store, "w2")
    enqueue(store, b"1")
    doomed.settle(doomed.take_one(), "retry", 0, b"notes")
    doomed.beat(held=[])
    doomed.take()
    lose_lease(doomed, to=worker)

    (one,) = store.wait(["q|h"], 1, worker.name, [worker.wish()]).taken

    assert (one.body, one.lost, one.notes) == (b"1", 1, b"notes"), f"what is known of it is lost: {one}"


def check_whoever_fills_up_passes_the_ring_on_for_any_priority(store: Store) -> None:
    worker = Worker(store)
    for priority in range(PRIORITIES):
        enqueue(store, b"1", b"2", handler=f"h{priority}", priority=priority)
    for priority in range(PRIORITIES):
        name = f"h{priority}"
        store.wait([f"q|{name}"], 0)
        worker.take(1, handlers=(name,))
        assert store.wait([f"q|{name}"], 0).rang, f"nobody is told of what is left with priority {priority}"


def check_whoever_waits_without_a_lease_is_handed_nothing(store: Store) -> None:
    """A machine that is gone may have left a wait with the server; what that took would be gone for a lease's time."""
    worker, left, other = Worker(store), Worker(store, "w2"), Worker(store, "w3")
    left.beat()
    store.leave(left.name)
    enqueue(store, b"1")

    for gone in (worker, left):
        woken = store.wait(["q|h"], 0, gone.name, [gone.wish()])
        assert woken.taken == [], f"{gone.name} has no lease, and got {woken}"
    assert bodies(other.take()) == [b"1"], "something is lost"


def check_what_is_handed_back_stands_as_it_stood(store: Store) -> None:
    worker = Worker(store)
    names = [b"%d" % n for n in range(40)]
    for n, name in enumerate(names):
        enqueue(store, name, name + b" later", handler=LONG_NAME, key=f"k{n}")
    enqueue(store, *names, handler="h2")
    expected = bodies(worker.take(handlers=(LONG_NAME,))), bodies(worker.take(25, handlers=("h2",)))
    worker.take(5, handlers=("h2",))

    worker.beat(held=[])

    again = bodies(worker.take(handlers=(LONG_NAME,))), bodies(worker.take(25, handlers=("h2",)))
    assert again == expected, f"after a hand-back they came as {again}"


def check_a_beat_renews_the_lease(store: Store) -> None:
    worker, silent, other = Worker(store), Worker(store, "w2"), Worker(store, "w3")
    enqueue(store, b"1", b"2")
    (mine,) = worker.take(1)
    silent.take(1)
    worker.beat([mine], lease_ms=20)
    silent.beat(received=0, lease_ms=20)
    worker.beat([mine], lease_ms=CALM_LEASE_MS)

    recovered = until(lambda: other.beat().recovered, "the silent worker's lease to run out")

    assert recovered == 1, f"one worker of two was silent, and {recovered} jobs were recovered"
    assert bodies(other.take()) == [b"2"], "not the silent worker's job came back"
    assert worker.settle(mine) is True, "a worker lost what it had beaten for"


# -- leases that run out -----------------------------------------------------------------------------------------------


def check_a_lost_lease_returns_jobs_to_the_heads_of_their_lanes(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"a1", b"a2", b"a3", key="a")
    enqueue(store, b"1", b"2", b"3", b"4", handler="h2")
    (one,) = worker.take()
    first, second = worker.take(2, handlers=("h2",))

    lose_lease(worker, to=other)

    taken = other.take(handlers=("h", "h2"))
    lane = [(each.body, each.lost) for each in taken if each.key]
    free = [(each.body, each.lost) for each in taken if not each.key]
    assert lane == [(b"a1", 1)], f"the lane goes on with {lane}"
    assert free == [(b"1", 1), (b"2", 1), (b"3", 0), (b"4", 0)], f"without a lane they came as {free}"
    late = [worker.settle(one), worker.settle(first, "retry"), worker.settle(second, "dead")]
    assert late == [False] * 3, f"late settlements were accepted: {late}"
    assert other.settle(taken[0]) is True, "the new owner's settlement was refused"


def check_a_lost_lease_keeps_notes_and_counts_on(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", key="a")
    worker.settle(worker.take_one(), "retry", 0, b"notes")
    worker.beat(held=[])
    for lost in (0, 1, 2):
        one = worker.take_one()
        assert (one.lost, one.notes) == (lost, b"notes"), f"after {lost} lost leases: {one}"
        lose_lease(worker, to=other)
    one = worker.take_one()
    worker.settle(one, "retry", 0, b"more")
    worker.beat(held=[])

    one = worker.take_one()

    assert (one.lost, one.notes) == (3, b"more"), f"a settlement does not forget lost leases: {one}"


def check_a_worker_whose_lease_ran_out_may_go_on(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2")
    worker.take(1)
    lose_lease(worker, to=other)

    one = worker.take_one()
    other.beat()

    assert worker.settle(one) is True, "it took anew, and its settlement was refused"


def check_a_job_that_loses_too_many_leases_is_poison(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"poison", b"innocent", key="a")
    for lost in (0, 1):
        assert worker.take_one().lost == lost, "leases that ran out are not counted"
        assert store.dead_count() == 0, "it died too early"
        if lost:
            enqueue(store, b"beside", handler="h2")
            assert len(worker.take(handlers=("h2",))) == 1, "beside it another job can be taken"
        worker.beat(received=0, lease_ms=1)
        beat = until(
            lambda: found if (found := other.beat(received=0, max_lost=2)).recovered else None, "a lease to end"
        )
        assert beat is not None
        assert beat.recovered == 1 + lost
        assert len(beat.buried) == lost, f"not the poison alone was buried: {beat}"

    (dead,) = store.dead()

    assert beat is not None
    assert list(beat.buried) == [dead.job], f"another job is named: {beat}"
    assert (dead.body, dead.reason, dead.lost, dead.key) == (b"poison", "poison", 2, "a"), f"the dead letter is {dead}"
    assert store.pending("q") == 2, "a poison job is pending, or its neighbours are not"
    innocent = other.take_one()
    assert (innocent.body, innocent.lost) == (b"innocent", 0), f"the lane goes on with {innocent}"


# -- goodbye -----------------------------------------------------------------------------------------------------------


def check_leaving_hands_everything_back_in_order(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    names = [b"%d" % n for n in range(40)]
    enqueue(store, *names, handler=LONG_NAME)
    enqueue(store, b"a1", b"a2", key="a")
    taken = worker.take(20, handlers=(LONG_NAME,)) + worker.take(20, handlers=(LONG_NAME,)) + worker.take()

    handed_back = worker.store.leave(worker.name)

    assert handed_back == 41, f"41 jobs were held, and {handed_back} handed back"
    assert store.leave(worker.name) == 0, "a second goodbye found something"
    assert not any(worker.settle(one) for one in taken), "what was handed back could be settled"
    again = other.take(handlers=(LONG_NAME,))
    assert bodies(again) == names, f"they came back as {bodies(again)}"
    assert other.drain() == [b"a1", b"a2"], "the lane lost its order"
    assert {one.lost for one in again} == {0}, "leaving counts as a lost lease"
    assert (store.leave("never heard of"), store.pending("q")) == (0, 40), "a stranger's goodbye did something"


def check_leaving_touches_no_other_worker(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w3")
    enqueue(store, b"1")
    worker.take()
    worker.beat(received=0, lease_ms=1)
    start = time.perf_counter()
    until(lambda: time.perf_counter() - start > 0.02, "a lease to run out")

    store.leave("w2")

    assert other.beat(max_lost=1).recovered == 1, "a goodbye swept up after another worker"
    assert store.dead_count() == 1, "the job lost its last lease and lives"


def check_a_worker_that_left_may_come_back(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1")
    worker.take()
    store.leave(worker.name)

    one = worker.take_one()
    other.beat()

    assert worker.settle(one) is True, "it came back, and its settlement was refused"


WORKER_CHECKS = collected(globals())


# -- on a store made with SHORT_LEASE_MS -------------------------------------------------------------------------------


def check_a_take_begins_a_lease(store: Store) -> None:
    """A worker that dies before its first beat is found all the same."""
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", key="a")
    worker.take()

    recovered = until(lambda: other.beat().recovered, "the lease of a take to run out")

    assert recovered == 1, f"one job was held, and {recovered} were recovered"
    assert [(one.body, one.lost) for one in other.take()] == [(b"1", 1)], "the job did not come back"


def check_further_takes_do_not_renew_a_lease(store: Store) -> None:
    """Only beats do: a worker whose heart has stopped takes on, and is found all the same."""
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1")
    worker.take()

    def found() -> int:
        enqueue(store, b"another")
        worker.take()
        return other.beat().recovered

    until(found, "the lease of a worker without a heartbeat to run out")


def check_a_wait_that_wishes_for_nothing_takes_nothing(store: Store) -> None:
    worker = Worker(store)
    worker.beat()
    enqueue(store, b"1")

    woken = store.wait(["q|h"], 1, worker.name, [worker.wish(0), worker.wish(5, handlers=())])

    assert (woken.rang, woken.taken) == ("q|h", []), f"it was woken with {woken}"


def check_a_wait_that_has_room_for_none_passes_the_ring_on(store: Store) -> None:
    worker = Worker(store)
    worker.beat()
    enqueue(store, b"1")

    woken = store.wait(["q|h"], 1, worker.name, [worker.wish(5)._replace(most=(0,))])

    assert (woken.rang, woken.taken) == ("q|h", []), f"it was woken with {woken}"
    assert store.wait(["q|h"], 0).rang == "q|h", "the next one is not told that there is work"


LEASE_CHECKS = tuple(check for check in collected(globals()) if check not in WORKER_CHECKS)
