"""``callboard tail``: watch events as they are published."""

from __future__ import annotations

import asyncio
import signal
import stat
import sys
from datetime import datetime
from os import fstat
from typing import Annotated

import typer

from bus import Bus, Closed, Delivery, Gap, InvalidPosition, Listener, Position
from bus.topics import own_log
from workers.cli.lines import HumanLines, JsonLines, Lines
from workers.cli.moments import FORMS, moment
from workers.cli.options import Json, Log, Namespace, Url, server_bus
from workers.cli.outcome import USAGE, Failed
from workers.cli.terminal import tell

__all__ = ["tail"]

GONE = "whoever read it has seen enough"


def tail(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Topics or patterns, as in global or 'agent:*'. Default: all."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="POSITION",
            help="Begin behind this position; 0 for all that is kept. Or a time: 2026-11-23T10:00 (UTC), or 2h, 30m, 3d ago.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after N events.")] = None,
    log: Log = None,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Watch events live, in the order of the log; Ctrl-C ends it.

    Without --after it begins now. It ends by itself where the log is closed. A hole that cannot be repaired is shown as a line of its own.

    For example:

        callboard tail

        callboard tail 'agent:*' --after 0 --json | jq .data

        callboard tail '$worker:**'                           (what workers do)
    """
    bus = server_bus(url, namespace, purpose="nothing that others publish would ever arrive here")
    lines = JsonLines() if as_json else HumanLines()
    try:
        asyncio.run(_follow(bus, tuple(patterns or ("**",)), after, log, count, lines))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return  # how a tail ends
    except BrokenPipeError:
        return  # whoever read it has seen enough


async def _follow(
    bus: Bus, patterns: tuple[str, ...], after: str | None, log: str | None, count: int | None, lines: Lines
) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if stat.S_ISFIFO(fstat(sys.stdout.fileno()).st_mode):
        # All that there is to be read from our end of a pipe: that whoever reads the other one has gone.
        asyncio.get_running_loop().add_reader(sys.stdout.fileno(), task.cancel, GONE)
    # It complains about its arguments before the server is asked.
    listener = bus.listen(*patterns, after=_place(after), log=log)
    async with bus:
        if log is not None:
            await asyncio.to_thread(_check_log_exists, bus, log)
        async with listener:
            whereto = f"log {log!r} of namespace {bus.namespace!r}" if log else f"namespace {bus.namespace!r}"
            tell(f"listening to {' '.join(patterns)} in {whereto} (Ctrl-C ends)")
            try:
                await _print_all(listener, lines, count)
            except BrokenPipeError:
                raise  # how much of it was read, nobody knows
            except asyncio.CancelledError as end:
                if end.args != (GONE,):
                    _tell_position(patterns, listener)
                raise
            _tell_position(patterns, listener)


def _place(after: str | None) -> str | datetime | None:
    """Where to begin. Raises :class:`Failed` for what is no place in any log."""
    if after is None or after == "0":
        return after
    try:
        return Position.parse(after)
    except InvalidPosition:
        time = moment(after)
    if time is None:
        raise Failed(
            f"--after {after[:80]!r} is neither a position nor a time: pass what a tail or a receipt has shown, "
            f"0 for all that is kept, {FORMS}, or leave it out for from now on",
            USAGE,
        )
    return time


def _tell_position(patterns: tuple[str, ...], listener: Listener) -> None:
    if own_log(patterns) is None:  # what workers tell is not kept
        tell(f"to go on from here: --after {listener.position}")


async def _print_all(listener: Listener, lines: Lines, count: int | None) -> None:
    seen = 0
    async for item in listener:
        if isinstance(item, Closed):
            tell("the log was closed: this was all of it" if item.reason == "log" else "the bus was closed")
            return
        print(lines.gap(item) if isinstance(item, Gap) else lines.event(item), flush=True)
        seen += isinstance(item, Delivery)
        if seen == count:
            return


def _check_log_exists(bus: Bus, log: str) -> None:
    logs = bus.store.logs()
    if log not in logs:
        raise Failed(f"there is no log {log!r} here: {', '.join(logs) if logs else 'nothing was published yet'}")
