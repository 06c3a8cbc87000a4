"""Messages that are lost between us and the server, which has done what they asked."""

from __future__ import annotations

import time

import dramatiq
from dramatiq.errors import ConnectionClosed

from bus import Bus, BusUnavailable, Receipt
from tests.faults.harness import Fault, Finding
from tests.faults.proxy import Drop, Hold, Proxy, calling
from tests.faults.work import Work
from tests.faults.world import QUEUE, World
from workers import App

__all__ = ["FAULTS"]

SETTLING = b"|ack|"
"""What a request holds that settles a job that was done."""
SOON_S = 5.0
"""Two beats and a reconnect; the lease, which would mend it too, is longer."""


def lost_take(world: World) -> Finding:
    proxy = world.proxy()
    world.start_worker(proxy.url)
    warm_up(world)
    drop = Drop(b"", reply=b"event-")  # whichever asked: a consumer's exchange, or what the bell collects
    proxy.arm(drop)
    began = time.monotonic()
    publish_some(world, keys=("a", "a", "b", "", "", ""))
    world.wait(lambda: drop.hits, "a take's reply to be lost", 10)

    world.drain(SOON_S)

    took_s = time.monotonic() - began
    assert drop.hits == 1
    carried = len({part for part in drop.lost[0].split(b'"') if part.startswith(b"event-")})
    assert carried >= 3, "the reply that was lost carried jobs"
    assert not reruns(world), "what was never handed out is not begun twice"
    assert took_s < SOON_S
    return Finding(f"1 reply with {carried} jobs", f"all run after {took_s:.1f} s (< {SOON_S:g})", took_s)


def lost_publish(world: World) -> Finding:
    proxy = world.proxy()
    world.start_worker()
    hits = lose_one_publish(world, proxy) + lose_one_send(world, proxy)
    told_s = lose_every_publish(world, proxy)
    hits += 1
    lose_every_send(world, proxy)
    hits += 1

    world.drain(10)

    # What was sent once under one id, however often, was queued once.
    assert not reruns(world)
    return Finding(f"{hits} kinds of replies", f"told unknown after {told_s:.1f} s (deadline {DEADLINE_S:g})", told_s)


DEADLINE_S = 1.0
TOLERANCE_S = 0.5


def lose_one_publish(world: World, proxy: Proxy) -> int:
    """The library's own retry deduplicates, and the publisher never notices."""
    bus = warm_bus(world, proxy)
    drop = Drop(calling("append"))
    proxy.arm(drop)
    answer = world.publishing.publish(Work(n=world.publishing.number(), key="a"), bus=bus)
    assert drop.hits == 1
    assert drop.lost[0].startswith(b"*3\r\n$2\r\nok"), "the server had done it"
    assert isinstance(answer, Receipt)
    assert not answer.duplicate
    assert answer.jobs == 1
    return drop.hits


def lose_one_send(world: World, proxy: Proxy) -> int:
    app, plain = plain_app(warm_bus(world, proxy))
    plain.send("plain-0")  # the script is known from here on
    world.publishing.note("plain-0", "accepted")
    drop = Drop(calling("enqueue"))
    proxy.arm(drop)
    plain.send("plain-1")
    world.publishing.note("plain-1", "accepted")
    assert drop.hits == 1
    assert drop.lost == [b":1\r\n"], "the server had done it"
    app.broker.close()
    return drop.hits


def lose_every_publish(world: World, proxy: Proxy) -> float:
    """Told *unknown*, in time; and published again under its id, later, it counts once."""
    bus = warm_bus(world, proxy)
    event = Work(n=world.publishing.number(), key="a")
    drop = Drop(calling("append"), times=None)
    proxy.arm(drop)
    began = time.monotonic()
    error = world.publishing.publish(event, bus=bus)
    took_s = time.monotonic() - began
    proxy.arm(None)
    assert drop.hits > 1, "it was tried again and again"
    assert isinstance(error, BusUnavailable)
    assert error.outcome == "unknown"
    assert repr(error.id) in str(error), "the text says what to do next"
    assert took_s < DEADLINE_S + TOLERANCE_S

    again = world.publishing.publish(event, bus=bus)

    assert isinstance(again, Receipt)
    assert again.duplicate
    assert again.jobs == 0
    return took_s


def lose_every_send(world: World, proxy: Proxy) -> None:
    """Told *unknown*; the same message enqueued again, later, counts once."""
    app, plain = plain_app(warm_bus(world, proxy))
    drop = Drop(calling("enqueue"), times=None)
    proxy.arm(drop)
    message = plain.message("plain-2")
    outcome = outcome_of_send(app, message)
    proxy.arm(None)
    assert outcome == "unknown"
    assert drop.hits > 1
    assert [reply[:2] for reply in drop.lost] == [b":1", *[b":0"] * (drop.hits - 1)], "its own retries counted once"
    world.publishing.note("plain-2", "unknown")
    app.broker.enqueue(message)
    assert app.bus.store.pending("plain") <= 1, "the same message became two jobs"
    world.wait(lambda: "plain-2" in world.journal.done(), "what was queued all the same to run", 10)
    app.broker.close()


def lost_reply_then_gone(world: World) -> Finding:
    """The reply is lost and every further attempt is refused: nobody knows, so nobody may say "refused"."""
    proxy = world.proxy()
    world.start_worker()
    hits = lose_publish_and_server(world, proxy)
    hits += lose_send_and_server(world, proxy)
    world.drain(10)
    assert not reruns(world)
    return Finding(f"{hits} replies lost, then nobody there", "told unknown; published again, run once")


def lose_publish_and_server(world: World, proxy: Proxy) -> int:
    bus = warm_bus(world, proxy)
    event = Work(n=world.publishing.number(), key="a")
    drop = Drop(calling("append"), then_away=True)
    proxy.arm(drop)
    error = world.publishing.publish(event, bus=bus)
    proxy.come_back()
    assert drop.hits == 1
    assert drop.lost[0].startswith(b"*3\r\n$2\r\nok"), "the server had done it"
    again = world.publishing.publish(event, bus=bus)
    assert isinstance(again, Receipt)
    assert again.duplicate, "it had been published"
    assert isinstance(error, BusUnavailable)
    assert error.outcome == "unknown", f"the event was published, and its publisher was told: {error.outcome}"
    return drop.hits


def lose_send_and_server(world: World, proxy: Proxy) -> int:
    app, plain = plain_app(warm_bus(world, proxy))
    plain.send("plain-0")
    world.publishing.note("plain-0", "accepted")
    drop = Drop(calling("enqueue"), then_away=True)
    proxy.arm(drop)
    message = plain.message("plain-1")
    outcome = outcome_of_send(app, message)
    proxy.come_back()
    app.broker.enqueue(message)
    assert drop.hits == 1
    assert drop.lost == [b":1\r\n"], "the server had done it"
    assert outcome == "unknown", f"the task was queued, and its sender was told: {outcome}"
    world.publishing.note("plain-1", "unknown")
    world.wait(lambda: "plain-1" in world.journal.done(), "what was queued all the same to run", 10)
    app.broker.close()
    return drop.hits


def outcome_of_send(app: App, message: dramatiq.Message[None]) -> str | None:
    """What the sender is told, in Dramatiq's own error, of a task whose queueing failed."""
    try:
        app.broker.enqueue(message)
    except ConnectionClosed as error:
        assert isinstance(error.__cause__, BusUnavailable)
        return error.__cause__.outcome
    return "accepted"


def lost_settle(world: World) -> Finding:
    proxy = world.proxy()
    world.start_worker(proxy.url)
    warm_up(world)
    drop = Drop(SETTLING)
    hold = Hold(SETTLING, seconds=3)  # the client's patience is 2 s
    slowest_s = max(break_settle(world, proxy, drop, SOON_S), break_settle(world, proxy, hold, hold.seconds + SOON_S))
    assert drop.lost[0].startswith(b"*"), "the server had settled"
    return Finding("1 reply lost, 1 call held 3 s", f"all settled within {slowest_s:.1f} s", slowest_s)


def break_settle(world: World, proxy: Proxy, fault: Drop | Hold, patience_s: float) -> float:
    """Break one settle; returns how long it took until all was handled and settled."""
    proxy.arm(fault)
    began = time.monotonic()
    publish_some(world, keys=("a", "a", "b", "", ""))
    world.wait(lambda: fault.hits, "a settle to be broken", 10)
    world.drain(patience_s)
    took_s = time.monotonic() - began
    if isinstance(fault, Hold):
        world.wait(lambda: fault.forwarded, "the call to arrive at last", fault.seconds + 5)
    publish_some(world, keys=("a", "b", ""))
    world.drain(SOON_S)
    assert fault.hits == 1
    assert took_s < patience_s
    assert not any(count.in_flight for count in world.bus.store.census().counts)
    return took_s


# -- what they share ---------------------------------------------------------------------------------------------------


def warm_up(world: World) -> None:
    """Have a worker use every script once, so that each is known to the server by its SHA."""
    publish_some(world, keys=("a", ""))
    world.drain(10)


def warm_bus(world: World, proxy: Proxy) -> Bus:
    """A publisher's bus through the proxy, which has published before."""
    proxy.arm(None)
    bus = world.new_bus(proxy.url, deadline_s=DEADLINE_S)
    world.publishing.publish(Work(n=world.publishing.number()), bus=bus)
    return bus


def publish_some(world: World, keys: tuple[str, ...]) -> None:
    """Publish an event for each key, and let nobody have the first before the last is there: one take finds them all."""
    world.bus.store.pause(QUEUE)
    for key in keys:
        world.publishing.publish(Work(n=world.publishing.number(), key=key or None))
    world.bus.store.resume(QUEUE)


def plain_app(bus: Bus) -> tuple[App, dramatiq.Actor[[str], None]]:
    """An app of a publisher, which knows the plain actor by name."""
    app = App(bus)

    @dramatiq.actor(broker=app.broker, actor_name="plain", queue_name=QUEUE)
    def plain(id: str) -> None:
        raise NotImplementedError

    return app, plain


def reruns(world: World) -> list[str]:
    """What has begun more than once."""
    ids = [run.id for run in world.journal.runs()]
    return sorted({event_id for event_id in ids if ids.count(event_id) > 1})


FAULTS = (
    Fault("lost-take", "a take whose reply is lost strands nothing: it runs soon after", lost_take),
    Fault(
        "lost-publish", "a lost reply is retried and counts once; where it cannot be, the caller is told", lost_publish
    ),
    Fault(
        "lost-then-gone",
        "who loses a reply, and then the server, is told that the outcome is unknown, not that it was refused",
        lost_reply_then_gone,
    ),
    Fault(
        "lost-settle", "what was settled late or without an answer is done or runs again, and never stuck", lost_settle
    ),
)
