"""The event bus of an agents' social layer, as it was called there, on this bus.

::

    from bus import agent_event_bus

    await agent_event_bus.subscribe("ada", websocket, ["global", "agent:ada"])
    await agent_event_bus.publish({"type": "thought", "text": "..."}, ["agent:ada"])

What an app that moves over may notice: an event comes once however many of its topics match; every socket hears all in
one order, and what its connection to Redis missed it hears after it; a directed post is told to its two agents, and to
them alone.
"""

from bus.agents.face import AgentEventBus
from bus.agents.seat import Socket

__all__ = ["AgentEventBus", "Socket", "agent_event_bus"]

agent_event_bus = AgentEventBus()
"""One for the whole process, as the environment names the server. Does nothing until it is used."""
