"""The server: hung, full, forgetful, cutting everybody off, restarted, away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bus import Bus, BusUnavailable, Receipt
from bus.store.redis.scripts import script
from tests.faults.harness import Fault, Finding
from tests.faults.processes import state_of
from tests.faults.publishing import Load
from tests.faults.work import Work
from tests.faults.world import QUEUE, World
from tests.waiting import wait_until

__all__ = ["FAULTS"]

TOLERANCE_S = 0.5
"""What a shared machine may add to a deadline."""

PAUSE_S = 7.5
"""Longer than a publisher waits, and than a lease."""

# -- hung --------------------------------------------------------------------------------------------------------------


def hung_server(world: World) -> Finding:
    world.listen()
    start_two(world)
    times: list[float] = []
    long: set[str] = set()
    with Load(world.publishing, per_s=50, keys=10) as load:
        for hung in (frozen, paused):
            long |= begin_long_work(world, PAUSE_S + 1)
            world.see_work_go_on()
            times += asyncio.run(publish_by_all_doors(world, hung))
        world.see_work_go_on()
    world.publishing.publish_unknown_again()
    world.drain(30)

    slowest_s = max(*times, load.longest_s)
    deadline_s = world.bus.limits.deadline_s
    assert all(len(world.journal.of(event_id)) == 1 for event_id in long), "an outage ends no lease"
    assert slowest_s < deadline_s + TOLERANCE_S, f"a publish took {slowest_s:.1f} s; its deadline is {deadline_s:g} s"
    return Finding(
        "1 SIGSTOP, 1 CLIENT PAUSE", f"slowest publish {slowest_s:.1f} s (deadline {deadline_s:g})", slowest_s
    )


def start_two(world: World) -> None:
    """Two workers, so that each can see the other's lease end; four handlers at once in each."""
    world.threads = 4
    world.start_workers(2)


def begin_long_work(world: World, takes_s: float) -> set[str]:
    """Have both workers in the middle of something; returns the ids of it."""
    events = [Work(n=world.publishing.number(), takes_s=takes_s) for _ in range(6)]
    for event in events:
        world.publishing.publish(event)
    ids = {f"event-{event.n}" for event in events}
    world.wait(lambda: ids <= {run.id for run in world.journal.runs()}, "long work to begin", 20)
    return ids


@contextmanager
def frozen(world: World) -> Iterator[None]:
    """The server is stopped in its tracks."""
    world.server.freeze()
    try:
        assert state_of(world.server.pid) == "T"
        yield
        assert state_of(world.server.pid) == "T"
    finally:
        world.server.thaw()


@contextmanager
def paused(world: World) -> Iterator[None]:
    """The server puts everything off. It does it all later, when nobody waits for the answers any more."""
    until_s = time.monotonic() + PAUSE_S
    with world.server.client(timeout_s=2 * PAUSE_S) as client:
        assert client.execute_command("CLIENT", "PAUSE", int(PAUSE_S * 1000), "ALL") in (True, b"OK")
        yield
        assert time.monotonic() < until_s
        client.ping()  # it waits like everybody else


async def publish_by_all_doors(world: World, hung: Callable[[World], AbstractContextManager[None]]) -> list[float]:
    """Publish to a hung server by either door, and from a bus that meets it only now; how long each of them took."""
    publishing = world.publishing

    async def timed(publish: Callable[[], Awaitable[Receipt | BusUnavailable]]) -> float:
        began = time.monotonic()
        answer = await publish()
        assert isinstance(answer, BusUnavailable), "published through a hung server"
        answers.append(answer)
        return time.monotonic() - began

    def sync_from(bus: Bus) -> Callable[[], Awaitable[Receipt | BusUnavailable]]:
        return lambda: asyncio.to_thread(publishing.publish, Work(n=publishing.number()), bus=bus)

    answers: list[BusUnavailable] = []
    async with world.new_bus() as bus:
        assert isinstance(await publishing.publish_on_loop(Work(n=publishing.number()), bus), Receipt)
        with hung(world):
            times = await asyncio.gather(
                timed(lambda: publishing.publish_on_loop(Work(n=publishing.number()), bus)),
                timed(sync_from(world.bus)),
                timed(sync_from(world.new_bus())),
            )
    # The one that never had a connection may know that nothing was written.
    assert sum(answer.outcome == "unknown" for answer in answers) >= 2
    return list(times)


# -- full --------------------------------------------------------------------------------------------------------------


def full_server(world: World) -> Finding:
    world.start_worker()
    impatient = world.new_bus(deadline_s=0.3)
    world.publishing.publish(Work(n=world.publishing.number()))
    world.drain(10)
    world.bus.store.pause(QUEUE)
    with world.server.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used + (4 << 20))
        refusal = fill(world, impatient)
        accepted = len(world.publishing.ids("accepted"))
        # It stays full to the last: what is freed on the way is not enough by far.
        client.config_set("maxmemory", used // 2)
        helper = world.start_worker()
        world.bus.store.resume(QUEUE)

        world.drain(30)

        again = world.publishing.publish(Work(n=world.publishing.number()), bus=impatient)
        assert isinstance(again, BusUnavailable), "it was full to the last"
        assert int(client.info("memory")["used_memory"]) > used // 2
        client.config_set("maxmemory", 0)
    assert refusal.outcome == again.outcome == "refused"
    assert "is full and takes no new events" in str(refusal)
    assert "not published" in str(refusal)
    assert helper.alive
    assert {run.pid for run in world.journal.runs()} == {worker.pid for worker in world.workers}, "both took part"
    after = world.publishing.publish(Work(n=world.publishing.number()))
    assert isinstance(after, Receipt)
    world.drain(10)
    return Finding(f"maxmemory at half of what is used, {accepted} waiting", "100 % drained while full")


def fill(world: World, bus: Bus) -> BusUnavailable:
    """Publish until the server takes no more."""
    for number in range(2_000):
        # Some of them fail at first: a retry writes, and must be possible as well.
        event = Work(
            n=world.publishing.number(), key=f"k{number % 10}", fails=number % 5 == 0, takes_s=0.002, pad="x" * 20_000
        )
        answer = world.publishing.publish(event, bus=bus)
        if isinstance(answer, BusUnavailable):
            assert number > 20
            return answer
    raise AssertionError("the server was never full")


# -- forgetful, and cutting off ----------------------------------------------------------------------------------------


def script_flush(world: World) -> Finding:
    times = world.many(10, 20)

    ours = [script(name).sha for name in ("append", "collect", "exchange", "beat", "read")]

    def inject() -> int:
        with world.server.client() as client, client.pipeline(transaction=True) as both:
            for command in ("EXISTS", "FLUSH", "EXISTS"):
                both.execute_command("SCRIPT", command, *(ours if command == "EXISTS" else ()))
            before, _, after = both.execute()
            assert not any(after), "they are gone"
            return sum(map(bool, before))

    flushed = under_load(world, times, inject)
    return Finding(f"{times} SCRIPT FLUSH, {flushed} scripts", "all handled")


def killed_clients(world: World) -> Finding:
    times = world.many(10, 20)
    heard = 0

    def inject() -> int:
        nonlocal heard
        with world.server.client() as client:
            killed = int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            listeners = int(client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
            heard += listeners
            return killed

    killed = under_load(world, times, inject)
    assert heard, "the listener's connection was among them"
    return Finding(f"{times} CLIENT KILL: {killed} + {heard} pub/sub", "all handled, all heard")


def under_load(world: World, times: int, inject: Callable[[], int]) -> int:
    """Inject something so often while events are published and handled. ``inject`` says how much it has hit."""
    world.listen()
    world.start_workers(world.many(1, 2))
    hit = 0
    with Load(world.publishing, per_s=world.many(100, 300), keys=20):
        for _ in range(times):
            world.see_work_go_on(5)
            hit += wait_until(inject, "something to hit", 10)
    world.publishing.publish_unknown_again()
    world.drain(30)
    return hit


# -- restarted, and away -----------------------------------------------------------------------------------------------


def restarted_server(world: World) -> Finding:
    def kill_and_start() -> None:
        world.server.kill()
        world.server.start()

    world.listen()
    world.start_workers(world.many(1, 2))
    outages = [world.server.restart, kill_and_start] * world.many(1, 2)
    resumed_s = through(world, outages)
    return Finding(f"{len(outages)} restarts, half by SIGKILL", f"work resumed after {resumed_s:.1f} s", resumed_s)


def absent_server(world: World) -> Finding:
    away_s = 12.0 if not world.quick else world.lease_s + 1

    def stay_away() -> None:
        world.server.stop()
        time.sleep(away_s)
        world.server.start()

    world.listen()
    start_two(world)
    long = begin_long_work(world, away_s + 1)
    resumed_s = through(world, [stay_away])
    assert all(len(world.journal.of(event_id)) == 1 for event_id in long), "an outage ends no lease"
    return Finding(f"away for {away_s:g} s", f"work resumed after {resumed_s:.1f} s", resumed_s)


def through(world: World, outages: list[Callable[[], None]]) -> float:
    """Take the server away under load, so often; returns the longest time from its return to the next handled event."""
    publishing = world.publishing
    pids = [worker.pid for worker in world.workers]
    resumed_s = 0.0
    with Load(publishing, per_s=world.many(100, 300), keys=20, event=lambda n, key: Work(n=n, key=key, takes_s=0.005)):
        for outage in outages:
            world.see_work_go_on()
            # Delayed ones, too: due while the server is away, or soon after.
            for delay_s in (0.5, 4):
                answer = publishing.publish(Work(n=publishing.number()), delay_s=delay_s)
                assert isinstance(answer, Receipt)
            server = world.server.pid
            outage()
            assert world.server.pid != server, "it is another process"
            resumed_s = max(resumed_s, resumed(world))
    publishing.publish_unknown_again()
    world.drain(30)
    assert [worker.pid for worker in world.workers if worker.alive] == pids, "the workers carried on by themselves"
    return resumed_s


def resumed(world: World) -> float:
    """Wait for the next handler to begin, and say after how many seconds it did."""
    since_s = time.monotonic()

    def later() -> list[float]:
        return [run.began_s for run in world.journal.runs() if run.began_s > since_s]

    world.wait(later, "work to go on", 30)
    return min(later()) - since_s


DURABLE = {"appendonly": True, "appendfsync": "always"}

FAULTS = (
    Fault(
        "hung-server", "a publish to a hung server ends at its deadline, told unknown; then all goes on", hung_server
    ),
    Fault("full-server", "a full server refuses events, and its queues are drained all the same", full_server),
    Fault("script-flush", "scripts that the server has forgotten are sent again", script_flush),
    Fault(
        "killed-clients", "connections that are cut lose no work and no event on the way to a listener", killed_clients
    ),
    Fault("restarted-server", "nothing accepted is lost when the server restarts", restarted_server, server=DURABLE),
    Fault("absent-server", "nor when it is away for longer than a lease", absent_server, 3, server=DURABLE),
)
