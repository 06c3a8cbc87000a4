"""``callboard doctor``: what is wrong with the server or the work on it, and what to do."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bus import Bus
from workers.cli.loading import load_app
from workers.cli.options import Namespace, Url
from workers.cli.outcome import FAILURE, USAGE, Failed
from workers.cli.terminal import one_line, to_stdout
from workers.doctor import Finding, examine

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    where: Annotated[
        str | None,
        typer.Argument(metavar="MODULE:APP", help="An app, whose bus is looked at, and whose handlers are compared."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object on each line, for programs: check, verdict, what, advice."),
    ] = False,
    url: Url = None,
    namespace: Namespace = None,
) -> int:
    """Look at the server and the work on it; say what is wrong, and what to do about it. Nothing is changed.

    The server: version, role, persistence, memory and its policy, what this user may do, clock, round trip. The work:
    workers alive, handlers that nobody serves or that are not bound, what waits longest, paused queues, dead letters.
    Each is *ok*, a *warning* or a *problem*. The exit code is 1 if there is a problem, else 0; 2 if it was asked wrongly.

    For example:

        callboard doctor

        callboard doctor shop.events:app --json
    """
    if where is not None and (url is not None or namespace is not None):
        raise Failed("an app has a bus of its own: leave --url and --namespace out, or MODULE:APP", USAGE)
    app = load_app(where) if where is not None else None
    bus = app.bus if app is not None else Bus(url, namespace=namespace)
    try:
        findings = examine(bus, [one.binding for one in app.handlers.values()] if app is not None else None)
    finally:
        bus.close_sync()
    if as_json:
        for finding in findings:
            print(json.dumps({name: one_line(value) for name, value in finding._asdict().items()}))
    else:
        _show(findings)
    return FAILURE if any(finding.verdict == "problem" for finding in findings) else 0


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(one_line(finding.what))
        if finding.advice:
            text.append(f"\n{one_line(finding.advice)}", style="dim")
        table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), Text(finding.check), text)
    console = to_stdout()
    console.print(table)
    counts = [_count(findings, "problem", "problems"), _count(findings, "warning", "warnings")]
    console.print(Text(", ".join(counts), style="bold"))


def _count(findings: list[Finding], one: str, several: str) -> str:
    number = sum(finding.verdict == one for finding in findings)
    return f"{number or 'no'} {one if number == 1 else several}"
