"""What a server is told to do meanwhile, by its own account (https://redis.io/docs/latest/commands/monitor)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.servers import Server

__all__ = ["Heard", "monitored"]


class Heard(NamedTuple):
    """A command, and whether a script ran it."""

    command: str
    by_script: bool


@contextmanager
def monitored(server: Server) -> Iterator[list[Heard]]:
    """A list that holds, once the block has ended, all commands of that time."""
    heard: list[Heard] = []
    with server.client() as client, server.client() as other:
        other.echo("connects")
        with client.monitor() as monitor:
            yield heard
            other.echo("over")
            while (said := monitor.next_command())["command"] != "ECHO over":
                heard.append(Heard(str(said["command"]), said["client_type"] == "lua"))
