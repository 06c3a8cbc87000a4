"""Moving a bus: for the length of a test, an app's own bus lives in an empty world of its own.

An app that is made when its module is imported has its bus, its broker and its handlers for good, and the code under test
holds them too. So nothing of it is replaced: the bus itself begins another life, on another store, and the one it had is
given back to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bus.client import Bus
from bus.errors import BusError
from bus.life import Life
from bus.outgoing import Outgoing

__all__ = ["moved"]


@contextmanager
def moved(bus: Bus, url: str, namespace: str) -> Iterator[Bus]:
    """Have a bus live at another URL, in a namespace of its own; what was there before comes back at the end.

    ``memory://`` is an empty store. Hooks and limits stay; the bus's clock is put back at the end. Raises
    :class:`~bus.errors.BusError` where somebody has the bus open: a listener, a worker, an ``async with`` around the test.
    """
    if bus._life.owned():
        raise BusError("this bus is open, and only a closed one can be moved: let the test open it, after its fixtures")
    elsewhere = Bus(url, namespace=namespace, clock=bus.clock, lease_s=bus.limits.lease_s)
    here, namespace_here, offset_ms = bus._life, bus.namespace, bus.clock.offset_ms
    try:
        _live(bus, elsewhere._life, elsewhere.namespace)
        yield bus
    finally:
        bus._life.whispers.close()
        bus._life.end()
        _live(bus, here, namespace_here)
        bus.clock.travel(offset_ms - bus.clock.offset_ms)


def _live(bus: Bus, life: Life, namespace: str) -> None:
    bus.namespace = namespace
    bus._life = life
    bus._outgoing = Outgoing(life, bus._publisher)
    bus._publisher.forget()  # bindings of one store may have the version of another's
