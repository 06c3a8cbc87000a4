"""8. A worker that stops leaves nothing half done, and another one goes on.

A real worker this time, with threads and an event loop. When it is told to stop it takes no more, gives what runs a grace,
then cancels it (a coroutine's ``finally`` runs) and hands its event back to the head of its lane, where the next worker
finds it. A stop is no failure: the attempt does not count.
"""

import asyncio

import dramatiq
import pytest

from bus import Bus, Event
from tests.waiting import wait_until
from workers import App
from workers.kit import Kit


class Dreamt(Event, type="story.dreamt", version=1):
    agent_id: str
    n: int


bus = Bus()
app = App(bus)
told: list[str] = []


@app.on(Dreamt, key="agent_id")
async def dream(event: Dreamt) -> None:
    told.append(f"begins {event.n}")
    try:
        if told == ["begins 1"]:
            await asyncio.Event().wait()  # for ever
    finally:
        told.append(f"ends {event.n}")


@pytest.mark.callboard("memory", "redis")
def test_what_a_stopping_worker_has_in_hand_is_done_by_the_next(callboard: Kit) -> None:
    told.clear()
    bus.publish_sync(Dreamt(agent_id="ada", n=1))
    bus.publish_sync(Dreamt(agent_id="ada", n=2))

    worker = dramatiq.Worker(app.broker, worker_timeout=50)
    worker.start()
    wait_until(lambda: told, "the first dream to begin")
    worker.stop(timeout=100)  # the grace, in milliseconds
    assert told == ["begins 1", "ends 1"]

    callboard.drain_sync()  # the next worker
    assert told[2:] == ["begins 1", "ends 1", "begins 2", "ends 2"]
    assert callboard.assert_handled(dream, Dreamt(agent_id="ada", n=1)).attempt == 1
