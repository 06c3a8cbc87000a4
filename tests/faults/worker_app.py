"""The app that the workers run: ``callboard worker tests.faults.worker_app:app``.

``BUS_URL`` and ``BUS_NAMESPACE`` say where, ``FAULT_LEASE_S`` for how long a lease, ``FAULT_JOURNAL`` where to write.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dramatiq

from bus import Bus
from tests.faults.journal import Pen
from tests.faults.work import FRAGILE, WORK, Work
from workers import App, Context

pen = Pen(Path(os.environ["FAULT_JOURNAL"]))
app = App(Bus(lease_s=float(os.environ["FAULT_LEASE_S"])))


# Far more retries than leases may be lost, and none: neither has a say in when a job counts as poison.
@app.on(Work, topics=WORK, key="key", name=WORK, max_retries=50, min_backoff=50, max_backoff=500)
def work(event: Work, ctx: Context) -> None:
    perform(event, ctx)


@app.on(Work, topics=FRAGILE, key="key", name=FRAGILE, max_retries=0)
def fragile(event: Work, ctx: Context) -> None:
    perform(event, ctx)


@dramatiq.actor(broker=app.broker, actor_name="plain")
def plain(id: str) -> None:
    """A task without an event."""
    with pen.run(id, ""):
        pass


def perform(event: Work, ctx: Context) -> None:
    with pen.run(ctx.envelope.id, event.key or ""):
        if event.dies == "exit":
            os._exit(1)
        if event.dies == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if event.takes_s:
            time.sleep(event.takes_s)
        if ctx.attempt <= event.fails:
            raise RuntimeError(f"attempt {ctx.attempt} fails, as the event asked for")
