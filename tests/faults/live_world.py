"""The world of one live fault: as :class:`~tests.faults.world.World`, with listeners whose transcripts are audited."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from bus import Bus, Delivery
from tests.faults.ledger import Ledger, Numbers
from tests.faults.transcripts import LiveLedger, Said, Transcript
from tests.faults.world import NAMESPACE, World
from tests.servers import Server

__all__ = ["NAMESPACE", "LiveWorld", "ids_of"]


class LiveWorld(World):
    """Belongs to the main thread."""

    EMPTY: ClassVar[Numbers] = LiveLedger()

    _live = LiveLedger()
    _broken: tuple[str, ...] = ()

    def another_server(self, **options: str | int) -> Server:
        """One more server, gone with this world."""
        return self._stack.enter_context(self._start_server(**options))

    def audit(self, transcripts: Iterable[Transcript], said: Said) -> None:
        """Enter these in the books; what is wrong in them fails the fault."""
        self._live, broken = self._live.plus(transcripts, said)
        self._broken += tuple(broken)

    def balance(self) -> tuple[Numbers, list[str]]:
        """The ledger of all that was audited; of the work as well, where there was some."""
        if not self.publishing.told:
            return self._live, list(self._broken)
        work, broken = super().balance()
        assert isinstance(work, Ledger)
        one = LiveLedger(published=work.attempted, listeners=1, heard=work.heard or 0)
        return one, broken


async def ids_of(bus: Bus, log: str | None = None) -> list[str]:
    """The ids of all events that a log keeps, in its order."""
    return [item.envelope.id async for item in bus.history("**", log=log) if isinstance(item, Delivery)]
