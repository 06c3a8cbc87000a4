"""The way that a reader has come: which token each of its last numbers had.

Should the log turn out to have gone on from an older state (a fork), the trail tells up to where the two branches are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from bus.position import ROOT_TOKEN, Position

__all__ = ["Trail"]

KEPT = 2048
"""Numbers that are remembered: a fork further back is one whose beginning is not known."""


class Trail:
    """The last numbers of one epoch, without a hole, each with its token."""

    __slots__ = ("_passed",)

    def __init__(self) -> None:
        self._passed: deque[tuple[int, str]] = deque(maxlen=KEPT)

    def note(self, seq: int, token: str) -> None:
        """Go one further; a number that does not follow the last one begins a new trail."""
        passed = self._passed
        if passed and passed[-1][0] != seq - 1:
            passed.clear()
        passed.append((seq, token))

    def go_on(self, other: Trail, end: int) -> None:
        """Take over from another trail what follows, up to number ``end``."""
        for seq, token in other._passed:
            if seq <= end and (not self._passed or seq > self._passed[-1][0]):
                self.note(seq, token)

    def cut(self, end: int) -> None:
        """Go back to number ``end``: what came after it was another branch."""
        while self._passed and self._passed[-1][0] > end:
            self._passed.pop()

    def forget(self) -> None:
        """Begin anew: in another epoch, or on another branch."""
        self._passed.clear()

    def token(self, seq: int) -> str | None:
        """What the number was, if that is remembered."""
        passed = self._passed
        at = seq - passed[0][0] if passed else -1
        return passed[at][1] if 0 <= at < len(passed) else None

    @property
    def first(self) -> int | None:
        """The first number that is remembered."""
        return self._passed[0][0] if self._passed else None

    def last_in_common(self, epoch: str, branch: Iterable[tuple[int, str]]) -> Position | None:
        """The highest of a branch's (number, token) pairs that we have passed as well."""
        shared = [(seq, token) for seq, token in branch if self._passes(seq, token)]
        return Position(epoch, *max(shared)) if shared else None

    def _passes(self, seq: int, token: str) -> bool:
        if seq == 0:
            return self.first == 1 and token == ROOT_TOKEN
        return self.token(seq) == token
