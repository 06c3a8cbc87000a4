"""Names for things that must never collide: event ids, chain tokens and epochs.

An event id is a UUIDv7 (RFC 9562, section 5.7), so ids sort by the time they were made. Within a process they sort
strictly, also inside one millisecond and while the clock steps back. All randomness is the kernel's (``os.urandom``), a
few hundred pieces at a time; what is left of them is thrown away in a forked child, so parent and child never make the same
id.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Final

__all__ = ["epoch", "token", "uuid7"]

_RANDOM_BITS = 74  # what UUIDv7 leaves beside the time, the version and the variant
_LATEST_MS = (1 << 48) - 1


class _Randomness:
    """Random bytes of the kernel's, a few hundred pieces of ``size`` bytes at a time: a call to it costs more than a piece.

    Each piece is given out once. Safe from any thread; a forked child throws away what its parent had left.
    """

    __slots__ = ("_pieces", "_size")

    _AT_ONCE: Final = 256

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: deque[bytes] = deque()

    def piece(self) -> bytes:
        try:
            return self._pieces.pop()
        except IndexError:
            fresh = os.urandom(self._AT_ONCE * self._size)
        self._pieces.extend(fresh[at : at + self._size] for at in range(self._size, len(fresh), self._size))
        return fresh[: self._size]

    def after_fork(self) -> None:
        self._pieces = deque()


class _Sequence:
    """A strictly rising run of 122-bit numbers: 48 bits of milliseconds, then 74 random bits.

    A new millisecond starts at a random place in the lower half. Inside one, each number stands a random distance of up
    to 2**56 above the last (RFC 9562, section 6.2, method 2): that is what keeps a forked child, which inherits the
    last number, away from its parent. Should the random bits ever run over, they carry into the milliseconds.
    """

    __slots__ = ("_last", "_lock")

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self, now_ms: int) -> int:
        """The next number. Safe from any thread."""
        fresh = int.from_bytes(_wide.piece())
        with self._lock:
            number = now_ms << _RANDOM_BITS | fresh >> 7
            if number >> _RANDOM_BITS <= self._last >> _RANDOM_BITS:
                number = self._last + 1 + (fresh >> 24)
            self._last = number
        return number

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held at the moment of the fork."""
        self._lock = threading.Lock()


_wide, _narrow, _sequence = _Randomness(10), _Randomness(4), _Sequence()
if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    for _each in (_wide, _narrow, _sequence):
        os.register_at_fork(after_in_child=_each.after_fork)


def uuid7(now_ms: int) -> str:
    """A new UUIDv7 as canonical lowercase text, greater than every earlier one of this process.

    ``now_ms`` is milliseconds since 1970 (UTC). Where it is not later than the last one, the last one's time is kept.
    Never blocks for long; safe from any thread and after a fork. Raises ``ValueError`` for a time that does not fit in
    48 bits, which is most likely one in another unit.
    """
    if now_ms > _LATEST_MS:
        raise ValueError(f"{now_ms} is too late for milliseconds since 1970: pass milliseconds")
    number = _sequence.next(now_ms)
    # 48 bits time | version 7 | 12 random | variant 0b10 | 62 random
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031 - takes the least time of all ways to write it
        number >> 90,
        number >> 74 & 0xFFFF,
        number >> 62 & 0xFFF,
        0x8000 | number >> 48 & 0x3FFF,
        number & 0xFFFF_FFFF_FFFF,
    )


def token() -> str:
    """Eight random hex digits that tell one log entry from another with the same number."""
    return _narrow.piece().hex()


def epoch() -> str:
    """Eight random hex digits that tell one life of a log from the next."""
    return _narrow.piece().hex()
