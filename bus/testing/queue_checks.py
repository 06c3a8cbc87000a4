"""Checks of the queue side: how jobs come in, are counted, ring, are flushed and die."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bus.store.base import Job, Route, Settlement, Store
from bus.testing.store_checks import HOME, NEVER, Worker, append, batch, bodies, collected, enqueue, post, until

__all__ = ["QUEUE_CHECKS"]


# -- in ----------------------------------------------------------------------------------------------------------------


def check_an_event_becomes_a_job_for_each_of_its_routes(store: Store) -> None:
    routes = [Route("q", "one", 1), Route("q", "two", 0), Route("other", "three", 2)]

    append(store, batch(post(b"body", jobs=list(zip(routes, ["k", "", "k"], strict=True))), post(b"none")))

    taken = Worker(store).take(handlers=("one", "two")) + Worker(store, "w2").take(handlers=("three",), queue="other")
    seen = {(one.route, one.key, one.body, one.notes, one.lost) for one in taken}
    expected = {(route, key, b"ebody", b"", 0) for route, key in zip(routes, ["k", "", "k"], strict=True)}
    assert len(taken) == 3, f"three jobs were wanted, and {len(taken)} came"
    assert seen == expected, f"the jobs were {seen}"
    assert len({one.job for one in taken}) == 3, "two jobs have one name"


def check_a_job_is_queued_once_for_an_id(store: Store) -> None:
    job = Job("same", Route("q", "h", 1), "", b"first")

    answers = [store.enqueue(job, 60_000), store.enqueue(job._replace(body=b"second"), 60_000)]

    assert answers == [True, False], f"the same id twice was answered {answers}"
    assert bodies(Worker(store).take()) == [b"first"], "not the first job alone was queued"
    assert store.enqueue(job, 60_000) is False, "an id was free again because its job was taken"


def check_a_jobs_id_is_free_again_when_its_window_ends(store: Store) -> None:
    long, short = Job("long", Route("q", "h", 1), "", b""), Job("short", Route("q", "h", 1), "", b"")
    store.enqueue(long, 60_000)
    store.enqueue(short, 30)

    until(lambda: store.enqueue(short, 30), "a window to end")

    assert store.enqueue(long, 60_000) is False, "a longer window ended with a shorter one"


def check_ids_of_events_and_of_jobs_are_apart(store: Store) -> None:
    (one,) = append(store, batch(post(id="x")))
    job_after_event = store.enqueue(Job("x", Route("q", "h", 1), "", b""), 60_000)
    job_first = store.enqueue(Job("y", Route("q", "h", 1), "", b""), 60_000)
    (two,) = append(store, batch(post(id="y")))

    assert (job_after_event, job_first) == (True, True), "a job was taken for an event with the same id"
    assert [(each.position.seq, each.duplicate) for each in (one, two)] == [(1, False), (2, False)], (
        f"events were {one}, {two}"
    )


def check_a_delayed_job_comes_when_it_is_due(store: Store) -> None:
    worker = Worker(store)
    append(store, batch(post(b"past", jobs=[(HOME, "")], due="=1000")))
    append(store, batch(post(b"soon", jobs=[(HOME, "")], due="+30")))
    append(store, batch(post(b"never", jobs=[(HOME, "")], due=NEVER)))
    enqueue(store, b"2100", due="=4102444800000")

    assert bodies(worker.take()) == [b"epast"], "a time in the past is now, and a delayed job waits"
    beat = worker.beat(worker.take())
    assert beat.next_due_ms is not None, "a beat does not know of the delayed work"
    assert store.read("main", "unused", 0, 10).top == 3, "a delay holds up the number as well"

    def soon() -> list[bytes]:
        beat = worker.beat(held=[])
        assert beat.next_due_ms is not None, "the work of an hour from now was forgotten"
        return [body for body in bodies(worker.take()) if body != b"epast"]

    assert until(soon, "a job to be due") == [b"esoon"], "something else was due"
    far = worker.beat(held=[]).next_due_ms
    assert far is not None, "the work of an hour from now was forgotten"
    assert 3_000_000 < far <= 3_600_000, f"the next work is due in an hour, and the beat says {far} ms"
    assert store.pending("q") == 4, f"delayed jobs are pending too, and {store.pending('q')} are"


def check_nothing_delayed_is_never_due(store: Store) -> None:
    enqueue(store, b"now")

    assert Worker(store).beat().next_due_ms is None, "nothing is delayed, and a beat says something is"


# -- wake-ups ----------------------------------------------------------------------------------------------------------


def check_a_wait_ends_without_a_ring(store: Store) -> None:
    assert store.wait(["q|h", "$due", "@w1"], 0.02).rang is None, "nothing rang"
    assert store.wait(["q|h"], 0).rang is None, "nothing rang, and no time is allowed"


def check_work_rings_for_its_handler(store: Store) -> None:
    enqueue(store, b"a")

    assert store.wait(["q|other"], 0).rang is None, "work rang for another handler"
    assert store.wait(["$due", "q|other", "q|h"], 1).rang == "q|h", "work did not ring"


def check_a_ring_reaches_one_who_waits(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(store.wait, ["@w1", "q|h"], 5)
        append(store, batch(post(jobs=[(HOME, "")])))

        assert waiter.result(10).rang == "q|h", "the waiter was not woken"


def check_a_ring_reaches_only_one(store: Store) -> None:
    with ThreadPoolExecutor(2) as pool:
        waiters = [pool.submit(store.wait, ["q|h"], 0.3) for _ in range(2)]
        enqueue(store, b"a")

        heard = sorted(str(waiter.result(10).rang) for waiter in waiters)
    assert heard == ["None", "q|h"], f"one job woke {heard}"


def check_a_ring_without_a_waiter_is_kept_once(store: Store) -> None:
    enqueue(store, b"a", b"b", b"c")
    for _ in range(3):
        store.poke("@w1")

    heard = [store.wait(["q|h", "@w1"], 0).rang for _ in range(3)]

    assert heard == ["q|h", "@w1", None], f"after three jobs and three pokes: {heard}"


def check_delayed_work_rings_for_the_clock(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"later", due=NEVER)
    added = store.wait(["q|h", "$due"], 0).rang
    enqueue(store, b"now")
    store.wait(["q|h"], 0)
    worker.settle(worker.take_one(), "retry", 3_600_000)

    assert added == "$due", f"delayed work was added, and {added} rang"
    assert store.wait(["q|h", "$due"], 0).rang == "$due", "a retry later did not ring"


def check_work_that_comes_free_rings(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"a1", b"a2", key="a")
    for verdict in ("ack", "back"):
        one = worker.take_one()
        while store.wait(["q|h"], 0).rang:
            pass
        worker.settle(one, verdict)
        assert store.wait(["q|h"], 0).rang == "q|h", f"after {verdict} there is work, and nothing rang"


def check_whoever_fills_up_passes_the_ring_on(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"a", b"b")
    assert store.wait(["q|h"], 0).rang == "q|h", "work did not ring"

    worker.take(1)
    left_over = store.wait(["q|h"], 0).rang
    worker.take(1)
    nothing_left = store.wait(["q|h"], 0).rang

    assert left_over == "q|h", "a take left work over and rang for nobody"
    assert nothing_left is None, "a take left nothing over, and rang"


def check_a_beat_rings_again_where_work_is_ready(store: Store) -> None:
    enqueue(store, b"a")
    store.wait(["q|h"], 0)  # by a worker that dies of it

    Worker(store, "w2").beat()

    assert store.wait(["q|h"], 0).rang == "q|h", "the ring was lost with the worker that had heard it"


# -- counting, flushing, dead letters ----------------------------------------------------------------------------------


def check_pending_counts_all_that_is_not_finished(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"in flight", b"in the lane", key="a")
    enqueue(store, b"held", b"behind it", key="b")
    enqueue(store, b"delayed", due=NEVER)
    enqueue(store, b"another handler's", handler="h2")
    enqueue(store, b"another queue's", queue="q2")
    _, held = worker.take()
    worker.settle(held, "retry", 3_600_000)
    enqueue(store, b"done", b"dead", b"ready", b"passed")
    for verdict in ("ack", "dead", "back"):
        worker.settle(worker.take_one(), verdict)
    while (passed := worker.take_one()).body != b"passed":
        pass
    worker.settle(passed, "pass", 3_600_000)

    assert store.pending("q") == 8, f"eight jobs are unfinished, and {store.pending('q')} are pending"
    assert store.pending("q2") == 1, "jobs of another queue are counted wrongly"
    assert store.pending("unheard of") == 0, "a queue that never was has jobs"


def check_queues_are_listed_once_they_held_jobs(store: Store) -> None:
    assert store.queues() == [], "a new namespace has queues"
    worker = Worker(store)
    for queue in ("q2", "q", "q1", "q"):
        enqueue(store, b"", queue=queue)
    worker.drain()

    assert store.queues() == ["q", "q1", "q2"], f"the queues are {store.queues()}"


def check_a_flush_of_one_handler_leaves_the_others_of_its_queue(store: Store) -> None:
    worker = Worker(store)
    for handler in ("h", "h2"):
        enqueue(store, b"held", b"behind it", key="b", handler=handler)
        worker.settle(worker.take_one(handlers=(handler,)), "retry", 0)
        enqueue(store, b"flying", b"in its lane", key="a", handler=handler)
        enqueue(store, b"flying alone", handler=handler)
    flying = worker.take(handlers=("h", "h2"))
    for handler in ("h", "h2"):
        enqueue(store, b"ready", handler=handler)
        enqueue(store, b"ready 1", b"ready 2", key="c", handler=handler)
        enqueue(store, b"delayed", key="d", due="+1", handler=handler)

    dropped = store.flush("q", "h")

    assert dropped == 9, f"nine jobs of it were unfinished, and {dropped} were dropped"
    assert store.pending("q") == 9, "jobs of another handler were dropped, or some of it were left"
    settled = [worker.settle(one) for one in flying]
    assert settled == [one.route.handler == "h2" for one in flying], (
        "in flight, only the other handler's is to be settled"
    )
    until(lambda: worker.beat(held=[]).next_due_ms is None, "all delayed work to be due")
    others = worker.drain(handlers=("h", "h2"))
    expected = [b"held", b"behind it", b"in its lane", b"ready", b"ready 1", b"ready 2", b"delayed"]
    assert sorted(others) == sorted(expected), f"the other handler holds {others}"
    assert store.flush("q", "nobody") == 0, "a handler without jobs had some"


def check_a_flush_drops_everything_unfinished_of_one_queue(store: Store) -> None:
    worker = Worker(store)
    for queue in ("q", "q2"):
        enqueue(store, b"held", b"behind it", key="b", queue=queue)
        worker.settle(worker.take_one(queue=queue), "retry", 0)
        enqueue(store, b"flying", b"in its lane", key="a", queue=queue)
        enqueue(store, b"flying alone", queue=queue)
        enqueue(store, b"dead", handler="h2", queue=queue)
        worker.settle(worker.take_one(handlers=("h2",), queue=queue), "dead")
    flying = worker.take()
    for queue in ("q", "q2"):
        enqueue(store, b"ready", b"ready", queue=queue)
        enqueue(store, b"urgent", priority=0, queue=queue)
        enqueue(store, b"ready 1", b"ready 2", key="c", handler="h2", queue=queue)
        enqueue(store, b"delayed", key="d", due="+1", queue=queue)
    assert bodies(flying) == [b"flying", b"flying alone"], f"in flight were {flying}"

    dropped = store.flush("q")

    assert dropped == 11, f"eleven jobs were unfinished, and {dropped} were dropped"
    assert (store.pending("q"), store.pending("q2")) == (0, 11), "a flush left jobs, or took another queue's"
    assert [worker.settle(one) for one in flying] == [False, False], "what was flushed in flight could be settled"
    until(lambda: worker.beat(held=[]).next_due_ms is None, "all delayed work to be due")
    assert worker.take(handlers=("h", "h2")) == [], "something of the queue came back"
    assert store.flush("q") == 0, "a second flush found something"
    assert store.dead_count() == 2, "a flush took dead letters"
    enqueue(store, b"new 1", b"new 2", key="a")
    assert worker.drain() == [b"new 1", b"new 2"], "a flushed lane does not work any more"
    others = worker.drain(handlers=("h", "h2"), queue="q2")
    expected = b"held|behind it|flying|in its lane|flying alone|ready|ready|urgent|ready 1|ready 2|delayed"
    assert sorted(others) == sorted(expected.split(b"|")), f"the other queue holds {others}"


def check_a_dead_letter_keeps_everything(store: Store) -> None:
    worker = Worker(store)
    assert (store.dead(), store.dead_count()) == ([], 0), "a new namespace has dead letters"
    enqueue(store, bytes(range(256)), key="a|b", handler="h", priority=2)
    one = worker.take_one()
    worker.settle(one, "dead", notes=b"why\x00\xff\n")

    (dead,) = store.dead()

    assert (dead.job, dead.reason, dead.route, dead.key) == (one.job, "dead", Route("q", "h", 2), "a|b"), f"{dead}"
    assert (dead.body, dead.notes, dead.lost) == (bytes(range(256)), b"why\x00\xff\n", 0), f"{dead}"
    assert dead.at_ms > 1_500_000_000_000, f"at_ms is no time in milliseconds since 1970: {dead.at_ms}"


def check_dead_letters_stand_newest_first(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, *(b"%d" % n for n in range(12)))
    taken = worker.take()
    store.exchange(worker.name, [Settlement(one.job, one.ticket, "dead") for one in taken[:11]], ())
    worker.settle(taken[11], "dead")

    found = [dead.body for dead in store.dead()]

    assert found == [b"%d" % n for n in reversed(range(12))], f"newest first they are {found}"
    assert store.dead_count() == 12, f"twelve are dead, and {store.dead_count()} are counted"
    assert [dead.body for dead in store.dead(3)] == [b"11", b"10", b"9"], "the newest three are others"
    assert store.dead(0) == [], "no dead letters were asked for"
    times = [dead.at_ms for dead in store.dead()]
    assert times == sorted(times, reverse=True), f"their times do not fall: {times}"


def check_a_replayed_dead_letter_is_work_again_at_the_tail_of_its_lane(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", b"3", key="a")
    for _ in range(2):
        worker.settle(worker.take_one(), "dead")
    dead = sorted((one.job for one in store.dead()), key=int)

    answers = store.replay([(dead[0], b"anew"), (dead[1], b""), (dead[0], b"again"), ("no such job", b"")])

    assert answers == [True, True, False, False], f"the answers are {answers}"
    assert (store.dead_count(), store.pending("q")) == (0, 3), "replayed jobs are not pending, or still dead"
    first = worker.take_one()
    assert first.body == b"3", "a replayed job passed what stood in its lane"
    worker.settle(first)
    second = worker.take_one()
    assert (second.body, second.notes, second.lost) == (b"1", b"anew", 0), f"it begins anew as {second}"
    worker.settle(second)
    assert worker.drain() == [b"2"], "the replayed jobs lost their order"


def check_a_dropped_dead_letter_is_gone(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2")
    for one in worker.take():
        worker.settle(one, "dead")
    doomed = next(one.job for one in store.dead() if one.body == b"1")

    answers = [store.drop([doomed, "no such job"]), store.drop([doomed]), store.replay([(doomed, b"")])]

    assert answers == [[True, False], [False], [False]], f"the answers are {answers}"
    assert [one.body for one in store.dead()] == [b"2"], "another one was dropped"
    assert store.dead_letter(doomed) is None, "it can still be looked at"


def check_a_dead_letter_is_found_by_its_number_and_page_by_page(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, *(b"%d" % n for n in range(5)))
    for one in worker.take():
        worker.settle(one, "dead")
    everything = store.dead()

    assert [store.dead_letter(one.job) for one in everything] == everything, "by number they look different"
    pages = store.dead(2), store.dead(2, 2), store.dead(2, 4), store.dead(2, 6)
    assert [one for page in pages for one in page] == everything, "the pages do not make up the whole"


def check_a_paused_queue_or_handler_is_not_taken_from_until_it_is_resumed(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", key="a")
    held = worker.take_one()
    enqueue(store, b"2", key="a")

    for name in ("q", "q|h"):
        assert [store.pause(name), store.pause(name)] == [True, False], f"pausing {name} twice answers otherwise"
        assert store.census().paused == {name}, f"{name} is not told to be paused"
        assert worker.take() == [], f"{name} is paused, and was taken from"
        assert [store.resume(name), store.resume(name)] == [True, False], f"resuming {name} twice answers otherwise"
    store.pause("other")
    worker.settle(held)

    assert worker.drain() == [b"2"], "what was in flight could not be settled, or another pause held this queue"


def check_a_resumed_queue_rings(store: Store) -> None:
    enqueue(store, b"1")
    store.wait(["q|h"], 0)
    store.pause("q")
    Worker(store).beat(held=[])
    assert store.wait(["q|h"], 0).rang is None, "a paused queue rings"

    store.resume("q")

    assert store.wait(["q|h"], 0).rang == "q|h", "resuming rang for nobody"


def check_a_census_counts_the_work_by_what_it_waits_for(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"held", b"behind it", key="a")
    worker.settle(worker.take_one(), "retry", delay_ms=60_000)
    enqueue(store, b"in flight", key="b")
    flying = worker.take_one()
    enqueue(store, b"ready", b"behind it", key="c")
    enqueue(store, b"ready too")
    enqueue(store, b"delayed", b"delayed too", due=NEVER)

    (count,) = store.census().counts

    assert count[:6] == ("q", "h", 8, 2, 2, 1), f"it counts {count}"
    assert count.in_flight == {worker.name: 1}, f"in flight it counts {count.in_flight}"
    assert count.oldest == b"ready", f"the oldest is {count.oldest!r}"
    worker.settle(flying)
    assert store.census().counts[0].in_flight == {}, "a settled job is in flight"


QUEUE_CHECKS = collected(globals())
