"""Checks of how a log ends, of limits of its own, and of finding a time in it."""

from __future__ import annotations

import time
from itertools import pairwise

from bus.position import ROOT_TOKEN, Position
from bus.store.base import Appended, Ended, Entry, Frame, OwnLimits, Page, Stale, Store, Whisper
from bus.testing.live_checks import confirmed, door, frames, subscribed
from bus.testing.store_checks import HOME, Worker, append, batch, collected, post, until, whisper, write

__all__ = ["END_CHECKS"]


def read(store: Store, after: int = 0, limit: int = 100_000, *, log: str = "main") -> Page:
    return store.read(log, "unused", after, limit)


def seqs(store: Store, log: str = "main") -> list[int]:
    return [entry.seq for entry in read(store, log=log).entries]


# -- the end -----------------------------------------------------------------------------------------------------------


def check_every_page_of_a_closed_log_says_so(store: Store) -> None:
    write(store, b"a", b"b", b"c")
    assert read(store).closed is False, "a log is closed that nobody closed"

    store.close_log("main", "unused")

    for after, limit in [(0, 10), (0, 1), (0, 0), (2, 1), (3, 10), (99, 10)]:
        page = read(store, after, limit)
        assert page.closed is True, f"a page after {after} does not say that the log is closed: {page}"
        assert page.top == 3, f"closing moved the top to {page.top}"
    write(store, b"a", log="other")
    assert read(store, log="other").closed is False, "closing one log closed another"


def check_closing_answers_the_top_and_is_safe_twice(store: Store) -> None:
    (*_, last) = write(store, b"a", b"b")

    positions = [store.close_log("main", "unused"), store.close_log("main", "later")]

    assert positions == [last.position] * 2, f"the top is {last}, and closing answered {positions}"
    assert read(store).closed, "a log that was closed twice is open"


def check_a_log_may_be_closed_before_it_was_written_to(store: Store) -> None:
    position = store.close_log("run:1", "offered")

    assert position == Position("offered", 0, ROOT_TOKEN), f"an empty log was closed at {position}"
    assert store.read("run:1", "later", 0, 10) == Page("offered", 0, ROOT_TOKEN, [], closed=True)
    answer = store.append(batch(post(), log="run:1"))
    assert answer == Ended(position), f"an append to it was answered {answer}"
    assert store.logs() == ["run:1"], f"the logs are {store.logs()}"


def check_a_closed_log_takes_nothing_new_and_writes_nothing(store: Store) -> None:
    write(store, b"a")
    position = store.close_log("main", "unused")
    late = post(b"late", jobs=[(HOME, "")])

    answer = store.append(batch(late, post(b"more")))

    assert answer == Ended(position), f"an append to a closed log was answered {answer}"
    assert [entry.body for entry in read(store).entries] == [b"a"], "a closed log was written to"
    assert (store.pending("q"), Worker(store).take()) == (0, []), "an event that was refused was queued"
    (elsewhere,) = append(store, batch(late, log="two"))
    assert not elsewhere.duplicate, "an event that was refused used up its id"
    assert store.pending("q") == 1, "the same event was not queued with another log"


def check_a_closed_log_tells_the_positions_of_what_it_has(store: Store) -> None:
    """So a publisher whose reply was lost is answered, though the log was closed meanwhile."""
    known, other = post(b"known"), post(b"other")
    first = append(store, batch(known, other))
    position = store.close_log("main", "unused")

    again, mixed = store.append(batch(known, other)), store.append(batch(known, post(b"new")))

    assert again == [one._replace(duplicate=True) for one in first], f"a repeat was answered {again}"
    assert mixed == Ended(position), f"a batch with something new in it was answered {mixed}"
    assert read(store).top == 2, "a batch was written in part"


def check_a_closed_log_is_not_written_to_with_stale_bindings_either(store: Store) -> None:
    position = store.close_log("main", "unused")
    version = store.bind({"a": b"1"})

    stale, matched = store.append(batch(post())), store.append(batch(post(), version=version))

    assert isinstance(stale, Stale | Ended), f"the answer was {stale}"
    assert matched == Ended(position), f"the answer was {matched}"
    assert read(store).top == 0, "a closed log was written to"


async def check_the_end_is_heard_after_the_last_event(store: Store) -> None:
    async with door(store) as loop_store, subscribed(loop_store) as one, subscribed(loop_store) as two:
        await confirmed(one)
        await confirmed(two)
        (last,) = write(store, b"last")
        here = store.close_log("main", "unused")
        there = await loop_store.close_log("main", "unused")
        write(store, b"elsewhere", log="other")
        heard = [await frames(each, 3) for each in (one, two)]

    assert here == there == last.position, f"the top is {last}, and closing answered {here} and {there}"
    end = Frame(last.position.epoch, Entry(last.position.seq, last.position.token, ROOT_TOKEN, "", b""), end=True)
    for found in heard:
        assert [found[0].entry.body, found[0].end] == [b"last", False], f"first came {found[0]}"
        assert found[1:] == [end, end], f"the end was heard as {found[1:]}"


async def check_nothing_is_announced_on_a_closed_log(store: Store) -> None:
    position = store.close_log("main", "e")
    async with door(store) as loop_store, subscribed(loop_store) as heard:
        await confirmed(heard)
        here = store.announce("main", "e", [Whisper("global", b"late")])
        there = await loop_store.announce("main", "e", [Whisper("global", b"late")])
        store.close_log("main", "e")
        (found,) = await frames(heard, 1)

    assert here == there == Ended(position), f"announcing was answered {here} and {there}"
    assert found.end, f"a listener heard {found}, which came too late"


def check_the_end_outlives_every_entry(store: Store) -> None:
    write(store, *(b"%d" % n for n in range(20)), log="trimmed")
    append(store, batch(post(), log="trimmed", cap=1))
    append(store, batch(post(), log="aged", ttl_ms=20))
    for log in ("trimmed", "aged"):
        store.close_log(log, "unused")

    until(lambda: not read(store, log="aged").entries, "the only entry to pass its age")
    for log, top in [("trimmed", 21), ("aged", 1)]:
        for after in (0, 5, top):
            page = read(store, after, log=log)
            assert (page.closed, page.top) == (True, top), f"who comes late to log {log} is told {page}"
        answer = store.append(batch(post(), log=log))
        assert isinstance(answer, Ended), f"log {log} was written to after its end: {answer}"
    assert store.logs() == ["aged", "trimmed"], f"the logs are {store.logs()}"


# -- limits of its own -------------------------------------------------------------------------------------------------


def check_a_log_keeps_limits_of_its_own_for_every_publisher(store: Store) -> None:
    append(store, batch(post(), own=OwnLimits(cap=3), log="small"))

    for log, kept in [("small", 3), ("main", 10)]:
        for _ in range(9):
            append(store, batch(post(), log=log))
        append(store, batch(post(), log=log))
        assert len(seqs(store, log)) == kept, f"log {log} keeps {seqs(store, log)}"


def check_of_limits_of_its_own_the_last_count_and_the_others_stay(store: Store) -> None:
    append(store, batch(*(post() for _ in range(10)), own=OwnLimits(5, 3_600_000)))
    append(store, batch(post(), own=OwnLimits(cap=2), ttl_ms=1))
    assert seqs(store) == [10, 11], f"with a cap of 2 the log keeps {seqs(store)}"

    append(store, batch(post(), own=OwnLimits(ttl_ms=7_200_000), ttl_ms=1))
    append(store, batch(post(), cap=1, ttl_ms=1))

    time.sleep(0.01)
    assert seqs(store) == [12, 13], f"a publisher's defaults count before the log's own limits: {seqs(store)}"


def check_an_age_of_its_own_is_kept(store: Store) -> None:
    append(store, batch(post(), own=OwnLimits(ttl_ms=30)))
    append(store, batch(post()))

    until(lambda: not seqs(store), "entries to pass the age that the log has for its own")

    append(store, batch(post(), own=OwnLimits(ttl_ms=3_600_000)))
    assert 3 in seqs(store), f"with a longer age the log keeps {seqs(store)}"


def check_duplicates_bring_no_limits(store: Store) -> None:
    known = post()
    append(store, batch(known))
    append(store, batch(known, own=OwnLimits(cap=1)))

    append(store, batch(post()))

    assert seqs(store) == [1, 2], f"a batch that wrote nothing limited the log: {seqs(store)}"


def check_limits_may_come_with_the_end(store: Store) -> None:
    for log, own in [("cap", OwnLimits(cap=2)), ("age", OwnLimits(ttl_ms=20)), ("none", OwnLimits())]:
        append(store, batch(*(post() for _ in range(5)), log=log))
        store.close_log(log, "unused", own)

    assert seqs(store, "cap") == [4, 5], f"closed with a cap of 2, a log keeps {seqs(store, 'cap')}"
    until(lambda: not seqs(store, "age"), "entries to pass the age with which their log was closed")
    assert seqs(store, "none") == [1, 2, 3, 4, 5], "closing trimmed a log"
    assert all(read(store, log=log).closed for log in ("cap", "age", "none")), "limits kept a log open"


# -- times -------------------------------------------------------------------------------------------------------------


def spaced(store: Store, count: int, log: str = "main") -> tuple[list[Appended], list[int]]:
    """Entries a few milliseconds apart, and a time between each two of them (on this machine's clock), first to last."""
    answers, times = [], []
    for _ in range(count):
        answers += append(store, batch(post(), log=log))
        time.sleep(0.003)
        times.append(int(time.time() * 1000))
        time.sleep(0.003)
    return answers, times


def check_a_time_is_found_between_the_entries_before_and_after_it(store: Store) -> None:
    begun = int(time.time() * 1000)
    time.sleep(0.003)
    answers, times = spaced(store, 23)

    places = [Position(answers[0].position.epoch, 0, ROOT_TOKEN), *(one.position for one in answers)]
    for at_ms, place in zip([begun, *times], places, strict=True):
        found = store.seek("main", "unused", at_ms)
        assert found == place, f"the place of {at_ms} is {place}, and {found} was found"
    assert store.seek("main", "unused", 0) == places[0], "before all time is not before the first entry"
    assert store.seek("main", "unused", 10**15) == places[-1], "far in the future is not after the last entry"


async def check_both_doors_find_the_same(store: Store) -> None:
    _, times = spaced(store, 5)
    async with door(store) as loop_store:
        for at_ms in times:
            here, there = store.seek("main", "unused", at_ms), await loop_store.seek("main", "unused", at_ms)
            assert here == there, f"at {at_ms} the doors found {here} and {there}"


def check_entries_of_one_moment_stay_together(store: Store) -> None:
    for _ in range(5):
        append(store, batch(*(post() for _ in range(7))))
        time.sleep(0.003)

    now = int(time.time() * 1000)
    found = {store.seek("main", "unused", at_ms).seq for at_ms in range(now - 60, now + 1)}

    assert found <= {0, 7, 14, 21, 28, 35}, f"a batch, which is appended at one time, was parted: {sorted(found)}"


def check_times_only_move_forward_through_a_log(store: Store) -> None:
    answers, times = spaced(store, 8)

    found = [store.seek("main", "unused", at_ms).seq for at_ms in (0, *range(times[0] - 20, times[-1] + 5))]

    assert all(one <= two for one, two in pairwise(found)), f"later times were found at earlier places: {found}"
    assert (found[0], found[-1]) == (0, len(answers)), f"found at both ends: {found[0]} and {found[-1]}"


def check_a_time_is_found_in_what_is_kept(store: Store) -> None:
    answers, times = spaced(store, 12)
    append(store, batch(post(), cap=5))  # 9 to 13

    before, inside = store.seek("main", "unused", times[2]), store.seek("main", "unused", times[9])

    assert before == answers[7].position, f"all that is kept is younger, but {before} is not just before it"
    assert inside == answers[9].position, f"the place is {answers[9]}, and {inside} was found"
    page = read(store, before.seq)
    assert page.entries[0].prev == before.token, "what follows the position that was found does not join it"


def check_what_is_past_its_age_is_not_found(store: Store) -> None:
    (last,) = append(store, batch(post(), ttl_ms=20))

    until(lambda: not seqs(store), "an entry to pass its age")

    found = store.seek("main", "unused", 0)
    assert found == last.position, f"nothing is kept, so the place is the top, and {found} was found"


def check_an_empty_log_has_one_place(store: Store) -> None:
    position = store.seek("main", "sought", 0)
    whispered = whisper(store, epoch="later")

    assert position == whispered == Position("sought", 0, ROOT_TOKEN), f"found {position}, then told {whispered}"
    assert store.logs() == [], "a log that was only looked into counts as written to"


def check_a_time_is_found_in_a_closed_log(store: Store) -> None:
    answers, times = spaced(store, 4)
    store.close_log("main", "unused")

    found = store.seek("main", "unused", times[1])

    assert found == answers[1].position, f"the place is {answers[1]}, and {found} was found"


END_CHECKS = collected(globals())
