"""2. A handler does durable work for an event, and what it publishes is heard and handled in turn.

The same publish that told the listeners has queued a job for each handler that wants the event: both, or neither. The
publisher knows nothing of handlers. In production workers run them, on other machines; here ``drain`` does, at once and in
this test's own hands. What a handler publishes carries what caused it.
"""

import pytest

from bus import Bus, Event
from workers import App, Context
from workers.kit import Kit


class Asked(Event, type="story.asked", version=1):
    agent_id: str
    question: str


class Answered(Event, type="story.answered", version=1):
    agent_id: str
    answer: str


bus = Bus()
app = App(bus)


@app.on(Asked)
async def think(event: Asked, ctx: Context) -> None:
    await ctx.publish(Answered(agent_id=event.agent_id, answer="42"), topics=[f"agent:{event.agent_id}"])


@app.on(Answered, topics="agent:**")  # an ordinary function works as well: it gets a thread
def remember(event: Answered) -> None: ...


@pytest.mark.callboard("memory", "redis")
async def test_a_question_is_thought_about_and_its_answer_remembered(callboard: Kit) -> None:
    receipt = await bus.publish(Asked(agent_id="ada", question="6 x 7?"))

    await callboard.drain()

    assert receipt.jobs == 1
    assert callboard.published(Answered) == [Answered(agent_id="ada", answer="42")]
    done = callboard.assert_handled(remember, Answered(agent_id="ada", answer="42"))
    assert done.envelope is not None
    assert done.envelope.causationid == receipt.id
