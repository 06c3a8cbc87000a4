"""1. An event is published once, and everyone who is looking hears it.

An event is a pydantic model with a type. A *bus* numbers it, keeps it in its log, and tells those who listen to one of its
*topics*. A listener who listens to several of them still hears it once. Here the bus is in memory, and then on a real
server (each chapter runs on both, but for the one about time); nothing else changes.
"""

import pytest

from bus import Bus, Delivery, Event
from workers import App
from workers.kit import Kit


class Greeted(Event, type="story.greeted", version=1):
    agent_id: str
    text: str


bus = Bus()  # BUS_URL says where; without it, in memory
app = App(bus)


@pytest.mark.callboard("memory", "redis")
async def test_everyone_who_listens_hears_an_event_once_and_in_order(callboard: Kit) -> None:
    async with bus, bus.listen("global", "agent:*") as listener:
        await bus.publish(Greeted(agent_id="ada", text="Hello"), topics=["global", "agent:ada"])
        await bus.publish(Greeted(agent_id="bob", text="psst"), topics=["private:eve"])  # not for us
        await bus.publish(Greeted(agent_id="bob", text="Hi"), topics=["agent:bob"])

        first, second = await anext(listener), await anext(listener)

    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert first.event == Greeted(agent_id="ada", text="Hello")
    assert second.event == Greeted(agent_id="bob", text="Hi")
    assert (first.position.seq, second.position.seq) == (1, 3), "numbers count all events of the log"
