"""A play, performed by workers: each agent speaks its speeches in their order, and all agents at once.

Start workers, listen, and publish a play of JSON Lines, in three terminals::

    callboard worker tests.examples.play:app
    callboard tail 'agent:*'
    callboard publish play.speech agent_id=bernardo act="ACT I" scene="SCENE I" line=1 text="Who's there?" \
        --topic global --topic agent:bernardo

Where ``PLAY_LEDGER`` names a file, each performance is a line in it.
"""

from __future__ import annotations

import json
import logging
import os
import time

from bus import Bus, Event
from workers import App

log = logging.getLogger(__name__)

app = App(Bus())  # on the server that BUS_URL names


class Speech(Event, type="play.speech", version=1):
    """One speech of one agent; ``line`` counts through the play."""

    agent_id: str
    text: str
    act: str = ""
    scene: str = ""
    line: int = 0


@app.on(Speech, key="agent_id")  # one at a time for each agent, in order; different agents side by side
def perform(speech: Speech) -> None:
    """Speak. A worker that is killed before it is done makes the speech heard twice, so the ledger tells by line."""
    ledger = os.environ.get("PLAY_LEDGER")
    if ledger is None:
        log.info("%s: %s", speech.agent_id, speech.text)
        return
    entry = {"agent_id": speech.agent_id, "line": speech.line, "pid": os.getpid(), "at_ns": time.time_ns()}
    # Many workers write to it: a single appending write is never mixed with another's.
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(file)
