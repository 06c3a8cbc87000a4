"""``callboard queues``: how much work there is, what it waits for, who does it; pausing, dropping, bindings that go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from workers.cli.options import Json, Namespace, Url, server_bus
from workers.cli.outcome import FAILURE, USAGE, Failed
from workers.cli.terminal import printable, tell, to_stdout
from workers.deadletters import DeadLetters
from workers.errors import UnknownName
from workers.queues import HeldLane, Queues, QueueState

__all__ = ["queues"]

MOST_NAMED = 5

queues = typer.Typer(
    rich_markup_mode="markdown",
    help="""How much work there is, by queue and handler, what it waits for, and who does it.

    A job is *ready* (a worker can take it, unless paused), *in lanes* (behind another one of the same key), *delayed*
    (until its time), *retrying* (it failed, and waits with its lane for the next try) or *in flight* (so many by so many
    workers). *oldest* is the age of the oldest ready one; *workers* serve the handler. Columns without any are left out.

    Examples: `callboard queues`, `callboard queues held`, `callboard queues pause mail`, `callboard queues resume mail`,
    `callboard queues forget shop.old_handler`, `callboard queues drop shop.old_handler --yes`
    """,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A queue, or a handler, as 'callboard queues' shows them.")]
Handler = Annotated[str, typer.Argument(metavar="HANDLER", help="A handler, as 'callboard queues' shows it.")]


@queues.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False, url: Url = None, namespace: Namespace = None) -> None:
    """Show the table, unless another command follows."""
    if context.invoked_subcommand is not None:
        return
    with _opened(url, namespace) as (found, letters):
        states, dead, paused = found.look(), letters.count(), found.paused()
    if as_json:
        for state in states:
            print(json.dumps({**asdict(state), "orphaned": state.orphaned}))
        return
    if states:
        to_stdout().print(_table(states))
    else:
        tell("no handler is bound here, and no work waits: start a worker, as in 'callboard worker module:app'")
    for name in sorted({*paused} - {state.paused_as for state in states}):
        tell(
            f"{printable(name)} is paused, though nothing is bound to it and no work of it waits: callboard queues resume {printable(name)}"
        )
    tell(f"dead letters {dead}" + (" ('callboard dead list' shows them)" if dead else ""))
    _tell_of_orphans([printable(state.handler) for state in states if state.orphaned and state.bound])
    _tell_of_leftovers([printable(state.handler) for state in states if state.orphaned and not state.bound])


def _tell_of_orphans(handlers: list[str]) -> None:
    """What to do about handlers that are bound and not served; in one line, for after a stop that is all of them."""
    if len(handlers) == 1 and handlers[0].startswith("__main__."):
        tell(
            f"{handlers[0]}: events become work for it, and no 'callboard worker' can serve it: it was declared in a script. "
            f"Import that module by its name, and remove the binding: callboard queues forget {handlers[0]}"
        )
    elif len(handlers) == 1:
        tell(
            f"{handlers[0]}: events become work for it, and no worker serves it. "
            f"Start one, or remove the binding: callboard queues forget {handlers[0]}"
        )
    elif handlers:
        more = f" and {len(handlers) - MOST_NAMED} more" if len(handlers) > MOST_NAMED else ""
        tell(
            f"{len(handlers):,} handlers: events become work for them, and no worker serves them. Start one, or remove the "
            f"bindings of those that are gone: callboard queues forget HANDLER ({', '.join(handlers[:MOST_NAMED])}{more})"
        )


def _tell_of_leftovers(handlers: list[str]) -> None:
    """What to do about work of handlers that are neither bound nor served."""
    if handlers:
        which = handlers[0] if len(handlers) == 1 else "HANDLER"
        more = f" and {len(handlers) - MOST_NAMED} more" if len(handlers) > MOST_NAMED else ""
        tell(
            f"work waits for what nobody serves and no event is bound to ({', '.join(handlers[:MOST_NAMED])}{more}). "
            f"Start a worker that has it, or drop its work: callboard queues drop {which} --yes"
        )


@queues.command()
def held(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the next due first.")
    ] = 50,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Show the lanes that wait for the retry of their first event: which, why, for how long, and how many wait behind."""
    with _opened(url, namespace) as (found, _):
        lanes = found.held(limit)
    if as_json:
        for lane in lanes:
            print(json.dumps(asdict(lane)))
    elif lanes:
        to_stdout().print(_lanes(lanes))
    else:
        tell("no lane waits for a retry")


@queues.command()
def pause(name: Name, as_json: Json = False, url: Url = None, namespace: Namespace = None) -> None:
    """Have no worker take from a queue, or for a handler, until it is resumed. What was taken is finished."""
    with _opened(url, namespace) as (found, _):
        changed = found.pause(name)
    if as_json:
        print(json.dumps({"name": name, "paused": True, "changed": changed}))
    else:
        tell(f"paused {printable(name)}" if changed else f"{printable(name)} was paused already")


@queues.command()
def resume(name: Name, as_json: Json = False, url: Url = None, namespace: Namespace = None) -> None:
    """Undo a pause; waiting work goes on at once."""
    with _opened(url, namespace) as (found, _):
        changed = found.resume(name)
        still = {state.paused_as for state in found.look() if state.handler == name and state.paused_as is not None}
    if as_json:
        print(json.dumps({"name": name, "paused": bool(still), "changed": changed}))
        return
    tell(f"resumed {printable(name)}" if changed else f"{printable(name)} was not paused")
    for queue in sorted(still):
        tell(f"its queue is paused: callboard queues resume {printable(queue)}")


@queues.command()
def forget(handler: Handler, as_json: Json = False, url: Url = None, namespace: Namespace = None) -> None:
    """Remove the binding of a handler that is gone: events no longer become work for it. What is queued stays.

    Refused while a worker serves the handler, for it would bind it again when it next starts.
    """
    with _opened(url, namespace) as (found, _):
        states = found.look()
        its = [state for state in states if state.handler == handler]
        if not its:
            raise UnknownName(handler, sorted({state.handler for state in states}), "handler")
        serving = sum(state.consumers for state in its)
        if serving:
            raise Failed(
                f"{serving} worker(s) serve {handler!r}: take it out of the app and restart them first", FAILURE
            )
        forgotten = found.forget(handler)
    left = sum(state.unfinished for state in its)
    if as_json:
        print(json.dumps({"handler": handler, "forgotten": forgotten, "unfinished": left}))
        return
    tell(f"forgot {printable(handler)}" if forgotten else f"{printable(handler)} is not bound: nothing to forget")
    if left:
        tell(
            f"{left} unfinished job(s) of it are kept: a worker that serves it again does them, "
            f"and 'callboard queues drop {printable(handler)} --yes' drops them"
        )


@queues.command()
def drop(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it. Without it nothing is dropped, and how much there is is told.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Drop all unfinished work of a queue, or of one handler, for good: waiting, delayed, retrying and in flight.

    Nothing of it is kept, not even as dead letters. What is in flight runs to its end, and nothing comes of it.
    """
    with _opened(url, namespace) as (found, _):
        states = found.look()
        meant = [state for state in states if state.queue == name] or [one for one in states if one.handler == name]
        if meant and not yes:
            kind, there = "queue" if meant[0].queue == name else "handler", sum(state.unfinished for state in meant)
            raise Failed(f"{there} unfinished job(s) of {kind} {name!r} would be gone for good: add --yes", USAGE)
        dropped = found.drop(name)
    if as_json:
        print(json.dumps({"name": name, "dropped": dropped}))
    else:
        tell(f"dropped {dropped} unfinished job(s) of {printable(name)}")


@contextmanager
def _opened(url: str | None, namespace: str | None) -> Iterator[tuple[Queues, DeadLetters]]:
    bus = server_bus(url, namespace, purpose="its queues end with its process")
    bus.open_sync()
    try:
        yield Queues(bus), DeadLetters(bus)
    finally:
        bus.close_sync()


def _table(states: list[QueueState]) -> Table:
    """A row for each handler; what nobody has anything of is left out, so that it fits a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [
        ("ready", [str(state.ready or "") for state in states]),
        ("in lanes", [str(state.in_lanes or "") for state in states]),
        ("delayed", [str(state.delayed or "") for state in states]),
        ("retrying", [str(state.retrying or "") for state in states]),
        ("in flight", [_flying(state) for state in states]),
        ("oldest", [_span(state.oldest_s) for state in states]),
        ("workers", [str(state.consumers or "none") for state in states]),
        ("", [_remarks(state) for state in states]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    table.add_column("queue", overflow="fold")
    table.add_column("handler", overflow="fold", min_width=min(30, max(len(state.handler) for state in states)))
    for name, _ in columns:
        table.add_column(name, justify="right" if name else "left", overflow="fold", style=None if name else "yellow")
    for at, state in enumerate(states):
        table.add_row(
            Text(state.queue), Text(state.handler), *(cells[at] or "-" * bool(name) for name, cells in columns)
        )
    return table


def _flying(state: QueueState) -> str:
    return f"{sum(state.in_flight.values())} by {len(state.in_flight)}" if state.in_flight else ""


def _remarks(state: QueueState) -> str:
    remarks = [
        ("paused", state.paused and state.paused_as == state.handler),
        ("queue paused", state.paused and state.paused_as != state.handler),
        (f"{state.suspects} suspects", state.suspects),
        ("nobody serves it", state.orphaned),
    ]
    return ", ".join(text for text, so in remarks if so)


def _lanes(lanes: list[HeldLane]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("handler", "lane", "event"):
        table.add_column(column, overflow="fold")
    for column in ("job", "attempts"):
        table.add_column(column, justify="right")
    table.add_column("last error", overflow="fold")
    for column in ("next try in", "behind it"):
        table.add_column(column, justify="right")
    for lane in lanes:
        table.add_row(
            *(Text(printable(text)) for text in (lane.handler, lane.key, lane.what, lane.job)),
            str(lane.attempts),
            Text(printable(lane.error)),
            _span(lane.due_in_s),
            str(lane.behind or "-"),
        )
    return table


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
