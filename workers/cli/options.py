"""The options that several commands share, and the bus that they name."""

from __future__ import annotations

from typing import Annotated

import typer

from bus import Bus
from workers.cli.outcome import USAGE, Failed

__all__ = ["Json", "Log", "Namespace", "Url", "server_bus"]

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server. Better set BUS_URL (or REDIS_URL): other users of this machine can read arguments.",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="The app's world there (else BUS_NAMESPACE, else callboard)."),
]
Log = Annotated[str | None, typer.Option("--log", metavar="NAME", help="Another log than the default one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on each line, for programs.")]


def server_bus(url: str | None, namespace: str | None, *, purpose: str) -> Bus:
    """A bus on a server; connects to nothing yet. Memory is refused: it ends with this process and reaches no other."""
    bus = Bus(url, namespace=namespace)
    if bus.mode == "memory":
        raise Failed(
            f"this bus is in memory, and {purpose}: set BUS_URL=redis://... or pass --url "
            "('callboard demo' shows everything without a server)",
            USAGE,
        )
    return bus
