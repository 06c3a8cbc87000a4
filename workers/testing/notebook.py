"""The notebook: what the logs of a bus were given, kept also when a log no longer keeps it."""

from __future__ import annotations

from collections import defaultdict

from bus import Delivery, Position, ids
from bus.decoding import Decoder
from bus.settings import check_log
from bus.store.base import Store

__all__ = ["Notebook"]

PAGE = 500


class Notebook:
    """Of one store. Blocks for round trips; safe from one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoder = Decoder()
        self._seen: defaultdict[str, list[Delivery]] = defaultdict(list)
        self._tops: dict[str, tuple[str, int]] = {}

    def look(self) -> None:
        """Note what is new in all logs."""
        for log in self._store.logs():
            self._read_on(log)

    def of(self, log: str | None) -> list[Delivery]:
        """All that a log was given, in its order."""
        name = check_log(log)
        self._read_on(name)
        return self._seen[name]

    def _read_on(self, log: str) -> None:
        epoch, top = self._tops.get(log, ("", 0))
        while True:
            page = self._store.read(log, epoch or ids.epoch(), top, PAGE)
            if epoch and page.epoch != epoch:  # it begins anew, and so do its numbers
                epoch, top = page.epoch, 0
                continue
            for entry in page.entries:
                delivery = self._decoder.deliver(Position(page.epoch, entry.seq, entry.token), entry)
                if delivery is not None:
                    self._seen[log].append(delivery)
                top = entry.seq
            epoch = page.epoch
            self._tops[log] = (epoch, top)
            if not page.entries or top >= page.top:
                return
