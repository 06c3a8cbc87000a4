"""A reader whose log changes between two of its looks: what a server does that fails over, and over again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

import pytest

from bus.codec import encode, wrap
from bus.decoding import Decoder
from bus.delivery import Closed, Delivery, Gap
from bus.position import ROOT_TOKEN, Position
from bus.reader import Reader
from bus.store.base import Entry, Heard, Page
from bus.topics import Matcher

LIFE, OTHER_LIFE = "e1", "e2"


class Log:
    """One state of a log: each event's token is its name."""

    def __init__(self, epoch: str, names: str) -> None:
        self.epoch = epoch
        self.names = names.split()

    def page(self, after: int, limit: int) -> Page:
        tokens = [ROOT_TOKEN, *self.names]
        entries = [_entry(seq, tokens[seq], tokens[seq - 1]) for seq in range(1, len(tokens))]
        return Page(self.epoch, len(self.names), tokens[-1], entries[after : after + limit])

    def position(self) -> Position:
        return Position(self.epoch, len(self.names), self.names[-1])


def _entry(seq: int, token: str, prev: str) -> Entry:
    event = {"type": "reader.said", "name": token}
    envelope = wrap(event, id=token, source="/test", now_ms=1, topics=("global",), key=None)
    return Entry(seq, token, prev, "global", encode(envelope))


class Changing:
    """The log side of a store whose log is another one at each read; the last state stays."""

    def __init__(self, *states: Log) -> None:
        self.states = list(states)

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:  # noqa: ARG002
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return state.page(after, limit)

    def subscribe(self, log: str) -> AsyncIterator[Heard]:
        raise NotImplementedError

    async def append(self, batch: object) -> NoReturn:
        raise NotImplementedError

    async def announce(self, log: str, epoch: str, whispers: object) -> NoReturn:
        raise NotImplementedError

    async def close_log(self, log: str, epoch: str, own: object = None) -> NoReturn:
        raise NotImplementedError

    async def seek(self, log: str, epoch: str, at_ms: int) -> NoReturn:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


async def read_on(begun: Log, states: Sequence[Log]) -> list[str | Gap]:
    """What a reader that has read ``begun`` finds next, while the log goes through these states."""
    store = Changing(begun)
    reader = Reader(store, "main", Matcher(["**"]), "0", Decoder())
    await reader.page()
    store.states = list(states)
    found: list[str | Gap] = []
    while reader.cursor != states[-1].position():
        items = [one.item for one in await reader.page()]
        found += [
            item.envelope.id if isinstance(item, Delivery) else item for item in items if not isinstance(item, Closed)
        ]
    return found


async def test_a_fork_is_told_from_where_the_branches_part() -> None:
    forked = Log(LIFE, "a b x y")

    found = await read_on(Log(LIFE, "a b c d"), [forked])

    assert found == [Gap(3, 4, "fork"), "x", "y"]


@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_second_fork_while_the_first_is_looked_into_costs_nothing(looks: int) -> None:
    """Its branch parts earlier; what it has there must not be passed over."""
    first, second = Log(LIFE, "a b c x"), Log(LIFE, "a p q r s")

    found = await read_on(Log(LIFE, "a b c d"), [*[first] * looks, second])

    if looks == 3:  # it was read, and only then forked again
        assert found[:2] == [Gap(4, 4, "fork"), "x"]
    gap = found[-5]
    assert isinstance(gap, Gap)
    assert (gap.first, gap.reason) == (2, "fork")
    assert found[-4:] == ["p", "q", "r", "s"]


@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_server_that_comes_back_to_our_life_repeats_nothing(looks: int) -> None:
    """It had lost the log for a moment: a failover there, and one back."""
    ours, elsewhere = Log(LIFE, "a b c d"), Log(OTHER_LIFE, "m n")

    found = await read_on(Log(LIFE, "a b c"), [*[elsewhere] * looks, ours])

    if looks == 1:
        assert found == ["d"]
    else:
        gap = found[0]
        assert isinstance(gap, Gap)
        assert gap.reason == "epoch"
        assert len(found) == len(set(found))


async def test_a_life_that_ends_while_a_fork_is_looked_into_is_told_as_such() -> None:
    forked, other = Log(LIFE, "a b x y"), Log(OTHER_LIFE, "m n")

    found = await read_on(Log(LIFE, "a b c d"), [forked, forked, other])

    assert found == [Gap(5, 0, "epoch"), "m", "n"]


async def test_a_fork_that_is_undone_while_it_is_looked_into_repeats_nothing_unsaid() -> None:
    """Fork, another life, and back again within one look."""
    ours, forked, other = Log(LIFE, "a b c d"), Log(LIFE, "a b x y"), Log(OTHER_LIFE, "m n")

    found = await read_on(Log(LIFE, "a b c"), [forked, forked, other, ours])

    assert found == ["d"]
