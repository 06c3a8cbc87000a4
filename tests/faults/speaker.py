"""A publisher as a process: ``tests.faults.speaker NAME LINES PER_SECOND [CHANNEL]``.

It publishes its lines through the bus, each again under its id until it is accepted, and at the same moment on a bare
channel of the server, where one is named, as those do who use redis-py alone. Who is disturbed makes up for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial

import redis

from bus import Bus, BusUnavailable
from bus.settings import settle_url
from tests.faults.line import line, name_of


def main(by: str, lines: int, per_s: float, channel: str = "") -> None:
    bus = Bus()
    # redis-py as it comes: ten retries, with a growing pause.
    bare = redis.Redis(host="127.0.0.1", port=int(settle_url(None).rpartition(":")[2].partition("/")[0]))
    os.write(1, b"ready\n")
    began, failures = time.monotonic(), 0
    for n in range(lines):
        time.sleep(max(0.0, began + n / per_s - time.monotonic()))
        event, event_id = line(by, n, sent_s=time.monotonic()), name_of(by, n)
        failures += until_accepted(partial(bus.publish_sync, event, id=event_id))
        if channel:
            failures += until_accepted(partial(bare.publish, channel, event_id))
    bare.close()
    bus.close_sync()
    print(f"said {lines} with {failures} failures", flush=True)


def until_accepted(publish: Callable[[], object]) -> int:
    """Publish again and again; returns how often that failed."""
    failures = 0
    while True:
        try:
            publish()
        except (BusUnavailable, redis.ConnectionError, redis.TimeoutError):
            failures += 1
        else:
            return failures


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
