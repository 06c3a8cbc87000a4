"""Trails: up to where two branches of a log are one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.position import ROOT_TOKEN, Position
from bus.trail import KEPT, Trail


def trail_of(tokens: list[str], first: int = 1) -> Trail:
    trail = Trail()
    for seq, token in enumerate(tokens, first):
        trail.note(seq, token)
    return trail


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_the_last_in_common_is_where_the_branches_part(shared: int, mine: int, theirs: int) -> None:
    ours = [f"s{n}" for n in range(shared)] + [f"m{n}" for n in range(mine)]
    branch = [f"s{n}" for n in range(shared)] + [f"t{n}" for n in range(theirs)]

    found = trail_of(ours).last_in_common("e", [(0, ROOT_TOKEN), *enumerate(branch, 1)])

    if not ours:
        assert found is None  # it has not begun anywhere
    else:
        assert found == Position("e", shared, branch[shared - 1] if shared else ROOT_TOKEN)


def test_a_hole_begins_a_new_trail() -> None:
    trail = trail_of(["a", "b"])
    trail.note(4, "d")
    assert (trail.first, trail.token(4), trail.token(2)) == (4, "d", None)
    assert trail.last_in_common("e", [(2, "b"), (0, ROOT_TOKEN)]) is None


def test_it_goes_on_another_ones_way_up_to_a_number() -> None:
    trail, other = trail_of(["a", "b"]), trail_of(["b", "c", "d"], first=2)
    trail.go_on(other, 3)
    assert [trail.token(seq) for seq in range(1, 5)] == ["a", "b", "c", None]

    empty = Trail()
    empty.go_on(other, 9)
    assert empty.first == 2


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    trail = trail_of([str(n) for n in range(KEPT + 10)])
    assert (trail.first, trail.token(10), trail.token(11)) == (11, None, "10")
    trail.forget()
    assert trail.first is None
