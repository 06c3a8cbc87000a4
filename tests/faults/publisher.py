"""A publisher as a process, to be killed: it says what it tries and what was accepted, and never what it hopes."""

from __future__ import annotations

import os
import sys

from bus import Bus
from tests.faults.work import WORK, Work


def main(total: int) -> None:
    bus = Bus()
    for n in range(total):
        event_id = f"stream-{n}"
        os.write(1, f"\ntrying {event_id}\n".encode())
        bus.publish_sync(Work(n=n, key=f"k{n % 20}"), id=event_id, topics=[WORK])
        os.write(1, f"\naccepted {event_id}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
