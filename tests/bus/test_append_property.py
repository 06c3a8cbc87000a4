"""However ids are repeated, each counts once, and in the order in which they were first seen."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.clock import Clock
from bus.store.base import Appended, Store
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.testing.store_checks import HOME, Worker, append, batch, post

IDS = st.sampled_from("abcdefgh")
LOGS = st.sampled_from(["main", "run:1"])
CALLS = st.lists(st.lists(st.tuples(LOGS, st.lists(IDS, max_size=6)), max_size=4), max_size=8)
"""Calls of batches: a log and ids."""

examples = count()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server a batch travels in pieces; so small ones have every kind of repeat at their seams."""
    monkeypatch.setattr("bus.store.redis.scripts.PIECE", 2)


def fresh_store(mode: str, url: str, namespace: str) -> Store:
    if mode == "memory":
        return MemoryStore(Clock(), lease_ms=60_000)
    return RedisStore(url, f"{namespace}.{next(examples)}", lease_ms=60_000)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_any_repeats_of_ids_give_one_entry_each_in_first_seen_order(
    calls: list[list[tuple[str, list[str]]]], mode: str, url: str, namespace: str
) -> None:
    store = fresh_store(mode, url, namespace)
    try:
        answered = publish(store, calls)
        logs = {log: [entry.body for entry in store.read(log, "e", 0, 1_000).entries] for log in ("main", "run:1")}
        queued = Worker(store).drain()
    finally:
        store.close()

    firsts: dict[str, Told] = {}
    for told in answered:
        first = firsts.setdefault(told.name, told)
        assert told.answer.duplicate is (told is not first)
        assert told.answer.position == first.answer.position, "not the position of the first"
    for log, kept in logs.items():
        here = [told for told in firsts.values() if told.log == log]
        assert kept == [told.body for told in here]
        assert [told.answer.position.seq for told in here] == list(range(1, len(here) + 1))
        assert {told.answer.position.epoch for told in here} <= {epoch_of(log)}
    assert queued == [b"e" + told.body for told in firsts.values()]


class Told(NamedTuple):
    """One post and its answer. The body is told apart by its place among all posts."""

    log: str
    name: str
    body: bytes
    answer: Appended


def epoch_of(log: str) -> str:
    return log.replace(":", "")


def publish(store: Store, calls: list[list[tuple[str, list[str]]]]) -> list[Told]:
    told: list[Told] = []
    place = count()
    for call in calls:
        batches = [
            batch(
                *(post(b"%d" % next(place), id=name, jobs=[(HOME, "")]) for name in names),
                log=log,
                epoch=epoch_of(log),
            )
            for log, names in call
        ]
        for asked in batches:
            answers = append(store, asked)
            told += (Told(asked.log, one.id, one.body, its) for one, its in zip(asked.posts, answers, strict=True))
    return told
