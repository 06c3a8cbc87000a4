"""What ``callboard dev`` shows and takes in: events that pass, what handlers make of them, and lines that are typed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.middleware import MiddlewareError

from bus import Bus, BusError, Closed, Delivery, Gap, Listener
from bus.events import check_type
from workers.app import App
from workers.cli.form import Form, UnfitEvent, read_fields
from workers.cli.lines import HumanLines
from workers.cli.terminal import one_line, tell, tell_error
from workers.errors import BootFailed
from workers.kit import Ran
from workers.testing.witness import Witness

__all__ = ["show"]

GRACE_MS = 2_000
CHUNK_BYTES = 64 * 1024

Bind = Callable[[asyncio.AbstractEventLoop, asyncio.Event], None]


async def show(app: App, threads: int, bind: Bind) -> None:
    """Run the app until a signal, or until what ``bind`` was given is set. Raises :class:`~workers.errors.BootFailed`."""
    loop, stop, screen = asyncio.get_running_loop(), asyncio.Event(), _Screen()
    bind(loop, stop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    app.broker.add_middleware(Witness(screen.ran), before=type(app.broker.middleware[0]))
    async with app.bus as bus, bus.listen("**") as listener, _working(app, threads):
        printing = asyncio.create_task(screen.follow(listener), name="callboard dev listener")
        leave = _take_lines(loop, bus)
        tell("ready")
        try:
            await stop.wait()
        finally:
            leave()
            printing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await printing
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)  # a second one is not waited for


@asynccontextmanager
async def _working(app: App, threads: int) -> AsyncIterator[None]:
    worker = dramatiq.Worker(app.broker, worker_timeout=100, worker_threads=threads)
    try:
        app.broker.emit_after("process_boot")  # some of Dramatiq's middleware begins here
        await asyncio.to_thread(worker.start)
    except MiddlewareError as error:
        raise BootFailed(str(error)) from error
    try:
        yield
    finally:
        await asyncio.to_thread(worker.stop, GRACE_MS)


class _Screen:
    """Prints whole lines, from any thread."""

    def __init__(self) -> None:
        self._lines = HumanLines()

    async def follow(self, listener: Listener) -> None:
        """Print what passes, until the bus is closed."""
        async for item in listener:
            if isinstance(item, Delivery | Gap):
                self._say(self._lines.event(item) if isinstance(item, Delivery) else self._lines.gap(item))
            elif isinstance(item, Closed):
                return

    def ran(self, ran: Ran) -> None:
        """Print what became of an attempt."""
        what = f" at {ran.envelope.type}" if ran.envelope is not None else ""
        error = f"{type(ran.error).__name__}: {ran.error}" if ran.error is not None else ""
        match ran.outcome:
            case "retry":
                outcome, style = f"failed, {error}; again in {(ran.retry_in_ms or 0) / 1000:.1f} s", "yellow"
            case "dead":
                outcome, style = f"failed for good, {error or 'by its middleware'}", "bold red"
            case "done":
                outcome, style = "done" if ran.attempt == 1 else f"done, at attempt {ran.attempt}", "dim"
            case other:
                outcome, style = other, "dim"
        self._say(self._lines.painted(("  └─", "dim"), (ran.handler, "cyan"), (one_line(outcome + what), style)))

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever read it has left
            print(f"{line}\n", end="", flush=True)


# What is typed.


def _take_lines(loop: asyncio.AbstractEventLoop, bus: Bus) -> Callable[[], None]:
    """Publish each line of standard input as it comes. Returns how to leave it alone again."""
    if sys.stdin is None or sys.stdin.closed:
        return lambda: None
    number, rest, publishing = sys.stdin.fileno(), bytearray(), set[asyncio.Task[None]]()

    def read() -> None:
        try:
            chunk = os.read(number, CHUNK_BYTES)
        except OSError:
            chunk = b""
        rest.extend(chunk)
        *lines, left = bytes(rest).split(b"\n")
        rest[:] = left
        if not chunk:
            loop.remove_reader(number)
            lines.append(left)
        for line in lines:
            if line.strip():
                publishing.add(task := loop.create_task(_publish(bus, line.decode(errors="replace"))))
                task.add_done_callback(publishing.discard)

    try:
        loop.add_reader(number, read)
    except (OSError, ValueError):  # a file, or nothing at all: there is nobody who types
        return lambda: None
    return lambda: (loop.remove_reader(number), None)[1]


async def _publish(bus: Bus, line: str) -> None:
    try:
        publication = _typed(line)
        (receipt,) = await bus.publish_many([publication])
    except (UnfitEvent, BusError, ValueError) as error:
        tell_error(f"{error}; write a type and its fields, as in: agent.greeted agent_id=ada --topic agent:ada")
        return
    if not receipt.jobs:
        tell("no handler wants that: listeners have heard it, and nobody works on it")


def _typed(line: str) -> Any:
    """The publication that a line means. Raises ``ValueError`` and what reading its parts raises."""
    name, *words = shlex.split(line)
    topics: list[str] = []
    fields: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--topic":
            topics.append(next(given, ""))
        else:
            fields.append(word)
    form = Form(tuple(topics or ("global",)), key=None, id=None, log=None)
    return form.publication({**read_fields(fields), "type": check_type(name)})
