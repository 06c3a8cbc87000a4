"""``callboard queues``: how much work there is and what it waits for; pause it, resume it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bus import Bus
from bus.store.base import Census, Count
from workers.cli.options import Json, Namespace, Url, server_bus
from workers.cli.outcome import USAGE, Failed
from workers.cli.terminal import printable, tell

__all__ = ["queues"]

queues = typer.Typer(
    rich_markup_mode="markdown",
    help="""How much work there is, by queue and handler, and what it waits for.

    Examples: `callboard queues`, `callboard queues pause mail`, `callboard queues resume mail`
    """,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A queue, or a handler, as 'callboard queues' shows them.")]

_TIME = re.compile(rb'"time":"([^"]{10,40})"')
_STAMP = re.compile(rb'"message_timestamp":\s*([0-9]{10,16})')


@queues.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False, url: Url = None, namespace: Namespace = None) -> None:
    """Show the table, unless another command follows."""
    if context.invoked_subcommand is not None:
        return
    with _opened(url, namespace) as bus:
        census, dead, bound = bus.store.census(), bus.store.dead_count(), _bound(bus)
    counts = _with_idle(census.counts, bound)
    now = datetime.now(UTC)
    if as_json:
        for count in counts:
            print(json.dumps(_facts(count, census, now)))
        return
    Console(file=sys.stdout).print(_table(counts, census, now))
    tell(f"dead letters {dead}" + (" ('callboard dead list' shows them)" if dead else ""))


@queues.command()
def pause(name: Name, url: Url = None, namespace: Namespace = None) -> None:
    """Have no worker take from a queue, or for a handler, until it is resumed. What was taken is finished."""
    with _opened(url, namespace) as bus:
        changed = [bus.store.pause(one) for one in _meant(bus, name)]
    tell(f"paused {printable(name)}" if any(changed) else f"{printable(name)} was paused already")


@queues.command()
def resume(name: Name, url: Url = None, namespace: Namespace = None) -> None:
    """Undo a pause; waiting work goes on at once."""
    with _opened(url, namespace) as bus:
        changed = [bus.store.resume(one) for one in _meant(bus, name)]
    tell(f"resumed {printable(name)}" if any(changed) else f"{printable(name)} was not paused")


@contextmanager
def _opened(url: str | None, namespace: str | None) -> Iterator[Bus]:
    bus = server_bus(url, namespace, purpose="its queues end with its process")
    bus.open_sync()
    try:
        yield bus
    finally:
        bus.close_sync()


def _bound(bus: Bus) -> list[tuple[str, str]]:
    """(queue, handler) of all bindings."""
    found = [json.loads(binding) for binding in bus.store.bindings().bindings.values()]
    return sorted((binding["queue"], binding["handler"]) for binding in found)


def _meant(bus: Bus, name: str) -> list[str]:
    """The store's names for what a person calls so: a queue, or a handler on whichever queues it works."""
    known = sorted({(count.queue, count.handler) for count in bus.store.census().counts} | set(_bound(bus)))
    if name in {queue for queue, _ in known}:
        return [name]
    places = [f"{queue}|{handler}" for queue, handler in known if handler == name]
    if not places:
        names = ", ".join(sorted({part for pair in known for part in pair})) or "none yet"
        raise Failed(f"there is no queue or handler {name[:80]!r} (there are: {names})", USAGE)
    return places


def _with_idle(counts: Sequence[Count], bound: Sequence[tuple[str, str]]) -> list[Count]:
    """The counts, and empty ones for handlers that are bound and have had no work."""
    known = {(count.queue, count.handler) for count in counts}
    idle = [Count(queue, handler, 0, 0, 0, 0, 0, {}, b"") for queue, handler in bound if (queue, handler) not in known]
    return sorted([*counts, *idle], key=lambda count: (count.queue, count.handler))


def _table(counts: Sequence[Count], census: Census, now: datetime) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("queue", "handler"):
        table.add_column(column, overflow="fold")
    for column in ("ready", "in lanes", "delayed", "retrying", "in flight", "oldest"):
        table.add_column(column, justify="right")
    table.add_column("")
    for count in counts:
        table.add_row(
            Text(count.queue),
            Text(count.handler),
            *(str(n or "-") for n in (count.ready, _in_lanes(count), count.delayed, count.held)),
            _flying(count),
            _span(_age_s(count, now)),
            "[yellow]paused[/yellow]" if _is_paused(count, census) else "",
        )
    return table


def _in_lanes(count: Count) -> int:
    """Jobs that wait behind another one of their lane."""
    return max(0, count.unfinished - count.ready - count.delayed - count.held - sum(count.in_flight.values()))


def _flying(count: Count) -> str:
    workers = len(count.in_flight)
    return f"{sum(count.in_flight.values())} by {workers}" if workers else "-"


def _is_paused(count: Count, census: Census) -> bool:
    return bool(census.paused & {count.queue, f"{count.queue}|{count.handler}"})


def _age_s(count: Count, now: datetime) -> float | None:
    """How old the oldest ready job is, by what its own bytes say."""
    if match := _TIME.search(count.oldest[:2000]):
        try:
            return (now - datetime.fromisoformat(match[1].decode())).total_seconds()
        except (ValueError, TypeError):
            return None
    match = _STAMP.search(count.oldest)
    return now.timestamp() - int(match[1]) / 1000 if match else None


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0, seconds):.1f} s"


def _facts(count: Count, census: Census, now: datetime) -> dict[str, Any]:
    return {
        "queue": count.queue,
        "handler": count.handler,
        "unfinished": count.unfinished,
        "ready": count.ready,
        "in_lanes": _in_lanes(count),
        "delayed": count.delayed,
        "retrying": count.held,
        "in_flight": dict(count.in_flight),
        "oldest_s": _age_s(count, now),
        "paused": _is_paused(count, census),
    }
