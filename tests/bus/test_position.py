"""A position is a text to its users; its parts are there for the code that repairs."""

from __future__ import annotations

import copy
import pickle

import pytest

from bus.errors import InvalidPosition
from bus.position import Position

WAYS = {
    "parts": lambda: Position("e1", 12, "t2"),
    "text": lambda: Position.parse("e1-12-t2"),
    "our own text": lambda: Position.written("e1-12-t2"),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_was_made_it_is_the_same(way: str) -> None:
    made = WAYS[way]()

    assert (made, hash(made)) == ("e1-12-t2", hash("e1-12-t2"))
    assert [(one.epoch, one.seq, one.token) for one in (made, made)] == [("e1", 12, "t2")] * 2
    assert Position.parse(made) is made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301 - our own
def test_a_copy_has_its_parts(way: str, again: object) -> None:
    assert callable(again)
    made = again(WAYS[way]())

    assert isinstance(made, Position)
    assert (made, made.epoch, made.seq, made.token) == ("e1-12-t2", "e1", 12, "t2")


def test_it_has_no_other_parts() -> None:
    with pytest.raises(AttributeError, match="number"):
        Position.written("e1-12-t2").number  # noqa: B018


@pytest.mark.parametrize("text", ["", "e1", "e1-12", "e1-x-t", "e1-01-t", "e1--t", "e1-1-t-u", "é-1-t", "e1-1-t\n"])
def test_another_text_is_no_position(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)
