"""3. One agent's events are handled one at a time, in their order; other agents do not wait for it.

``key="agent_id"`` gives each agent a *lane* at each handler: first in, first out, however many workers there are. Where an
agent's event waits to be tried again, its later ones wait behind it, and everybody else goes on.
"""

import pytest
from dramatiq.errors import Retry

from bus import Bus, Event
from workers import App, Context
from workers.kit import Kit


class Said(Event, type="story.said", version=1):
    agent_id: str
    line: int


bus = Bus()
app = App(bus)


@app.on(Said, key="agent_id")
def speak(event: Said, ctx: Context) -> None:
    if event == Said(agent_id="ada", line=2) and ctx.attempt == 1:
        raise Retry(delay=1)  # one millisecond; a failure would wait for a second, and then longer


@pytest.mark.callboard("memory", "redis")
async def test_lines_are_spoken_in_order_whatever_fails(callboard: Kit) -> None:
    for line in (1, 2, 3):
        for agent in ("ada", "bob"):
            await bus.publish(Said(agent_id=agent, line=line))

    while len([ran for ran in callboard.ran if ran.outcome == "done"]) < 6:
        await callboard.drain()

    spoken = [(ran.event.agent_id, ran.event.line, ran.outcome) for ran in callboard.ran if isinstance(ran.event, Said)]
    assert [one[1:] for one in spoken if one[0] == "ada"] == [(1, "done"), (2, "retry"), (2, "done"), (3, "done")]
    assert [one[1:] for one in spoken if one[0] == "bob"] == [(1, "done"), (2, "done"), (3, "done")]
