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
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["epoch", "token", "uuid7"]

T = TypeVar("T")

_RANDOM_BITS = 74  # what UUIDv7 leaves beside the time, the version and the variant
_LOW = (1 << _RANDOM_BITS) - 1
_LATEST_MS = (1 << 48) - 1


class _Pool(deque[T]):
    """Random pieces, each made of ``size`` bytes of the kernel's, many at a time: a call to it costs more than a piece.

    Take them by ``pop``, and by ``refill`` where that raises ``IndexError``: each is given out once. Safe from any thread;
    a forked child has to ``clear`` what its parent had left.
    """

    _AT_ONCE: Final = 256

    def __init__(self, size: int, make: Callable[[bytes], T]) -> None:
        super().__init__()
        self._size = size
        self._make = make

    def refill(self) -> T:
        """Get more of them, and give one out."""
        fresh = os.urandom(self._AT_ONCE * self._size)
        first, *others = [self._make(fresh[at : at + self._size]) for at in range(0, len(fresh), self._size)]
        self.extend(others)
        return first


def _head(ms: int) -> str:
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"


class _Latest:
    """The last number that was given out: its milliseconds, its lower bits, and how its text begins.

    Many are made within a millisecond, and a part of a large number costs as much as a whole small one. All three are set at
    once, for a thread may be struck between two.
    """

    __slots__ = ("lock", "parts")

    def __init__(self) -> None:
        self.parts = 0, 0, _head(0)
        self.lock = threading.Lock()


_numbers, _texts, _latest = _Pool(10, int.from_bytes), _Pool(4, bytes.hex), _Latest()


def _after_fork() -> None:
    _numbers.clear()
    _texts.clear()
    _latest.lock = threading.Lock()  # a thread of the parent may have held it at the moment of the fork


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_after_fork)


def uuid7(now_ms: int) -> str:
    """A new UUIDv7 as canonical lowercase text, greater than every earlier one of this process.

    ``now_ms`` is milliseconds since 1970 (UTC). Where it is not later than the last one, the last one's time is kept.
    Never blocks for long; safe from any thread and after a fork. Raises ``ValueError`` for a time that does not fit in
    48 bits, which is most likely one in another unit.

    Beneath is a strictly rising run of 122-bit numbers: 48 bits of milliseconds, then 74 random bits. A new millisecond
    starts at a random place in the lower half. Inside one, each number stands a random distance of up to 2**56 above the
    last (RFC 9562, section 6.2, method 2): that is what keeps a forked child, which inherits the last number, away from
    its parent. Should the random bits ever run over, they carry into the milliseconds.
    """
    if now_ms > _LATEST_MS:
        raise ValueError(f"{now_ms} is too late for milliseconds since 1970: pass milliseconds")
    try:
        fresh = _numbers.pop()
    except IndexError:
        fresh = _numbers.refill()
    with _latest.lock:
        ms, low, head = _latest.parts
        if now_ms > ms:
            ms, low, head = now_ms, fresh >> 7, _head(now_ms)
        else:
            low += 1 + (fresh >> 24)
            if low >> _RANDOM_BITS:
                ms, low, head = ms + 1, low & _LOW, _head(ms + 1)
        _latest.parts = ms, low, head
    # 48 bits time | version 7 | 12 random | variant 0b10 | 62 random
    return "%s%03x-%04x-%012x" % (head, low >> 62, 0x8000 | low >> 48 & 0x3FFF, low & 0xFFFF_FFFF_FFFF)  # noqa: UP031 - the quickest way


def token() -> str:
    """Eight random hex digits that tell one log entry from another with the same number."""
    try:
        return _texts.pop()
    except IndexError:
        return _texts.refill()


def epoch() -> str:
    """Eight random hex digits that tell one life of a log from the next."""
    return token()
