"""Links that are dead and do not say so: the peer vanished, the kernel gave up, nothing is heard, the server hangs."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from typing import Any

from bus import Gap
from tests.faults.harness import Fault, Finding
from tests.faults.line import line, name_of
from tests.faults.live_world import LiveWorld
from tests.faults.processes import Process, state_of
from tests.faults.transcripts import BEGINNING, Heard, Said, Transcript
from tests.faults.wire import NoWire, Wire
from tests.waiting import wait_until

__all__ = ["FAULTS"]

NOTICED_S = 6.0
"""Three pings."""
HUNG_S = 5.0
LATE_S = 0.5
BUSY = 0.2
"""Of a processor, meanwhile."""
PASSWORD = "half-open"
"""The server listens at one end of the wire as well: to nobody without this."""


class Ear:
    """A listener in a process of its own (:mod:`tests.faults.ear`), and what it has said of itself."""

    def __init__(self, world: LiveWorld, name: str, url: str, inside: list[str]) -> None:
        self.name = name
        self.transcript = Transcript(name, BEGINNING)
        self.process: Process = world.start(name, ["tests.faults.ear"], inside=inside, BUS_URL=url)
        self._read = 0
        self._said: list[dict[str, Any]] = []

    def said(self, what: str, since_s: float = 0) -> list[dict[str, Any]]:
        """What it said of that kind, from a moment on."""
        whole = self.process.text.split("\n")[:-1]
        for each in whole[self._read :]:
            assert each.startswith("{"), f"{self.name} ended:\n{self.process.text}"
            self._note(json.loads(each))
        self._read = len(whole)
        return [each for each in self._said if each["what"] == what and float(each["at_s"]) >= since_s]

    def _note(self, said: dict[str, Any]) -> None:
        self._said.append(said)
        if said["what"] == "heard":
            self.transcript.items.append(Heard(said["seq"], said["id"], said["sound"]))
        elif said["what"] == "gap":
            self.transcript.items.append(Gap(said["first"], said["last"], said["reason"]))

    def has_heard(self, count: int) -> bool:
        self.said("heard")
        return len(self.transcript.items) >= count

    def is_settled(self, since_s: float) -> bool:
        return any(each["connected"] for each in self.said("sample", since_s)[-1:])

    def noticed(self, since_s: float) -> float | None:
        """After how many seconds it knew: it says so itself, or connects anew."""
        known = [float(each["at_s"]) for what in ("lost", "subscribes") for each in self.said(what, since_s)]
        return min(known) - since_s if known else None

    def late_s(self, since_s: float) -> float:
        """The longest that its event loop stood still."""
        return max(float(each["late_s"]) for each in self.said("sample", since_s))

    def busy(self, since_s: float) -> float:
        """How much of a processor it used."""
        samples = self.said("sample", since_s)
        took_s = float(samples[-1]["at_s"]) - float(samples[0]["at_s"])
        return (float(samples[-1]["cpu_s"]) - float(samples[0]["cpu_s"])) / took_s


class House:
    """Some listeners that hear the same lines."""

    def __init__(self, world: LiveWorld) -> None:
        self._world = world
        self.ears: list[Ear] = []
        self.spoken = 0

    def add(self, name: str, url: str, inside: list[str]) -> Ear:
        self.ears.append(ear := Ear(self._world, name, url, inside))
        return ear

    def speak(self, lines: int) -> None:
        for n in range(self.spoken, self.spoken + lines):
            self._world.bus.publish_sync(line("ann", n), id=name_of("ann", n))
        self.spoken += lines

    def all_hear(self, timeout: float, but: Ear | None = None) -> None:
        ears = [ear for ear in self.ears if ear is not but]
        wait_until(lambda: all(ear.has_heard(self.spoken) for ear in ears), "all to hear everything", timeout)

    def settle(self) -> None:
        """Wait until all are quietly connected: one that is just looking into the log says that it is not."""
        now_s = time.monotonic()
        wait_until(lambda: all(ear.is_settled(now_s) for ear in self.ears), "all to be connected", 10)

    def enter_in_the_books(self) -> None:
        self._world.audit(
            [ear.transcript for ear in self.ears], Said().branch([name_of("ann", n) for n in range(self.spoken)])
        )

    def kill(self) -> None:
        for ear in self.ears:
            ear.process.kill()


def half_open(world: LiveWorld) -> Finding:
    house = House(world)
    with ExitStack() as stack:
        stack.callback(house.kill)
        failing = house.add("reader with an error", world.server.url, [])
        silent = house.add("reader that hears nothing", world.server.url, [])
        wire, far, why = lay_wire(world, house, stack)
        house.speak(20)
        house.all_hear(20)
        house.settle()

        broken_s = time.monotonic()
        if wire is not None:
            wire.cut()
        failing.process.signal(signal.SIGUSR1)
        silent.process.signal(signal.SIGUSR2)
        house.speak(20)
        times = notice(house, broken_s, NOTICED_S)
        house.all_hear(10, but=far)
        if wire is not None and far is not None:
            # It stays away for a while: those who try in vain must be quiet about it.
            wait_until(lambda: time.monotonic() > broken_s + NOTICED_S, "a while", NOTICED_S + 1)
            assert wire.is_cut()
            assert not far.has_heard(21), "nothing came through"
            wire.mend()
        quiet = [stayed_quiet(ear, broken_s) for ear in house.ears]
        house.speak(20)
        house.all_hear(15)
        for ear in (failing, silent):
            assert len(ear.said("broken")) == 1, f"{ear.name} was broken once"
            assert len(ear.said("subscribes", broken_s)) == 1, f"{ear.name} connected anew, once"
    house.enter_in_the_books()
    way = "1 cut wire (network namespace)" if wire is not None else f"no wire to cut ({why})"
    return Finding(f"{way}, 1 ETIMEDOUT, 1 silence injected", figure(times, NOTICED_S, quiet), max(times))


def lay_wire(world: LiveWorld, house: House, stack: ExitStack) -> tuple[Wire | None, Ear | None, str]:
    """A listener at the far end of a wire, if there can be one; otherwise why not."""
    try:
        wire = stack.enter_context(Wire())
    except NoWire as error:
        return None, None, str(error)
    with world.server.client() as client:
        client.config_set("bind", f"127.0.0.1 {wire.near}")
    url = f"redis://:{PASSWORD}@{wire.near}:{world.server.port}/0"
    return wire, house.add("at the far end of a wire", url, wire.inside), ""


def hung_server(world: LiveWorld) -> Finding:
    house = House(world)
    with ExitStack() as stack:
        stack.callback(house.kill)
        house.add("of a server that hangs", world.server.url, [])
        house.speak(20)
        house.all_hear(20)
        house.settle()

        broken_s = time.monotonic()
        world.server.freeze()
        try:
            times = notice(house, broken_s, HUNG_S)
            wait_until(lambda: time.monotonic() > broken_s + HUNG_S, "a while", HUNG_S + 1)
            assert state_of(world.server.pid) == "T"
            quiet = [stayed_quiet(ear, broken_s) for ear in house.ears]
        finally:
            world.server.thaw()
        house.speak(20)
        house.all_hear(15)
    house.enter_in_the_books()
    return Finding("1 SIGSTOP", figure(times, HUNG_S, quiet), max(times))


def notice(house: House, broken_s: float, within_s: float) -> list[float]:
    """Wait until all have noticed; after how many seconds each of them did."""

    def times() -> list[float]:
        return [took_s for ear in house.ears if (took_s := ear.noticed(broken_s)) is not None]

    wait_until(lambda: len(times()) == len(house.ears), "all to notice", 2 * within_s)
    found = times()
    late = {ear.name: took_s for ear, took_s in zip(house.ears, found, strict=True) if took_s > within_s}
    assert not late, f"noticed later than {within_s:g} s: {late}"
    return found


def stayed_quiet(ear: Ear, since_s: float) -> tuple[float, float]:
    """How late its loop ran at worst, and how busy it was; neither may be much."""
    late_s, busy = ear.late_s(since_s), ear.busy(since_s)
    assert late_s < LATE_S, f"the loop of the listener {ear.name} stood still for {late_s:.2f} s"
    assert busy < BUSY, f"the listener {ear.name} used {busy:.0%} of a processor"
    return late_s, busy


def figure(times: list[float], within_s: float, quiet: list[tuple[float, float]]) -> str:
    late_s, busy = (max(each) for each in zip(*quiet, strict=True))
    noticed = ", ".join(f"{each:.1f}" for each in times)
    return f"noticed after {noticed} s (< {within_s:g}); loop late {late_s * 1000:.0f} ms, CPU {busy:.0%} at worst"


FAULTS = (
    Fault(
        "half-open",
        "a link that died without a word is noticed within three pings, quietly, and costs nothing",
        half_open,
        server={"requirepass": PASSWORD},
        world=LiveWorld,
    ),
    Fault("hung-server", "so is a server that hangs, within 5 s", hung_server, world=LiveWorld),
)
