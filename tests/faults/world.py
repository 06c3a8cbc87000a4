"""The world of one fault: a server of its own, workers as processes, proxies, a publisher, and the books of them all.

Nothing in it outlives the ``with``: every process is killed, with its group, whatever happened.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from bus import Bus, Delivery
from tests.faults.hearing import Hearing
from tests.faults.journal import Journal
from tests.faults.ledger import Books, Ledger, Numbers, balanced
from tests.faults.processes import Process
from tests.faults.proxy import Proxy
from tests.faults.publishing import Publishing
from tests.servers import Server
from tests.waiting import wait_until

__all__ = ["QUEUE", "World"]

QUEUE = "default"
NAMESPACE = "faults"


class World:
    """Belongs to the main thread. ``options`` are the server's, ``lease_s`` is the workers'."""

    EMPTY: ClassVar[Numbers] = Ledger()
    """What is in the ledger before anything has happened."""

    def __init__(
        self, *, quick: bool, lease_s: float, start_server: Callable[..., Server] = Server, **options: str | int
    ) -> None:
        self.quick = quick
        self.lease_s = lease_s
        self.workers: list[Process] = []
        self.supervised = False
        """Whether a worker that ends is started again, as a supervisor would."""
        self.threads = 8
        """Handlers at once in each worker that is started from here on."""
        self.restarts = 0
        self.buried: set[str] = set()
        """The ids of what rightly ended in the dead letters; bytes that nobody can read count under any name."""
        self._hearing: Hearing | None = None
        self._start_server = start_server
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="callboard-fault-")))
        self.journal = Journal(self.folder / "journal")
        try:
            self.server = self._stack.enter_context(start_server(**options))
        except BaseException:
            self._stack.close()
            raise
        self.bus = self.new_bus()
        self.publishing = Publishing(self.bus)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            for worker in self.workers:
                worker.kill()
        finally:
            self._stack.close()

    def many(self, quick: int, full: int) -> int:
        """How many, by how much time there is."""
        return quick if self.quick else full

    # -- what is in it -------------------------------------------------------------------------------------------------

    def new_bus(self, url: str | None = None, **limits: float) -> Bus:
        """A bus in this process, closed at the end; ``url`` where it goes through a proxy."""
        bus = Bus(url or self.server.url, namespace=NAMESPACE, lease_s=self.lease_s, **limits)  # type: ignore[arg-type]
        self._stack.callback(bus.close_sync)
        return bus

    def proxy(self) -> Proxy:
        """A proxy before the server."""
        return self._stack.enter_context(Proxy(self.server.port))

    def listen(self) -> Hearing:
        """A live listener to everything, from now on; what it hears must be what the log holds."""
        self._hearing = self._stack.enter_context(Hearing(Bus(self.server.url, namespace=NAMESPACE)))
        return self._hearing

    def start_worker(self, url: str | None = None, *, wait: bool = True) -> Process:
        """Start ``callboard worker``, and wait until it works."""
        command = ["workers.cli", "worker", "tests.faults.worker_app:app", "--threads", str(self.threads)]
        worker = self.start("worker", command, BUS_URL=url or self.server.url)
        self.workers.append(worker)
        if wait:
            worker.wait_for("ready:")
        return worker

    def start(self, name: str, command: list[str], *, inside: Sequence[str] = (), **environ: str) -> Process:
        """Start a Python module of ours as a process. Workers are killed at the end; others are the caller's."""
        places = {
            "BUS_NAMESPACE": NAMESPACE,
            "FAULT_JOURNAL": str(self.journal.path),
            "FAULT_LEASE_S": str(self.lease_s),
        }
        number = len(list(self.folder.glob("*.log"))) + 1
        return Process(command, self.folder / f"{number:03}-{name}.log", {**places, **environ}, inside=inside)

    def start_workers(self, count: int) -> None:
        """Start several at once, and wait until all of them work."""
        started = [self.start_worker(wait=False) for _ in range(count)]
        for worker in started:
            worker.wait_for("ready:", 60)

    def replace(self, worker: Process) -> Process:
        """Start a worker in the place of one that is gone."""
        self.restarts += 1
        self.workers.remove(worker)
        return self.start_worker(wait=False)

    def logs(self) -> str:
        """All that the workers of this world have logged."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str, timeout: float) -> None:
        """Wait until something is so; meanwhile, if workers are supervised, start those again that ended."""

        def look() -> bool:
            if self.supervised:
                for worker in [one for one in self.workers if not one.alive]:
                    self.replace(worker)
            return bool(condition())

        wait_until(look, what, timeout)

    def see_work_go_on(self, more: int = 20, timeout: float = 30) -> None:
        """Wait until so many more events have been handled."""
        handled = len(self.journal.done())
        self.wait(lambda: len(self.journal.done()) >= handled + more, "work to go on", timeout)

    def drain(self, timeout: float) -> None:
        """Wait until everything that was accepted has been handled and settled, or buried."""

        def missing() -> set[str]:
            return set(self.publishing.ids("accepted")) - self.journal.done() - self.buried

        self.wait(lambda: not missing(), "all that was accepted to be handled", timeout)
        self.wait(lambda: self.bus.store.pending(QUEUE) == 0, "all of it to be settled", max(5.0, self.lease_s + 5))

    # -- the books -----------------------------------------------------------------------------------------------------

    def log(self) -> list[str]:
        """The ids of all events that the log holds, in its order."""

        async def read() -> list[str]:
            async with Bus(self.server.url, namespace=NAMESPACE) as bus:
                return [item.envelope.id async for item in bus.history("**") if isinstance(item, Delivery)]

        return asyncio.run(read())

    def balance(self) -> tuple[Numbers, list[str]]:
        """The ledger, and what in it breaks a promise. The listener is given a moment to hear the last of it."""
        log, heard = self.log(), None
        if self._hearing is not None:
            hearing = self._hearing
            _try_for(lambda: len(hearing.ids) >= len(log), "the listener to hear everything", 5)
            heard = list(hearing.ids)
        published = self.publishing
        books = Books(published.told, published.known, self.journal.runs(), log, heard, self.buried)
        ledger, broken = balanced(books)
        if self._hearing is not None and self._hearing.gaps:
            broken.append(f"the listener was told of gaps: {self._hearing.gaps[:3]}")
        dead = self.bus.store.dead_count()
        if dead != len(self.buried):
            broken.append(f"{dead} dead letters where {len(self.buried)} were due")
        if published.speechless:
            broken.append(f"a publish failed without outcome or id: {published.speechless[0]}")
        return ledger, broken


def _try_for(condition: Callable[[], object], what: str, timeout: float) -> None:
    """Wait, and be content if it never happens: the books say so better."""
    try:
        wait_until(condition, what, timeout)
    except AssertionError:
        return
