"""The app of the signal matrix. Its resource is in a journal of its own; ``FAULT_BOOT`` lets it hang until it is cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bus import Bus
from tests.faults.journal import Pen
from tests.faults.stage import STAGE, Stage
from workers import App, Context

JOURNAL = Path(os.environ["FAULT_JOURNAL"])
SIGNALLED = JOURNAL.with_name("signalled")
pen = Pen(JOURNAL)
app = App(Bus(lease_s=float(os.environ["FAULT_LEASE_S"])))


@app.lifespan
async def boot() -> AsyncIterator[None]:
    with Pen(JOURNAL.with_name("resource")).run("resource", ""):
        if os.environ.get("FAULT_BOOT"):
            await asyncio.Event().wait()
        yield


@app.on(Stage, topics=f"{STAGE}:async", key="key", name=f"{STAGE}-async")
async def on_loop(event: Stage, ctx: Context) -> None:
    with pen.run(ctx.envelope.id, event.key or ""):
        if not is_first(event):
            return
        while not SIGNALLED.exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
        await asyncio.sleep(event.takes_s)


@app.on(Stage, topics=f"{STAGE}:thread", key="key", name=f"{STAGE}-thread", min_backoff=4000, max_backoff=4000)
def on_thread(event: Stage, ctx: Context) -> None:
    with pen.run(ctx.envelope.id, event.key or ""):
        if not is_first(event):
            return
        if event.how == "fails":
            raise RuntimeError("the first attempt fails, as the event asked for")
        if event.how == "released":
            hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", int(event.takes_s * 1_000_000))
        elif event.how == "held":
            re.match(r"(a+)+$", "a" * 64 + "b")  # for longer than anybody waits
        else:
            while not SIGNALLED.exists():
                time.sleep(0.01)
            time.sleep(event.takes_s)


def is_first(event: Stage) -> bool:
    """Whether this is the first run of an event, in whichever process."""
    try:
        os.close(os.open(JOURNAL.with_name(f"first-{event.n}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return not event.once
    return True
