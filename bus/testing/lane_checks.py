"""Checks of takes and settlements: order in a lane, turns between lanes, priorities, and what each verdict means."""

from __future__ import annotations

from bus.store.base import Exchange, Route, Settlement, Store
from bus.testing.store_checks import HOME, Worker, append, batch, bodies, collected, enqueue, post, until

__all__ = ["LANE_CHECKS"]

LATER_MS = 3_600_000


# -- order -------------------------------------------------------------------------------------------------------------


def check_a_lane_is_first_in_first_out_and_one_at_a_time(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, *(b"%d" % n for n in range(12)), key="a")

    for n in range(12):
        (one,) = worker.take()
        assert one.body == b"%d" % n, f"job {n} of the lane is {one.body!r}"
        assert worker.take() + other.take() == [], "a second job of the lane was handed out"
        assert worker.settle(one), "an ack was refused"


def check_each_key_and_each_handler_has_a_lane_of_its_own(store: Store) -> None:
    for handler in ("h", "h2"):
        enqueue(store, b"1", b"2", key="a", handler=handler)
        enqueue(store, b"1", b"2", key="b", handler=handler)

    taken = Worker(store).take(handlers=("h", "h2"))

    seen = sorted((one.route.handler, one.key, one.body) for one in taken)
    expected = [(handler, key, b"1") for handler in ("h", "h2") for key in ("a", "b")]
    assert seen == expected, f"the heads of four lanes are {seen}"


def check_jobs_without_a_key_run_freely_and_in_order(store: Store) -> None:
    enqueue(store, *(b"%d" % n for n in range(12)))

    taken = bodies(Worker(store).take(7)) + bodies(Worker(store, "w2").take())

    assert taken == [b"%d" % n for n in range(12)], f"jobs without a lane came as {taken}"


def check_ready_lanes_take_turns(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"a1", b"a2", b"a3", b"a4", key="a")
    enqueue(store, b"b1", b"b2", key="b")
    enqueue(store, b"c1", key="c")

    came = worker.drain()

    assert came == [b"a1", b"b1", b"c1", b"a2", b"b2", b"a3", b"a4"], f"the lanes' turns were {came}"


def check_handlers_share_a_take(store: Store) -> None:
    enqueue(store, *(b"1.%d" % n for n in range(20)), handler="h1")
    enqueue(store, *(b"2.%d" % n for n in range(2)), handler="h2")
    worker = Worker(store)

    first = bodies(worker.take(4, handlers=("h1", "h2")))
    second = bodies(worker.take(6, handlers=("h1", "h2")))

    assert sorted(first) == [b"1.0", b"1.1", b"2.0", b"2.1"], f"two handlers shared four as {first}"
    assert second == [b"1.%d" % n for n in range(2, 8)], f"where one has nothing the other gets all: {second}"


def check_a_take_brings_no_more_of_a_handler_than_it_may(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"few 1", b"few 2", b"few 3", handler="few", priority=0)
    enqueue(store, b"many 1", b"many 2", b"many 3", handler="many")
    enqueue(store, b"none", handler="none")
    for handler in ("few", "many", "none"):
        store.wait([f"q|{handler}"], 0)

    wish = worker.wish(5, handlers=("few", "many", "none"))._replace(most=(2, 5, 0))
    came = bodies(store.exchange(worker.name, (), [wish]).taken)

    assert came == [b"few 1", b"few 2", b"many 1", b"many 2", b"many 3"], (
        f"two of the first were allowed, and came {came}"
    )
    assert store.wait(["q|few"], 0).rang == "q|few", "nobody was told of what a handler's limit left"


def check_higher_priorities_come_first(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"low", priority=2)
    enqueue(store, b"normal", b"normal again", handler="h2", priority=1)
    enqueue(store, b"high", key="a", priority=0)

    came = worker.drain(handlers=("h2", "h"))

    assert came == [b"high", b"normal", b"normal again", b"low"], f"they came as {came}"


def check_a_take_brings_what_was_asked_for_and_no_more(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"other handler", handler="h2")
    enqueue(store, b"other queue", queue="q2")
    enqueue(store, b"1", b"2", b"3")

    assert worker.take(0) == [], "nothing was asked for"
    assert worker.take(handlers=()) == [], "no handler was named"
    assert bodies(worker.take(2)) == [b"1", b"2"], "two of handler h on queue q were asked for"
    assert bodies(worker.take()) == [b"3"], "more of handler h on queue q were asked for"
    two = store.exchange(worker.name, (), [worker.wish(queue="q2"), worker.wish(handlers=("h2",))]).taken
    assert bodies(two) == [b"other queue", b"other handler"], f"two wishes of one call brought {two}"


def check_lane_keys_may_be_any_text(store: Store) -> None:
    worker = Worker(store)
    keys = ["a|b", "|", "1|2|3", "L", "J1", "%d", "{x}", "with space", "a\nb", "\u043a\u043b\u044e\u0447", "\U0001f3ad"]
    for key in keys:
        enqueue(store, b"1 " + key.encode(), b"2 " + key.encode(), key=key)
    for one in worker.take():
        assert worker.settle(one, "retry"), "a retry was refused"
    worker.beat(held=[])
    taken = worker.take()
    for one in taken:
        assert worker.settle(one, "pass"), "a pass was refused"
    worker.beat(held=[])

    assert [one.key for one in taken] == keys, f"the keys came back as {[one.key for one in taken]}"
    expected = [b"%d %s" % (n, key.encode()) for n in (2, 1) for key in keys]
    came = worker.drain()
    assert came == expected, f"after a retry and a pass they came as {came}"


def check_what_is_due_at_once_comes_in_order(store: Store) -> None:
    worker = Worker(store)
    other = Route("q", "h2", 1)
    posts = [post(b"%d" % n, jobs=[(HOME, "a"), (other, "")], due="+5") for n in range(12)]
    append(store, batch(*posts))

    until(lambda: worker.beat(held=[]).next_due_ms is None, "all to be due")

    expected = [b"e%d" % n for n in range(12)]
    lane, free = worker.drain(), worker.drain(handlers=("h2",))
    assert (lane, free) == (expected, expected), f"due in the same millisecond, they came as {lane} and {free}"


# -- verdicts ----------------------------------------------------------------------------------------------------------


def check_a_retry_holds_its_lane_and_comes_first(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", key="a")
    worker.settle(worker.take_one(), "retry", 30, b"notes\x00\xff")

    def again() -> bytes | None:
        worker.beat(held=[])
        taken = worker.take()
        assert bodies(taken) in ([], [b"1"]), f"past a job that is to be tried again came {taken}"
        return taken[0].notes if taken else None

    assert until(again, "the retry") == b"notes\x00\xff", "the notes were lost"
    worker.beat(held=[])
    assert worker.drain() == [b"1", b"2"], "the lane lost its order"


def check_a_pass_lets_later_jobs_go_first(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", b"3", key="a")
    worker.settle(worker.take_one(), "pass", 0, b"n")
    second = worker.take_one()
    assert second.body == b"2", f"the next of the lane may go at once, and {second.body!r} came"
    worker.beat([second])

    worker.settle(second)

    third = worker.take_one()
    assert third.body == b"3", f"what was passed joins the tail of its lane, and now came {third.body!r}"
    worker.settle(third)
    passed = worker.take_one()
    assert (passed.body, passed.notes) == (b"1", b"n"), f"last comes what was passed: {passed}"


def check_a_retry_without_a_key_holds_nothing_up(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", b"3")
    worker.settle(worker.take_one(), "retry", LATER_MS)
    two = worker.take_one()
    worker.settle(two, "retry", 0, b"n")
    worker.beat(held=[])

    came = [(one.body, one.notes) for one in worker.take()]

    assert came == [(b"3", b""), (b"2", b"n")], f"they came as {came}"
    assert store.pending("q") == 3, "a job was lost"


def check_back_returns_to_the_head(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", key="a")
    enqueue(store, b"x", key="b")
    worker.settle(worker.take_one(), "retry", 0, b"kept")
    worker.beat(held=[])
    first = next(one for one in worker.take() if one.key == "a")

    assert worker.settle(first, "back", notes=b"of no effect"), "back was refused"

    again = worker.take_one()
    assert (again.job, again.body) == (first.job, b"1"), f"back to the head of its lane, and then came {again}"
    assert (again.notes, again.lost) == (b"kept", 0), f"going back changed a job: {again}"
    assert again.ticket > first.ticket, "it has the ticket of the first take"


def check_dead_frees_the_lane(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", key="a")

    worker.settle(worker.take_one(), "dead")

    assert worker.drain() == [b"2"], "the lane of a dead job does not go on"
    assert store.pending("q") == 0, "a dead job is pending"
    assert [dead.body for dead in store.dead()] == [b"1"], "the job is not among the dead letters"


def check_notes_are_replaced_by_each_settlement(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", key="a")
    seen: list[bytes] = []
    for verdict, notes in [("retry", b"1"), ("pass", b"2"), ("retry", b""), ("dead", b"4")]:
        one = worker.take_one()
        seen.append(one.notes)
        store.exchange(worker.name, [Settlement(one.job, one.ticket, verdict, 0, notes)], ())  # type: ignore[arg-type]
        worker.beat(held=[])

    assert [*seen, store.dead()[0].notes] == [b"", b"1", b"2", b"", b"4"], f"the notes were {seen}"


def check_a_settlement_without_the_right_is_refused(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "w2")
    enqueue(store, b"1", b"2", key="a")
    one = worker.take_one()
    other.take()

    refused = [
        worker.settle(one._replace(ticket=one.ticket + 1)),
        worker.settle(one._replace(ticket=one.ticket - 1), "dead"),
        other.settle(one, "back"),
        worker.settle(one._replace(job="999999"), "retry"),
    ]

    assert refused == [False] * 4, f"wrong ticket, wrong ticket, wrong worker, wrong job: {refused}"
    assert (store.pending("q"), store.dead_count(), other.take()) == (2, 0, []), "a refused settlement did something"
    twice = store.exchange("w1", [Settlement(one.job, one.ticket, "ack")] * 2, ()).settled
    assert twice == [True, False], f"one settlement twice was answered {twice}"
    assert worker.settle(one) is False, "a job could be settled a second time"
    assert other.drain() == [b"2"], "a refused settlement did something"


def check_an_old_ticket_settles_nothing(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", key="a")
    first = worker.take_one()
    worker.settle(first, "back")
    second = worker.take_one()

    assert worker.settle(first) is False, "the ticket of an earlier take of the same job could settle it"
    assert worker.settle(second) is True, "the ticket of the last take could not settle it"


def check_an_exchange_settles_before_it_takes(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", key="a")

    answer = worker.settle_and_take(worker.take_one())

    assert (answer.settled, bodies(answer.taken)) == ([True], [b"2"]), f"the lane that came free: {answer}"
    assert store.exchange(worker.name, (), ()) == Exchange([], []), "nothing was asked, and something was answered"


def check_settlements_are_answered_in_order(store: Store) -> None:
    worker = Worker(store)
    enqueue(store, b"1", b"2", b"3", b"4")
    one, two, three, four = worker.take()

    answers = store.exchange(
        worker.name,
        [
            Settlement(four.job, four.ticket, "ack"),
            Settlement(two.job, two.ticket + 9, "ack"),
            Settlement(one.job, one.ticket, "dead"),
            Settlement("0", 1, "ack"),
            Settlement(three.job, three.ticket, "retry", LATER_MS),
        ],
        (),
    ).settled

    assert answers == [True, False, True, False, True], f"the answers were {answers}"
    assert store.pending("q") == 2, "not what was answered was done"


LANE_CHECKS = collected(globals())
