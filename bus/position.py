"""Positions: where in a log an event stands.

A position is the text ``epoch-seq-token``. To users it is opaque: they keep it and hand it back as ``after=``. We look
inside: the epoch names one life of the log, ``seq`` counts from 1 without a hole, and the token is the event's own mark,
by which a number that was given out twice (a replica promoted with fewer events) is told apart.
"""

from __future__ import annotations

import re
from typing import Any, Self

from bus.errors import InvalidPosition

__all__ = ["ROOT_TOKEN", "Position"]

ROOT_TOKEN = "0"  # noqa: S105 - the token "before" the first event of an epoch, not a secret

_FORM = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,15})-([0-9a-z]{1,32})", re.ASCII)


class Position(str):
    """A place in a log: a string to its users, with ``epoch``, ``seq`` and ``token`` for the code that repairs."""

    __slots__ = ("epoch", "seq", "token")

    epoch: str
    seq: int
    token: str

    def __new__(cls, epoch: str, seq: int, token: str) -> Self:
        """Put a position together from its parts."""
        self = super().__new__(cls, f"{epoch}-{seq}-{token}")
        self.epoch = epoch
        self.seq = seq
        self.token = token
        return self

    def __getnewargs__(self) -> tuple[str, int, str]:  # type: ignore[override]  # our parts, not the text: for pickle and copy
        return self.epoch, self.seq, self.token

    def __getattr__(self, part: str) -> Any:
        """A part that nobody has asked for yet."""
        if part not in self.__slots__:
            raise AttributeError(part)
        self.epoch, seq, self.token = self.split("-")
        self.seq = int(seq)
        return getattr(self, part)

    @classmethod
    def written(cls, text: str) -> Self:
        """One that we have written ourselves, as a text that needs no check; its parts are read when they are asked for."""
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a position back from its text; anything else raises :class:`~bus.errors.InvalidPosition`."""
        if isinstance(text, cls):
            return text
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InvalidPosition(str(text))
        return cls(match[1], int(match[2]), match[3])
