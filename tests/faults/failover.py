"""The server's log goes on from an older state: a replica that lacks the last events is promoted.

Two real servers. The replica's link is cut, the primary accepts more and tells its listeners, then it is killed and the
replica promoted: the same epoch, and numbers that are given out twice. Clients reach "the server" through a proxy that
is switched over. Beside the listeners, as a control, others that check epoch and number only, as systems without a chain
of tokens do: they must fail the very same audit, or it would prove nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple, cast

from bus import Bus, Delivery, Listener, Position, Publication, Receipt
from bus.decoding import Decoder
from bus.store.base import Frame, LoopStore, Page
from tests.faults.harness import Fault, Finding
from tests.faults.line import line, name_of
from tests.faults.live_world import NAMESPACE, LiveWorld, ids_of
from tests.faults.proxy import Proxy
from tests.faults.transcripts import BEGINNING, Place, Said, Transcript, audit
from tests.servers import Server
from tests.waiting import eventually, wait_until

__all__ = ["FAULTS"]

COMMON = 300
"""Events that both servers have. All of these numbers are larger than a page of the log, some of them than a few."""
LOST = 700
"""Events that only the primary had."""
FEWER, MORE = 200, 900
"""Events that the promoted replica has got of its own, by the time that the listeners meet it."""
AFTER = 50
QUIET_S = 3.0
LAST = name_of("end", 0)


# -- a listener without tokens -----------------------------------------------------------------------------------------


class NumbersOnly:
    """A loop's store as it would be without tokens: each number has one, so that any two logs of an epoch agree."""

    def __init__(self, store: LoopStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        page = await self._store.read(log, epoch, after, limit)
        entries = [each._replace(token=str(each.seq), prev=str(each.seq - 1)) for each in page.entries]
        return page._replace(top_token=str(page.top), entries=entries)

    async def subscribe(self, log: str) -> AsyncIterator[object]:
        async for heard in self._store.subscribe(log):
            if isinstance(heard, Frame) and not heard.ephemeral:
                entry = heard.entry._replace(token=str(heard.entry.seq), prev=str(heard.entry.seq - 1))
                yield heard._replace(entry=entry)
            else:
                yield heard


@contextmanager
def each_decoded_anew() -> Iterator[None]:
    """Keep no deliveries of a number only, by which an event of the one branch would be taken for one of the other."""
    keep = Decoder._keep  # noqa: SLF001

    def keep_some(decoder: Decoder, delivery: Delivery, size: int) -> None:
        if delivery.position.token != str(delivery.position.seq):
            keep(decoder, delivery, size)

    setattr(Decoder, "_keep", keep_some)  # noqa: B010 - a method, to mypy
    try:
        yield
    finally:
        setattr(Decoder, "_keep", keep)  # noqa: B010


def without_tokens(bus: Bus) -> Bus:
    """Have this bus check epoch and number only."""
    on_loop: Callable[[], LoopStore] = bus.store.on_loop
    setattr(bus.store, "on_loop", lambda: cast("LoopStore", NumbersOnly(on_loop())))  # noqa: B010 - a method, to mypy
    return bus


# -- those who listen --------------------------------------------------------------------------------------------------


class Seat:
    """A listener that reads as far as it is told, and to the last line at the end."""

    def __init__(self, name: str, bus: Bus, after: Place, cursor: str) -> None:
        self.transcript = Transcript(name, after)
        self._bus, self._cursor = bus, cursor
        self._listener: Listener | None = None

    async def enter(self) -> None:
        self._listener = await self._bus.listen("**", after=self._cursor).__aenter__()

    async def read(self, *, to: str) -> None:
        """Read up to and with this event."""
        assert self._listener is not None
        async for item in self._listener:
            heard = self.transcript.take(item)
            if heard is not None and heard.id == to:
                return
        raise AssertionError(f"{self.transcript} ended")

    async def read_while_it_lasts(self, *, to: str) -> None:
        """As :meth:`read`, or until nothing more comes: who believes the wrong things may never hear the last line."""
        assert self._listener is not None
        try:
            while True:
                async with asyncio.timeout(QUIET_S):
                    heard = self.transcript.take(await anext(self._listener))
                if heard is not None and heard.id == to:
                    return
        except TimeoutError:
            return

    async def leave(self) -> None:
        if self._listener is not None:
            await self._listener.close()


class Audience(NamedTuple):
    """All that listen by one bus: attached ones, ones that are behind, and (later) ones that join with an old cursor."""

    bus: Bus
    attached: list[Seat]
    behind: list[Seat]
    joining: list[Seat]
    read_so_far: dict[str, str]
    """By name, the event up to which those that are behind have read."""

    @property
    def seats(self) -> list[Seat]:
        return [*self.attached, *self.behind, *self.joining]


def audience(bus: Bus, common: list[Receipt], lost: list[Receipt], *, tokens: bool) -> Audience:
    """Seats on and beside every edge that the two branches have."""

    def cursor(receipt: Receipt) -> str:
        at = receipt.position
        return at if tokens else Position(at.epoch, at.seq, str(at.seq))

    def after(name: str, receipt: Receipt) -> Seat:
        return Seat(name, bus, Place(receipt.position.seq, receipt.id), cursor(receipt))

    every = [*common, *lost]
    behind = {
        "read a part of the common ones": every[COMMON // 2],
        "read all common ones": every[COMMON - 1],
        "read one lost one": every[COMMON],
        "read a part of the lost ones": every[COMMON + LOST // 2],
    }
    joining = {
        "joins from a common one": every[10],
        "joins from the last common one": every[COMMON - 1],
        "joins from the first lost one": every[COMMON],
        "joins where the new branch just ends": every[COMMON + FEWER - 1],
        "joins inside the lost ones": every[COMMON + LOST // 2],
        "joins from the last lost one": every[-1],
    }
    return Audience(
        bus,
        [Seat("attached", bus, BEGINNING, "0"), after("attached in the middle", common[50])],
        [Seat(name, bus, BEGINNING, "0") for name in behind],
        [after(name, receipt) for name, receipt in joining.items()],
        {name: receipt.id for name, receipt in behind.items()},
    )


# -- the failover ------------------------------------------------------------------------------------------------------


async def publish(bus: Bus, by: str, count: int) -> list[Receipt]:
    return await bus.publish_many([Publication(line(by, n), id=name_of(by, n)) for n in range(count)])


class Pair:
    """A primary, its replica, the link between them, and what clients connect to."""

    def __init__(self, world: LiveWorld) -> None:
        self.primary: Server = world.server
        self.replica = world.another_server()
        self.link = world.proxy()
        self.front: Proxy = world.proxy()
        with self.replica.client() as client:
            # The link is a proxy, so that it can be cut while both of them live.
            client.replicaof("127.0.0.1", self.link.port)
        wait_until(lambda: self.info(self.replica)["master_link_status"] == "up", "the replica to follow", 20)

    @staticmethod
    def info(server: Server) -> dict[str, Any]:
        with server.client() as client:
            return dict(client.info("replication"))

    def in_step(self) -> bool:
        """Whether the replica has all that the primary has."""
        return bool(
            self.info(self.replica)["slave_repl_offset"] == self.info(self.primary)["master_repl_offset"],
        )

    def promote(self) -> None:
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")
        assert self.info(self.replica)["role"] == "master"


def failover(world: LiveWorld, own: int) -> Finding:
    """Promote a replica that then has ``own`` events of its own, and see what everybody is told."""
    pair = Pair(world)
    with each_decoded_anew():
        said, real, control = asyncio.run(act(pair, own))
    world.audit([seat.transcript for seat in real.seats], said)
    told = [seat for seat in real.seats if any(gap.reason == "fork" for gap in seat.transcript.gaps())]
    in_the_lost_branch = [
        seat
        for seat in real.seats
        if seat.transcript.after.seq > COMMON or any(heard.id.startswith("lost") for heard in seat.transcript.heard())
    ]
    assert names(told) == names(in_the_lost_branch), "just those are told of a fork"
    assert all(gap.reason == "fork" for seat in real.seats for gap in seat.transcript.gaps())
    failed = [seat for seat in control.seats if audit(seat.transcript, said)]
    # With fewer, the number of the log's top is enough to tell some of them.
    enough = bool(failed) if own < LOST else names(failed) >= names(told)
    assert enough, f"numbers alone do, and this proves nothing: {names(failed)} go wrong where {names(told)} should"
    return Finding(
        f"{LOST} events lost, {own} numbers given out twice before the switch",
        f"{len(told)} of {len(real.seats)} told of the fork; by numbers only {len(failed)} of {len(control.seats)} go wrong",
    )


def names(seats: list[Seat]) -> set[str]:
    return {seat.transcript.name for seat in seats}


def fewer(world: LiveWorld) -> Finding:
    return failover(world, FEWER)


def more(world: LiveWorld) -> Finding:
    return failover(world, MORE)


async def act(pair: Pair, own: int) -> tuple[Said, Audience, Audience]:
    async with AsyncExitStack() as stack:

        async def open_bus(bus: Bus) -> Bus:
            return await stack.enter_async_context(bus)

        old = await open_bus(Bus(pair.primary.url, namespace=NAMESPACE))
        common = await publish(old, "common", COMMON)
        await eventually(pair.in_step, "the replica to have all of them", 20)
        pair.link.switch(None)
        pair.front.switch(pair.primary.port)
        lost = await publish(old, "lost", LOST)
        real = audience(await open_bus(Bus(pair.front.url, namespace=NAMESPACE)), common, lost, tokens=True)
        blind = without_tokens(Bus(pair.front.url, namespace=NAMESPACE))
        control = audience(await open_bus(blind), common, lost, tokens=False)
        await take_seats(real, control, to=lost[-1].id)
        first = await ids_of(old)

        pair.front.switch(None)
        pair.primary.kill()
        pair.promote()
        new = await open_bus(Bus(pair.replica.url, namespace=NAMESPACE))
        again = await publish(new, "new", own)
        assert [each.position.seq for each in again] == list(range(COMMON + 1, COMMON + own + 1)), "given out twice"
        assert again[0].position.epoch == lost[0].position.epoch
        pair.front.switch(pair.replica.port)
        await rejoin(real, control, new)

        second = await ids_of(new)
        for seat in [*real.seats, *control.seats]:
            await seat.leave()
        return Said().branch(first).branch(second), real, control


async def take_seats(*audiences: Audience, to: str) -> None:
    """All enter but those that join later; the attached ones hear everything, the others as much as they want to."""
    for each in audiences:
        for seat in [*each.attached, *each.behind]:
            await seat.enter()
        async with asyncio.timeout(20):
            await asyncio.gather(*(seat.read(to=to) for seat in each.attached))
            await asyncio.gather(*(seat.read(to=each.read_so_far[seat.transcript.name]) for seat in each.behind))


async def rejoin(real: Audience, control: Audience, new: Bus) -> None:
    """The links are repaired, others join, more is published, and everybody reads to the end."""
    for each in (real, control):
        await eventually(lambda bus=each.bus: bus.status().connected, "the link to be repaired", 20)  # type: ignore[misc]
        for seat in each.joining:
            await seat.enter()
    await publish(new, "after", AFTER)
    await new.publish(line("end", 0), id=LAST)
    async with asyncio.timeout(30):
        await asyncio.gather(*(seat.read(to=LAST) for seat in real.seats))
        await asyncio.gather(*(seat.read_while_it_lasts(to=LAST) for seat in control.seats))


AT_ONCE = {"repl_diskless_sync_delay": 0}
"""A primary waits for more replicas before it sends its data, five seconds by default."""

FAULTS = (
    Fault(
        "failover-fewer",
        "a promoted replica that is behind is noticed: no listener mixes the branches without being told",
        fewer,
        server=AT_ONCE,
        world=LiveWorld,
    ),
    Fault(
        "failover-more",
        "so it is when it has given the same numbers out again; by numbers alone nobody would notice",
        more,
        server=AT_ONCE,
        world=LiveWorld,
    ),
)
