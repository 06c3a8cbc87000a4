"""Checks of suspects: what happens to a job whose workers keep dying, and to what was beside it."""

from __future__ import annotations

from bus.store.base import ALONE, COMPANY, Store
from bus.testing.lease_checks import lose_lease
from bus.testing.store_checks import CALM_LEASE_MS, NEVER, Worker, bodies, collected, enqueue, until

__all__ = ["SUSPECT_CHECKS"]


def suspect(store: Store, body: bytes = b"suspect", *, key: str = "", handler: str = "h", queue: str = "q") -> None:
    """Queue a job and have so many leases run out under it that it must be alone. Nothing else may be ready for its handler."""
    enqueue(store, body, key=key, handler=handler, queue=queue)
    for _ in range(ALONE):
        doomed = Worker(store, "doomed")
        assert bodies(doomed.take(handlers=(handler,), queue=queue)) == [body], "a job that was lost is not there again"
        lose_lease(doomed, to=Worker(store, "sweeper"))


def check_a_job_lost_once_is_taken_with_others(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2")
    worker.take()
    lose_lease(worker, to=Worker(store, "w2"))

    assert bodies(Worker(store, "w3").take()) == [b"1", b"2"], "one killed worker's jobs are no suspects"


def check_what_a_stopping_worker_leaves_behind_was_not_lost(store: Store) -> None:
    sweeper = Worker(store, "sweeper")
    enqueue(store, b"long", key="a")
    for life in range(6):
        worker = Worker(store, f"life {life}")
        (long,) = worker.take()
        assert (long.body, long.lost) == (b"long", 0), f"after {life} stops it is {long}"
        worker.beat([long], lease_ms=1, stopping=True)
        until(lambda: sweeper.beat(received=0, max_lost=1).recovered, "the lease to run out")
    changed = Worker(store, "changed its mind")
    held = changed.take()
    changed.beat(held, stopping=True)
    changed.beat(held)
    lose_lease(changed, to=sweeper)
    assert [one.lost for one in sweeper.take()] == [1], (
        "a worker that does not stop any more died, and that did not count"
    )


def check_suspects_are_taken_a_few_at_a_time_beside_other_work(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    _, some, _ = COMPANY
    lose_often(store, some + 4, 3)
    enqueue(store, b"a", b"b")
    enqueue(store, b"c", handler="h2")

    first = store.exchange(worker.name, (), [worker.wish(some - 6, handlers=("h", "h2"))])
    second = store.exchange(worker.name, (), [worker.wish(100, handlers=("h", "h2"))])
    third = store.exchange(worker.name, (), [worker.wish(100, handlers=("h", "h2"))])

    assert bodies(first.taken) == [b"%d" % n for n in range(some - 6)], f"first came {first}"
    assert sorted(bodies(second.taken)) == [b"a", b"b", b"c"], f"in the turn of fresh work came {second}"
    assert bodies(third.taken) == [b"%d" % n for n in range(some - 6, some)], f"then came {third}"
    assert {first.apart, second.apart, third.apart} == {""}, "a worker stands apart for suspects that need not be alone"
    store.wait(["q|h"], 0)
    assert worker.take() == [], f"more than {some} would be lost together"
    assert worker.settle(first.taken[0])
    assert store.wait(["q|h"], 0).rang == "q|h", "another one may come in its place, and nobody was told"
    assert bodies(worker.take()) == [b"%d" % some], "none came in its place"
    assert bodies(other.take()) == [b"%d" % n for n in range(some + 1, some + 4)], (
        "the others were not for another worker"
    )


def check_suspects_that_lost_more_or_fewer_leases_are_not_together(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    lose_often(store, 4, 2)
    doomed = Worker(store, "one more")
    doomed.take(2)
    lose_lease(doomed, to=Worker(store, "sweeper"))
    assert [one.lost for one in worker.take(1)] == [2], "those that lost more came first"

    assert [one.lost for one in worker.take()] == [2], "they are not with their like"
    assert worker.take() == [], "those that lost more are beside those that lost fewer"
    assert [one.lost for one in other.take()] == [3, 3], "another worker cannot have the others"


def check_one_that_must_be_alone_is_taken_with_nothing_else(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    suspect(store)
    enqueue(store, b"1", b"2")

    answer = store.exchange(worker.name, (), [worker.wish()])

    assert [(one.body, one.lost) for one in answer.taken] == [(b"suspect", ALONE)], f"a worker at leisure got {answer}"
    assert answer.apart == "q|h", f"the worker is apart for {answer.apart!r}"
    assert worker.take() == [], "more was handed out while the suspect runs"
    assert worker.take(handlers=("h2",)) == [], "work of another handler was handed out while the suspect runs"
    assert bodies(other.take()) == [b"1", b"2"], "others do not go on meanwhile"
    enqueue(store, b"3")
    after = worker.settle_and_take(answer.taken[0])
    assert (after.settled, bodies(after.taken), after.apart) == ([True], [b"3"], ""), f"afterwards it got {after}"


def check_a_busy_worker_is_set_apart_for_a_suspect(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"long", b"other", handler="h2")
    suspect(store)
    (long,) = worker.take(1, handlers=("h2",))
    other.take(1, handlers=("h2",))
    enqueue(store, b"1", b"2", b"3")

    apart = store.exchange(worker.name, (), [worker.wish(1)])
    beside = store.exchange(other.name, (), [other.wish(1)])

    assert (apart.taken, apart.apart) == ([], "q|h"), f"a worker that holds something got {apart}"
    assert (bodies(beside.taken), beside.apart) == ([b"1"], ""), f"one is apart already, and another got {beside}"
    done = worker.settle_and_take(long)
    assert (bodies(done.taken), done.apart) == ([b"suspect"], "q|h"), f"now that it holds nothing it got {done}"


def check_nobody_stays_apart_for_a_suspect_that_another_took(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"long", handler="h2")
    suspect(store)
    worker.take(1, handlers=("h2",))
    assert store.exchange(worker.name, (), [worker.wish()]).apart == "q|h", (
        "a worker that holds something was not set apart"
    )
    store.pause("q")
    assert worker.take(handlers=("h2",), queue="q2") == [], "nothing is there"
    store.resume("q")
    (one,) = other.take()
    enqueue(store, b"1")

    assert one.body == b"suspect", "an idle worker does not get what another is set apart for"
    answer = store.exchange(worker.name, (), [worker.wish()])
    assert (bodies(answer.taken), answer.apart) == ([b"1"], ""), f"it waits for a suspect that is gone: {answer}"
    enqueue(store, b"2")
    assert other.take() == [], "who works on a suspect was handed more"


def check_nobody_stays_apart_who_holds_nothing(store: Store) -> None:
    settling, leaving, dying, struck, other = (Worker(store, f"w{n}") for n in range(5))
    for worker in (settling, leaving, dying, struck):
        suspect(store, worker.name.encode())
        enqueue(store, b"held", handler=worker.name)
        (held,) = worker.take(handlers=(worker.name,))
        assert store.exchange(worker.name, (), [worker.wish()]).apart, "a worker that holds something was not set apart"
        if worker is settling:
            worker.settle(held)
        elif worker is leaving:
            store.leave(worker.name)
        elif worker is dying:
            lose_lease(worker, to=other)
        else:
            worker.beat(held=[])
        (one,) = other.take(1)
        assert (one.body, other.settle(one)) == (worker.name.encode(), True), f"{worker.name} is apart still: {one}"
        enqueue(store, b"as ever")
        assert bodies(worker.take()) == [b"as ever"], f"{worker.name} gets nothing any more"
        worker.beat(held=[])
        other.drain()


def check_who_works_on_what_was_struck_out_is_not_alone(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"dropped", queue="q2")
    dropped = worker.take_one(queue="q2")
    suspect(store)
    store.flush("q2")

    for _ in range(2):
        busy = store.exchange(worker.name, (), [worker.wish()._replace(idle=False)])
        assert (busy.taken, busy.apart) == ([], "q|h"), f"beside what is in no books but its own it got {busy}"
        worker.beat([dropped])
    idle = Worker(store, "idle")
    asleep = store.exchange(idle.name, (), [idle.wish()._replace(idle=False)])
    assert (asleep.taken, asleep.apart) == ([], ""), f"two make room for one: {asleep}"
    done = worker.settle_and_take(dropped)
    assert (done.settled, bodies(done.taken), done.apart) == ([False], [b"suspect"], "q|h"), f"when it was done: {done}"


def check_a_worker_that_did_not_know_that_it_would_be_idle_is_handed_a_suspect_when_it_says_so(store: Store) -> None:
    worker = Worker(store)
    suspect(store)

    asleep = store.exchange(worker.name, (), [worker.wish()._replace(idle=False)])
    awake = store.exchange(worker.name, (), [worker.wish()])

    assert (asleep.taken, asleep.apart) == ([], "q|h"), f"who may hold something by then was handed {asleep}"
    assert (bodies(awake.taken), awake.apart) == ([b"suspect"], "q|h"), f"an idle worker got {awake}"


def check_a_suspect_that_is_dropped_while_it_runs_is_alone_until_it_ends(store: Store) -> None:
    worker = Worker(store)
    suspect(store, queue="q2")
    (one,) = worker.take(queue="q2")
    enqueue(store, b"fresh")
    store.flush("q2")

    beside = store.exchange(worker.name, (), [worker.wish()._replace(idle=False)])
    worker.beat([one])
    assert (beside.taken, beside.apart) == ([], "q2|h"), f"beside the suspect came {beside}"
    done = worker.settle_and_take(one)
    assert (done.settled, bodies(done.taken), done.apart) == ([False], [b"fresh"], ""), f"when it was done: {done}"


def check_whoever_waits_is_handed_nothing_where_there_are_suspects(store: Store) -> None:
    """Only an exchange knows what may be together; a ring asks for one."""
    worker, alone = Worker(store), Worker(store, "w2")
    worker.beat()
    alone.beat()
    lose_often(store, 1, 2)
    enqueue(store, b"fresh", handler="h2")

    beside = store.wait(["q|h2"], 1, worker.name, [worker.wish(handlers=("h", "h2"))])
    assert (beside.rang, beside.taken) == ("q|h2", []), f"where there is a suspect, who was woken got {beside}"
    assert bodies(worker.take(handlers=("h", "h2"))) == [b"0", b"fresh"], "and nothing is left for an exchange"

    suspect(store, handler="h3")
    (one,) = alone.take(handlers=("h3",))
    enqueue(store, b"other", handler="h2")
    apart = store.wait(["q|h2"], 1, worker.name, [worker.wish(handlers=("h2",))])
    assert (apart.rang, apart.taken) == ("q|h2", []), f"where one stands apart, who was woken got {apart}"
    alone.settle(one)
    at_last = store.wait(["q|never"], 0, worker.name, [worker.wish(handlers=("h2",))])
    assert bodies(at_last.taken) == [b"other"], f"all is as ever, and who waits gets {at_last}"


def check_whoever_waits_is_handed_nothing_while_something_is_paused(store: Store) -> None:
    worker = Worker(store)
    worker.beat()
    store.pause("q|never")
    enqueue(store, b"1")

    paused = store.wait(["q|h"], 1, worker.name, [worker.wish()])
    store.resume("q|never")
    resumed = store.wait(["q|h"], 0, worker.name, [worker.wish()])

    assert (paused.rang, paused.taken) == ("q|h", []), f"while something was paused, who was woken got {paused}"
    assert bodies(resumed.taken) == [b"1"], f"nothing is paused any more, and who waits gets {resumed}"


def check_suspects_go_to_idle_workers_side_by_side(store: Store) -> None:
    one, two = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2")
    for _ in range(2):
        assert len(one.take()) == 2, "jobs lost once are as any others"
        lose_lease(one, to=Worker(store, "sweeper"))
    store.wait(["q|h"], 0)

    took = bodies(one.take(1))

    assert took == [b"1"], f"an idle worker got {took}"
    assert store.wait(["q|h"], 0).rang == "q|h", "the next suspect rings for nobody"
    assert bodies(two.take()) == [b"2"], "a second suspect waits for the first"


def lose_often(store: Store, n: int, times: int, *, handler: str = "h") -> None:
    """Queue jobs, and have leases run out under all of them, whatever company they are in."""
    enqueue(store, *(b"%d" % number for number in range(n)), handler=handler)
    for _ in range(times):
        doomed, taken = list[Worker](), 0
        while taken < n:
            doomed.append(Worker(store, f"doomed {len(doomed)}"))
            taken += len(doomed[-1].take(n, handlers=(handler,)))
        for worker in reversed(doomed):  # so that they stand as they stood
            lose_lease(worker, to=Worker(store, "sweeper"))


def check_suspects_are_in_smaller_company_at_each_loss(store: Store) -> None:
    many, some, one = COMPANY
    sweeper = Worker(store, "sweeper")
    lose_often(store, many + some, 2)
    first, second = Worker(store, "first"), Worker(store, "second")

    taken, rest = first.take(1_000), second.take(1_000)

    assert bodies(taken) == [b"%d" % n for n in range(many)], f"after two losses {len(taken)} were taken together"
    assert bodies(rest) == [b"%d" % n for n in range(many, many + some)], f"the next ones were {bodies(rest)}"
    lose_lease(first, to=sweeper)
    third = Worker(store, "third")
    taken = third.take(1_000)
    assert bodies(taken) == [b"%d" % n for n in range(some)], f"after three losses {len(taken)} were taken together"
    lose_lease(second, to=sweeper)
    lose_lease(third, to=sweeper)
    done = list[bytes]()
    while taken := third.take(1_000):
        assert len(taken) <= (some if taken[0].lost == 3 else one), f"{len(taken)} were taken together: {taken}"
        done += bodies(one for one in taken if third.settle(one))
    assert done[-some:] == [b"%d" % n for n in range(some)], "those that lost the most were not the last"
    assert sorted(done) == sorted(b"%d" % n for n in range(many + some)), f"not every job was done once: {done}"


def check_suspects_and_fresh_work_take_turns(store: Store) -> None:
    worker = Worker(store)
    lose_often(store, 3, 4)
    enqueue(store, b"a", b"b", key="fresh")
    enqueue(store, b"other", handler="h2")
    came = list[tuple[list[bytes], str]]()

    while len(came) < 6:
        answer = store.exchange(worker.name, (), [worker.wish(1)])
        came.append((bodies(answer.taken), answer.apart))
        for one in answer.taken:
            worker.settle(one)

    alone = [([b"%d" % n], "q|h") for n in range(3)]
    assert came == [alone[0], ([b"a"], ""), alone[1], ([b"b"], ""), alone[2], ([], "")], f"in turn came {came}"


def check_fresh_work_of_other_queues_has_its_turn_too(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    lose_often(store, 3, 4)
    enqueue(store, b"fresh", queue="q2")
    enqueue(store, b"paused", queue="q3")
    store.pause("q3")
    store.beat(worker.name, CALM_LEASE_MS, 0, (), 5, serves=["q|h", "q2|h", "q3|h"])

    (first,) = worker.take()
    after = worker.settle_and_take(first)
    assert (first.body, after.taken, after.apart) == (b"0", [], ""), (
        f"it was another queue's turn, and there came {after}"
    )
    assert bodies(other.take()) == [b"1"], "who does not serve the other queue waits for it"
    store.wait(["q|h"], 0)
    (fresh,) = worker.take(queue="q2")
    assert store.wait(["q|h"], 0).rang == "q|h", "it is the suspects' turn again, and nobody was told"
    worker.settle(fresh)
    assert bodies(worker.take()) == [b"2"], "nothing else waits, and the last one is not handed out"


def check_suspects_of_several_handlers_take_turns(store: Store) -> None:
    worker, came = Worker(store), list[tuple[str, bytes]]()
    for handler in ("h", "h2"):
        lose_often(store, 2, 4, handler=handler)
    store.beat(worker.name, CALM_LEASE_MS, 0, (), 5, serves=["q|h", "q|h2"])

    for handler in ("h", "h", "h2", "h2", "h", "h", "h2"):
        for one in worker.take(handlers=(handler,)):
            came.append((handler, one.body))
            worker.settle(one)

    assert came == [("h", b"0"), ("h2", b"0"), ("h", b"1"), ("h2", b"1")], f"in turn came {came}"


def check_who_stops_makes_no_room(store: Store) -> None:
    stopping, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2", handler="h2")
    suspect(store)
    held, _ = (worker.take_one(handlers=("h2",)) for worker in (stopping, other))
    assert store.exchange(stopping.name, (), [stopping.wish()]).apart == "q|h", "a busy worker was not set apart"

    stopping.beat([held], stopping=True)

    assert store.exchange(other.name, (), [other.wish()]).apart == "q|h", "who takes nothing any more makes room still"


def check_who_works_on_one_alone_does_so_until_it_is_settled_though_it_stops(store: Store) -> None:
    stopping = Worker(store)
    suspect(store)
    alone = stopping.take_one()
    enqueue(store, b"fresh")

    stopping.beat([alone], stopping=True)

    assert stopping.take() == [], "it was handed something beside a suspect"
    stopping.settle(alone)
    assert bodies(stopping.take()) == [b"fresh"], "it stands apart for what is settled"


def check_nobody_makes_room_for_what_is_paused(store: Store) -> None:
    for paused in ("q", "q|h"):
        worker = Worker(store, f"worker beside {paused}")
        enqueue(store, b"long", handler="h2", queue="another")
        suspect(store)
        held = worker.take_one(handlers=("h2",), queue="another")
        assert store.exchange(worker.name, (), [worker.wish()]).apart == "q|h", "a busy worker was not set apart"
        enqueue(store, b"more", handler="h2", queue="another")

        store.pause(paused)

        more = worker.take(handlers=("h2",), queue="another")
        assert bodies(more) == [b"more"], f"it makes room for a suspect while {paused} is paused"
        for one in (held, *more):
            worker.settle(one)
        store.resume(paused)
        store.flush("q")


def check_the_turns_of_others_are_not_waited_for(store: Store) -> None:
    one, two, three = (Worker(store, f"w{n}") for n in range(3))
    lose_often(store, 3, 4)
    enqueue(store, b"fresh", b"more")
    store.wait(["q|h"], 0)

    took = [bodies(worker.take(1)) for worker in (one, two, three)]

    assert took == [[b"0"], [b"fresh"], [b"1"]], f"three idle workers got {took}"
    enqueue(store, b"of another", handler="h2")
    assert bodies(two.take(handlers=("h2",))) == [b"of another"], "a handler without suspects waits for a turn"


def check_who_takes_fresh_work_tells_of_the_suspects(store: Store) -> None:
    one, two = Worker(store), Worker(store, "w2")
    lose_often(store, 2, 4)
    one.take()
    enqueue(store, b"fresh")
    store.wait(["q|h"], 0)

    assert bodies(two.take()) == [b"fresh"], "it was not fresh work's turn"

    assert store.wait(["q|h"], 0).rang == "q|h", "it is the suspects' turn, and nobody was told"


def check_a_suspect_that_comes_free_rings_for_others(store: Store) -> None:
    worker, apart = Worker(store), Worker(store, "w2")
    suspect(store, b"suspect", key="a")
    enqueue(store, b"first", key="a")
    worker.settle(worker.take_one(), "pass", 0)
    worker.beat()
    first = worker.take_one()
    enqueue(store, b"long", handler="h2")
    long = worker.take_one(handlers=("h2",))
    suspect(store, b"elsewhere", queue="q2", handler="h3")
    apart.take_one(queue="q2", handlers=("h3",))
    store.wait(["q|h"], 0)

    after = worker.settle_and_take(first)

    assert (after.settled, after.taken, after.apart) == ([True], [], ""), f"a busy worker got {after}"
    assert store.wait(["q|h"], 0).rang == "q|h", "a suspect became the head of its lane, and nobody was told"
    assert worker.settle(long), "the worker lost what it held"


def check_a_suspect_holds_its_lane(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    suspect(store, b"1", key="a")
    enqueue(store, b"2", b"3", key="a")
    enqueue(store, b"held", handler="h2")
    other.take(handlers=("h2",))
    store.pause("q|h")

    assert worker.take() == [], "a paused handler's suspect was handed out"
    store.resume("q|h")
    (one,) = worker.take()
    assert other.take() == [], "a lane went on beside its suspect"
    worker.settle(one, "retry", 0)
    worker.beat(held=[])
    again = worker.take()
    assert [(each.body, each.lost) for each in again] == [(b"1", ALONE)], f"a retry takes the suspicion away: {again}"
    worker.settle(again[0], "back")
    assert worker.drain() == [b"1", b"2", b"3"], "the lane lost its order"


def check_a_suspect_behind_others_of_its_lane_is_one_still(store: Store) -> None:
    worker = Worker(store)
    suspect(store, b"1", key="a")
    enqueue(store, b"2", key="a")
    (one,) = worker.take()
    worker.settle(one, "pass", 0)
    worker.beat(held=[])

    (two,) = worker.take()
    enqueue(store, b"beside")
    after = worker.settle_and_take(two)

    assert bodies(after.taken) == [b"1"], f"behind another job of its lane it was taken as {after}"


def check_poison_takes_no_innocents_along(store: Store) -> None:
    poison_among(store, 5, most=3)


def check_poison_takes_none_of_many_innocents_along(store: Store) -> None:
    poison_among(store, 3 * COMPANY[0], most=1_000)


def poison_among(store: Store, n: int, *, most: int) -> None:
    """Whoever takes the poison dies with all that it took; others do what they take."""
    enqueue(store, *(b"before %d" % one for one in range(n)))
    enqueue(store, b"poison", b"after", key="a")
    enqueue(store, *(b"beside %d" % n for n in range(5)), key="b")
    sweeper, done = Worker(store, "sweeper"), list[bytes]()

    for life in range(40):
        worker = Worker(store, f"life {life}")
        while taken := worker.take(most):
            if b"poison" in bodies(taken):  # what was taken beside it dies with it, settled or not
                lose_lease(worker, to=sweeper, max_lost=5)
                break
            done += [one.body for one in taken if worker.settle(one)]
        else:
            break

    assert [(one.body, one.reason, one.lost) for one in store.dead()] == [(b"poison", "poison", 5)], "others died too"
    assert sorted(done) == sorted(
        [b"after", *(b"before %d" % one for one in range(n)), *(b"beside %d" % n for n in range(5))]
    ), f"not every innocent was done once: {done}"


def check_suspects_are_counted_and_flushed(store: Store) -> None:
    suspect(store, b"1", key="a")
    enqueue(store, b"2", key="a")
    suspect(store, b"3", handler="h2")
    suspect(store, b"4", queue="other")
    enqueue(store, b"5", due=NEVER)

    counted = {(count.queue, count.handler): (count.unfinished, count.suspects) for count in store.census().counts}

    assert counted == {("q", "h"): (3, 1), ("q", "h2"): (1, 1), ("other", "h"): (1, 1)}, f"counted {counted}"
    assert store.flush("q") == 4, "not every job was dropped"
    assert (store.pending("q"), Worker(store).take(handlers=("h", "h2"))) == (0, []), "something was left"
    assert bodies(Worker(store, "w2").take(queue="other")) == [b"4"], "another queue's suspect was dropped"


def check_a_beat_rings_for_suspects(store: Store) -> None:
    suspect(store)
    assert store.wait(["q|h"], 0).rang == "q|h", "a suspect did not ring"

    Worker(store, "w2").beat()

    assert store.wait(["q|h"], 0).rang == "q|h", "a ring that a dying worker took along was not rung again"


def check_a_replayed_suspect_begins_anew(store: Store) -> None:
    worker = Worker(store)
    suspect(store, b"1")
    (one,) = worker.take()
    worker.settle(one, "dead")
    enqueue(store, b"2")
    store.replay([(one.job, b"")])

    assert bodies(worker.take()) == [b"2", b"1"], "a replayed job is a suspect still"


SUSPECT_CHECKS = collected(globals())
