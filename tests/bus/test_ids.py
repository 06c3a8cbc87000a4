"""Ids: unique, sorted by time, whatever the clock, the threads and forks do."""

from __future__ import annotations

import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from bus import ids
from bus.ids import epoch, token, uuid7


def time_of(identifier: str) -> int:
    return uuid.UUID(identifier).int >> 80


def test_an_id_is_a_uuid_of_version_7_in_canonical_text() -> None:
    identifier = uuid7(1_769_592_600_123)

    parsed = uuid.UUID(identifier)

    assert str(parsed) == identifier
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_an_id_carries_its_time() -> None:
    now_ms = time_of(uuid7(0)) + 1_000

    assert time_of(uuid7(now_ms)) == now_ms


def test_ids_of_one_millisecond_rise() -> None:
    now_ms = time_of(uuid7(0)) + 1_000

    made = [uuid7(now_ms) for _ in range(5_000)]

    assert made == sorted(set(made))
    assert time_of(made[-1]) == now_ms


def test_ids_rise_while_the_clock_steps_back() -> None:
    now_ms = time_of(uuid7(0)) + 10_000

    made = [uuid7(now_ms - back) for back in range(0, 10_000, 10)]

    assert made == sorted(set(made))


def test_the_first_id_of_a_process_may_be_of_1970(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_latest", ids._Latest())  # noqa: SLF001 - a process's first id is made once
    assert re.fullmatch(r"00000000-0000-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uuid7(0))


def test_random_bits_that_run_over_carry_into_the_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    latest = ids._Latest()  # noqa: SLF001 - as above
    monkeypatch.setattr(ids, "_latest", latest)
    now_ms = 0x1_0000_FFFF
    before = uuid7(now_ms)
    latest.parts = now_ms, (1 << 74) - 1, before[:15]

    after = uuid7(now_ms)

    assert uuid.UUID(after).int >> 80 == now_ms + 1
    assert before < after < uuid7(now_ms)


def test_ids_of_many_threads_are_unique() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(uuid7, [1_769_592_600_123] * 20_000))

    assert len(set(made)) == len(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_other_ids_than_its_parent() -> None:
    now_ms = time_of(uuid7(0)) + 1_000
    uuid7(now_ms)
    token()  # now some randomness of both kinds is at hand, for the fork to copy
    reading, writing = os.pipe()

    child = os.fork()
    if child == 0:
        try:
            os.write(writing, f"{uuid7(now_ms)} {token()}".encode())
        finally:
            os._exit(0)
    theirs = os.read(reading, 200).decode().split()
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)

    assert len(theirs) == 2
    assert theirs[0] != uuid7(now_ms)
    assert theirs[1] != token()


def test_a_time_in_nanoseconds_is_refused() -> None:
    with pytest.raises(ValueError, match="pass milliseconds"):
        uuid7(1_769_592_600_123_000_000)


def test_tokens_and_epochs_are_eight_hex_digits_and_differ() -> None:
    made = [*(token() for _ in range(100)), *(epoch() for _ in range(100))]

    assert all(re.fullmatch("[0-9a-f]{8}", one) for one in made)
    assert len(set(made)) == len(made)
