"""``callboard demo``: the whole of it in one process, with nothing installed."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

import typer
from rich.console import Console

from workers.cli.outcome import Failed

__all__ = ["demo"]


def demo(
    speed: Annotated[float, typer.Option("--speed", metavar="X", min=0.5, max=100, help="How fast.")] = 1,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, as where the output is no terminal.")] = False,
) -> None:
    """Watch a small theatre company rehearse: agents that answer each other's events, in memory, in half a minute.

    Each agent acts in order while others act beside it; a handler fails and is tried again; one event ends in the dead
    letters; four listeners hear everything once. The ledger at the end is counted, not claimed.

    For example:

        callboard demo

        callboard demo --speed 4 --plain
    """
    # Here and not above: importing it defines the demo's event types, for the whole process.
    from workers.demo import LiveScreen, PlainScreen, rehearse  # noqa: PLC0415

    for name in ("dramatiq", "callboard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the failures are part of the play
    console = Console(highlight=False)
    is_live = console.is_terminal and not plain
    with LiveScreen(console) if is_live else PlainScreen() as screen:
        ledger, faults = asyncio.run(rehearse(screen, speed))
    typer.echo(f"\n{ledger}")
    if faults:
        raise Failed(f"the account does not add up: {'; '.join(faults)}")
    typer.echo(
        "Next: export BUS_URL=redis://localhost:6379/0, then 'callboard worker --help' and 'callboard tail --help'."
    )
