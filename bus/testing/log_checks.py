"""Checks of the log side: numbers, tokens, limits, ids, bindings and pages."""

from __future__ import annotations

import time

from bus.position import ROOT_TOKEN, Position
from bus.store.base import Appended, Entry, Page, Route, Stale, Store
from bus.testing.store_checks import HOME, Worker, append, batch, bodies, collected, post, until, whisper, write

__all__ = ["LOG_CHECKS"]


def read(store: Store, after: int = 0, limit: int = 100_000, *, log: str = "main") -> Page:
    return store.read(log, "unused", after, limit)


def seqs(page: Page) -> list[int]:
    return [entry.seq for entry in page.entries]


# -- numbers and tokens ------------------------------------------------------------------------------------------------


def check_numbers_begin_at_1_and_have_no_hole(store: Store) -> None:
    """Over single appends and batches."""
    first = write(store, b"a")
    more = write(store, b"b", b"c", b"d")
    last = append(store, batch(post(b"e"), post(b"f")))

    answers = [*first, *more, *last]
    numbers = [one.position.seq for one in answers]
    assert numbers == [1, 2, 3, 4, 5, 6], f"numbers were {numbers}"
    assert seqs(read(store)) == numbers, "the log holds other numbers than were answered"


def check_logs_are_numbered_apart(store: Store) -> None:
    write(store, b"a", b"b", log="one")
    (other,) = write(store, b"c", log="two")

    assert other.position.seq == 1, f"the first event of a second log has the number {other.position.seq}"
    assert [entry.body for entry in read(store, log="two").entries] == [b"c"], "a log shows another log's events"


def check_each_entry_names_its_own_token_and_the_one_before(store: Store) -> None:
    posts = [post(b"a"), post(b"b"), post(b"c")]
    append(store, batch(posts[0]))
    append(store, batch(*posts[1:]))

    page = read(store)

    tokens = [one.token for one in posts]
    assert [entry.token for entry in page.entries] == tokens, "entries do not carry their posts' tokens"
    assert [entry.prev for entry in page.entries] == [ROOT_TOKEN, *tokens[:2]], "the chain of tokens is broken"
    assert page.top_token == tokens[2], f"the top's token is {page.top_token}"


def check_an_append_answers_what_the_log_then_holds(store: Store) -> None:
    one = post(b"a")

    (answer,) = append(store, batch(one, epoch="offered"))

    assert answer == Appended(Position("offered", 1, one.token), duplicate=False), f"the answer was {answer}"
    expected = Page("offered", 1, one.token, [Entry(1, one.token, ROOT_TOKEN, one.topics, b"a")])
    assert read(store) == expected, f"the log holds {read(store)}"


def check_the_first_epoch_offered_stays(store: Store) -> None:
    (first,) = append(store, batch(post(), epoch="first"))
    (second,) = append(store, batch(post(), epoch="second"))
    page = store.read("main", "third", 0, 10)
    position = whisper(store, epoch="fourth")

    seen = [first.position.epoch, second.position.epoch, page.epoch, position.epoch]
    assert seen == ["first"] * 4, f"the log's epoch should stay 'first', and was {seen}"


def check_a_read_of_an_empty_log_gives_it_its_epoch(store: Store) -> None:
    page = store.read("main", "read", 0, 10)
    (later,) = append(store, batch(post(), epoch="written"))

    assert page == Page("read", 0, ROOT_TOKEN, []), f"an empty log reads as {page}"
    assert (later.position.epoch, later.position.seq) == ("read", 1), f"the epoch that was read did not stay: {later}"


def check_arbitrary_bytes_survive(store: Store) -> None:
    contents = [bytes(range(256)), b"", b"\x00", b"a\nb\r\n\n", b"\xff\xfe|:{}", bytes(range(256)) * 800]
    route = Route("q", "h", 1)

    append(store, batch(*(post(body, jobs=[(route, "")]) for body in contents)))

    assert [entry.body for entry in read(store).entries] == contents, "the log changed an event's bytes"
    taken = bodies(Worker(store).take())
    assert taken == [b"e" + body for body in contents], "the queue changed an event's bytes"


def check_a_batch_may_be_long_or_empty(store: Store) -> None:
    answers = append(store, batch(*(post(b"%d" % n) for n in range(9_000))))

    assert [one.position.seq for one in answers] == list(range(1, 9_001)), (
        "the numbers of a long batch are not in order"
    )
    assert append(store, batch()) == [], "an empty batch has an answer for no post"


# -- limits ------------------------------------------------------------------------------------------------------------


def check_the_cap_is_exact(store: Store) -> None:
    for n in range(1, 8):
        append(store, batch(post(b"%d" % n), cap=3))
        kept = seqs(read(store))
        assert kept == list(range(max(1, n - 2), n + 1)), f"after {n} events with a cap of 3 the log keeps {kept}"
    append(store, batch(*(post() for _ in range(10)), cap=3))
    page = read(store)
    assert (seqs(page), page.top) == ([15, 16, 17], 17), f"a batch longer than the cap left {seqs(page)}"
    append(store, batch(post(), cap=2))
    assert seqs(read(store)) == [17, 18], "a smaller cap does not hold from the next append on"


def check_entries_past_their_age_are_not_read(store: Store) -> None:
    (only,) = append(store, batch(post(), ttl_ms=30))

    page = until(lambda: (page := read(store)).entries == [] and page, "an entry to pass its age")

    assert page, "the page is gone"
    assert (page.top, page.top_token) == (1, only.position.token), f"the top went with its entry: {page}"
    (next_one,) = append(store, batch(post()))
    assert next_one.position.seq == 2, f"after all entries expired the next number is {next_one.position.seq}"
    assert read(store).entries[-1].prev == only.position.token, "the chain of tokens broke over an expired entry"


def check_an_append_drops_what_is_past_its_age(store: Store) -> None:
    append(store, batch(post(), post(), ttl_ms=60))

    def first_is_hidden() -> bool:
        append(store, batch(post(), ttl_ms=60))
        return 1 not in seqs(read(store))

    until(first_is_hidden, "the first entries to pass their age")
    append(store, batch(post(), ttl_ms=60))
    append(store, batch(post(), ttl_ms=3_600_000))

    page = read(store)
    assert not {1, 2} & set(seqs(page)), "a longer age brought back what an append should have dropped"
    assert seqs(page) == list(range(seqs(page)[0], page.top + 1)), f"there is a hole in {seqs(page)}"


def check_a_page_is_full_where_its_first_entries_are_past_their_age(store: Store) -> None:
    def five(log: str) -> None:
        append(store, batch(*(post() for _ in range(5)), log=log, ttl_ms=200))

    def the_first_five_went_alone(log: str) -> bool:
        start = time.perf_counter()
        five(log)
        until(lambda: time.perf_counter() - start > 0.1, "the second five to be younger")
        five(log)
        while (found := seqs(read(store, limit=7, log=log))) == [1, 2, 3, 4, 5, 6, 7]:
            time.sleep(0.003)
        assert found in ([6, 7, 8, 9, 10], []), f"a page of 7 was {found}"
        return found != []  # all ten at once where the machine stood still meanwhile

    assert any(the_first_five_went_alone(f"try:{n}") for n in range(10)), "no entry passed its age before another"


# -- pages -------------------------------------------------------------------------------------------------------------


def check_a_log_is_read_in_pages(store: Store) -> None:
    write(store, *(b"%d" % n for n in range(1, 11)))

    for after, limit, expected in [
        (0, 3, [1, 2, 3]),
        (3, 3, [4, 5, 6]),
        (9, 3, [10]),
        (10, 3, []),
        (99, 3, []),
        (0, 0, []),
        (0, 10, list(range(1, 11))),
    ]:
        page = read(store, after, limit)
        assert seqs(page) == expected, f"after {after}, at most {limit}: {seqs(page)}"
        assert page.top == 10, f"the top is 10, and a page says {page.top}"
        assert [entry.body for entry in page.entries] == [b"%d" % n for n in expected], "bodies are out of order"


def check_logs_are_listed_once_written_to(store: Store) -> None:
    assert store.logs() == [], "a new namespace has logs"

    store.read("read:only", "e", 0, 1)
    whisper(store, log="told:only")
    assert store.logs() == [], "a log that was only read or announced on counts as written to"
    for log in ("run:2", "main", "read:only", "told:only", "main"):
        write(store, b"a", log=log)

    assert store.logs() == ["main", "read:only", "run:2", "told:only"], f"the logs are {store.logs()}"


# -- idempotency -------------------------------------------------------------------------------------------------------


def check_a_repeated_id_gets_the_first_position_and_nothing_else(store: Store) -> None:
    (first,) = append(store, batch(post(b"first", id="same", jobs=[(HOME, "")])))
    (again,) = append(store, batch(post(b"other", id="same", jobs=[(HOME, ""), (HOME, "k")])))
    (elsewhere,) = append(store, batch(post(b"other", id="same", jobs=[(HOME, "")]), log="two", epoch="e2"))

    assert first.duplicate is False, "the first of an id is no duplicate"
    assert again == first._replace(duplicate=True), f"{again} is not the position of the first, {first}"
    assert elsewhere == again, f"{elsewhere}: an id counts once in a namespace, whatever the log"
    assert [entry.body for entry in read(store).entries] == [b"first"], "a duplicate was logged"
    assert read(store, log="two").top == 0, "a duplicate was logged in another log"
    assert bodies(Worker(store).take()) == [b"efirst"], "a duplicate was queued"


def check_an_id_counts_once_inside_a_batch_and_across_batches(store: Store) -> None:
    one, two = post(b"one", id="x", jobs=[(HOME, "")]), post(b"two", id="x", jobs=[(HOME, "")])
    between, after = post(b"between"), post(b"after")

    answers = [append(store, batch(*posts)) for posts in ((one, between, two), (two, after, one))]

    flat = [(one.position.seq, one.duplicate) for answer in answers for one in answer]
    expected = [(1, False), (2, False), (1, True), (1, True), (3, False), (1, True)]
    assert flat == expected, f"(number, duplicate) of each post were {flat}"
    assert [entry.body for entry in read(store).entries] == [b"one", b"between", b"after"], "the log differs"
    assert bodies(Worker(store).take()) == [b"eone"], "an id was queued more than once"


def check_an_id_is_free_again_when_its_window_ends(store: Store) -> None:
    append(store, batch(post(id="long")))
    (first,) = append(store, batch(post(id="short"), window_ms=30))

    (later,) = until(
        lambda: [one for one in append(store, batch(post(id="short"), window_ms=30)) if not one.duplicate],
        "a window to end",
    )

    assert later.position.seq == first.position.seq + 1, (
        f"the id that was free again has the number {later.position.seq}, not {first.position.seq + 1}"
    )
    (still,) = append(store, batch(post(id="long")))
    assert still.duplicate, "a longer window ended with a shorter one"


# -- bindings ----------------------------------------------------------------------------------------------------------


def check_the_version_of_the_bindings_moves_only_on_change(store: Store) -> None:
    assert store.bindings() == Stale(0, {}), f"a new namespace has {store.bindings()}"

    versions = [
        store.bind({"a": b"1", "b": b"\x00\xff"}),
        store.bind({"a": b"1"}),
        store.bind({}),
        store.bind({"a": b"2", "c": b"3"}),
        store.bind({"c": b"3", "b": b"\x00\xff"}),
    ]

    first, second = versions[0], versions[3]
    assert 0 < first < second, f"the versions were {versions}"
    assert versions == [first] * 3 + [second] * 2, f"the versions were {versions}"
    assert store.bindings() == Stale(second, {"a": b"2", "b": b"\x00\xff", "c": b"3"}), f"kept: {store.bindings()}"


def check_stale_bindings_write_nothing_and_are_told_the_current_ones(store: Store) -> None:
    store.bind({"a": b"1"})
    version = store.bind({"b": b"2"})
    late = batch(post(b"late", id="late", jobs=[(HOME, "")]), epoch="late", version=version - 1)

    answer = store.append(late)

    assert answer == Stale(version, {"a": b"1", "b": b"2"}), f"the answer was {answer}"
    assert store.read("main", "mine", 0, 10) == Page("mine", 0, ROOT_TOKEN, []), "a stale batch left something"
    assert (store.logs(), store.pending("q")) == ([], 0), "a stale batch left a log or a job"
    (matched,) = append(store, late._replace(version=version))
    assert matched.duplicate is False, "a stale batch used up its id"


def check_duplicates_are_answered_whatever_the_version(store: Store) -> None:
    known = post(b"known")
    (first,) = append(store, batch(known))
    version = store.bind({"a": b"1"})

    only_known, mixed = store.append(batch(known)), store.append(batch(known, post(b"new")))

    assert only_known == [first._replace(duplicate=True)], f"the answer was {only_known}"
    assert mixed == Stale(version, {"a": b"1"}), f"a batch with something new in it was answered {mixed}"
    assert read(store).top == 1, "a stale batch was written in part"


LOG_CHECKS = collected(globals())
