"""A store whose log side breaks on request: to see listeners repair themselves, over our stores or over one of your own.

:class:`FaultyStore` stands before any real store. What it does to the live side is what networks do: frames that come
late, twice, in another order or not at all, subscriptions that are cut, reads that fail. What it does to the log is what
servers do: they trim it, lose it (another epoch), or go on from an older state of it under the same epoch, as a replica
does that was promoted too early (a fork)::

    faulty = FaultyStore(lambda: MyStore(...))
    loop_store = faulty.on_loop()
    ...
    faulty.hold()                 # frames wait
    ...                           # two events are published
    faulty.release([1, 0, 0])     # the second one passes first, the first one twice
    faulty.cut()                  # every subscription ends with BusUnavailable
    faulty.fork(back=2)           # the last two events never were; what comes now takes their numbers

Nothing here waits for a time, so a test may drive it on a loop with a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bus import ids
from bus.store.base import QUIET, Batch, Entry, Frame, Heard, Limits, LoopStore, Page, Post, Store
from bus.testing.faulty_link import Door, Faults

__all__ = ["FaultyStore"]

WHOLE = 1_000_000
"""More events than a log in a test keeps."""
DAY_MS = 24 * 3_600_000


class FaultyStore:
    """A :class:`bus.store.base.Store` that does all that the one beneath does, until it is told otherwise.

    ``make`` makes that one, open and empty; it is asked again whenever the log is to be another one. What breaks
    something takes effect at once, and belongs to the thread of the one event loop that listens (which need not run just then). The queue side is that of
    the store beneath; it starts empty whenever the log is another one, and so does the memory of ids.
    """

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self._faults = Faults()
        self.store = make()
        """The one beneath: to look at the log past all faults."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __repr__(self) -> str:
        return f"<FaultyStore with {len(self._faults.lines)} subscriptions before {self.store!r}>"

    def on_loop(self) -> LoopStore:
        """The log side for the running loop, with its faults."""
        return Door(self._faults, lambda: self.store)

    # -- what networks do ----------------------------------------------------------------------------------------------

    @property
    def told(self) -> list[Frame]:
        """The last thousand frames that the store beneath has sent, once for each subscription, oldest first."""
        return list(self._faults.told)

    @property
    def held(self) -> list[Frame]:
        """The frames that wait, in the order in which they came."""
        return [frame for _, frame in self._faults.held or ()]

    def watch(self, passed: Callable[[Heard], None]) -> None:
        """Have a function told of all that passes to a listener. One at a time: the last one counts."""
        self._faults.passed = passed

    def hold(self) -> None:
        """Let frames wait until :meth:`release`. Safe twice."""
        if self._faults.held is None:
            self._faults.held = []

    def release(self, order: Sequence[int] | None = None) -> None:
        """Pass on what waits, and from then on whatever comes. Safe where nothing waits.

        ``order`` names the frames by their place in :attr:`held`: one that it leaves out is lost, one that it names
        twice comes twice. Without it all pass as they came.
        """
        held, self._faults.held = self._faults.held or [], None
        for index in range(len(held)) if order is None else order:
            line, frame = held[index]
            line.say(frame)

    def send(self, frame: Frame) -> None:
        """Send a frame to every subscription, whether the store ever did or not; it does not pass those that wait."""
        for line in tuple(self._faults.lines):
            self._faults.send(line, frame)

    def hush(self) -> None:
        """Let every subscription say that it has been quiet for a while."""
        for line in tuple(self._faults.lines):
            line.say(QUIET)

    def cut(self) -> None:
        """End every subscription, and lose what was on its way."""
        if self._faults.held is not None:
            self._faults.held.clear()
        for line in tuple(self._faults.lines):
            line.cut()

    def fail_reads(self, count: int) -> None:
        """Have the next ``count`` reads fail; 0 ends it."""
        self._faults.failing["read"] = count

    def slow_reads(self, turns: int) -> None:
        """Have what was read arrive so many turns of the loop later, when it may be old; 0 ends it."""
        self._faults.slowness = turns

    def fail_subscriptions(self, count: int) -> None:
        """Have the next ``count`` attempts to subscribe fail; 0 ends it."""
        self._faults.failing["subscribe"] = count

    # -- what servers do -----------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """Lose everything. Subscriptions live on, as over a FLUSHALL; :meth:`cut` them as well for a restart."""
        self._become(self._make())

    def fork(self, back: int, log: str = "main") -> None:
        """Go on from the state of ``back`` events ago, under the same epoch; one of those that are kept stays."""
        page = self._page(log)
        self._rebuild(log, page, page.entries[: max(1, len(page.entries) - back)])

    def trim(self, keep: int, log: str = "main") -> None:
        """Keep no more than the last ``keep`` events; one stays."""
        page = self._page(log)
        self._rebuild(log, page, page.entries[-max(1, keep) :])

    def _page(self, log: str) -> Page:
        return self.store.read(log, ids.epoch(), 0, WHOLE)

    def _rebuild(self, log: str, page: Page, entries: list[Entry]) -> None:
        """Another store, with these entries in one log and all other logs as they are."""
        if not entries:
            return
        others = {name: self._page(name) for name in self.store.logs() if name != log}
        fresh = self._make()
        _write(fresh, log, page.epoch, entries)
        for name, other in others.items():
            _write(fresh, name, other.epoch, other.entries)
        self._become(fresh)

    def _become(self, store: Store) -> None:
        before, self.store = self.store, store
        before.close()
        for line in tuple(self._faults.lines):
            line.move()


def _write(store: Store, log: str, epoch: str, entries: list[Entry]) -> None:
    """Append entries so that they get the numbers and tokens that they had; what came before them is trimmed away."""
    if not entries:
        return
    first = entries[0]
    posts = [Post(ids.uuid7(0), ids.token(), "", b"") for _ in range(first.seq - 1)]
    if posts:
        posts[-1] = posts[-1]._replace(token=first.prev)
    posts += [Post(ids.uuid7(0), one.token, one.topics, one.body) for one in entries]
    store.append(Batch(log, Limits(len(entries), DAY_MS), DAY_MS, epoch, 0, posts))
