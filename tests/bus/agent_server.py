"""A server process with sockets, for tests of several: ``python -m tests.bus.agent_server NAME SOCKETS COUNT``.

It waits for a line on stdin, publishes ``COUNT`` events, and prints what each of its sockets hears, as JSON Lines
``[socket, event]``, until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bus import AgentEventBus


class Printing:
    """A socket whose browser is our stdout."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def send_json(self, data: Any) -> None:
        sys.stdout.write(json.dumps([self._name, data]) + "\n")
        sys.stdout.flush()


async def serve(name: str, sockets: int, count: int) -> None:
    """Say ``ready``, wait for the word, and publish."""
    agents = AgentEventBus()
    for number in range(sockets):
        await agents.subscribe(f"{name}-{number}", Printing(f"{name}-{number}"), ["global", f"server:{name}", "alerts"])
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(count):
        await agents.publish({"type": "said", "by": name, "n": number}, ["global", f"server:{name}", "alerts"])
        await asyncio.sleep(0.004)
    await asyncio.to_thread(sys.stdin.read)
    await agents.close_redis()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
