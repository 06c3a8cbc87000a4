"""``callboard worker``: an app's handlers at work, in this process or in several under a master.

::

    check ──> import ──> boot ──────> work ──signal──> drain ──────> closed: exit 0
      │ 2        │ 2       │ 3 failed            │ grace + 7 s later, or a second signal: exit 1, at once
                           └ signal: unwind, exit 0

What cannot be interrupted (a handler inside C code) is left at the deadline by a hard exit, or killed a second later
where not even that gets a turn; its lease then expires, and its event runs again elsewhere. A thread that somebody's call
blocks does not count: where all else is closed it is left behind, with exit code 0.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from workers.cli.loading import add_folder
from workers.cli.logs import log_to_stderr
from workers.cli.outcome import USAGE, Failed
from workers.cli.serving import Wishes, open_endpoint, serve
from workers.cli.stopping import GUARD_S
from workers.health import reasons_of
from workers.leaving import AFTER_GRACE_S
from workers.supervisor import Command, Supervisor, Tether, Watcher, keep_no_bytecode, run_fork

__all__ = ["supervise", "worker"]

log = logging.getLogger("callboard.worker")


def worker(
    where: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, as in shop.events:app.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="With --watch: the folders to watch (else the current one)."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads", metavar="N", min=1, help="Sync handlers at once, a process; async ones: App(concurrency=)."
        ),
    ] = 8,
    processes: Annotated[
        int,
        typer.Option("--processes", metavar="N", min=1, help="So many, under a master that starts again who dies."),
    ] = 1,
    queues: Annotated[
        list[str] | None, typer.Option("--queues", metavar="QUEUE", help="Work on these queues only; repeatable.")
    ] = None,
    grace_s: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", min=0, help="How long running handlers may finish at the end."),
    ] = 20,
    watch: Annotated[
        bool, typer.Option("--watch", help="Begin anew with every change of a .py file (needs callboard[dev]).")
    ] = False,
    health_port: Annotated[
        int | None,
        typer.Option("--health-port", metavar="PORT", min=0, max=65535, help="Answer GET /live and GET /ready there."),
    ] = None,
    health_host: Annotated[
        str, typer.Option("--health-host", metavar="HOST", help="On this address; 0.0.0.0 is all of them.")
    ] = "127.0.0.1",
    child: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
    fork: Annotated[str | None, typer.Option("--fork", hidden=True)] = None,
) -> int:
    """Run an app's handlers until SIGTERM or Ctrl-C.

    Then it takes no more work, lets handlers finish, hands the rest back and exits with 0; a second signal ends it at
    once. Whatever hangs, it ends within the grace and 8 s more, with 1 (killed, where C code keeps it). Under a runner that kills after 5 s (honcho)
    give '--grace 2'. SIGHUP begins anew, with fresh code: one process after another, each new one ready before the old one
    drains; a process that is alone drains first. Start as many as you like: they share the work, and each agent's events
    stay in order. Exit code 2 means that it was asked wrongly (the app, a queue or the bus it names), 3 that it could
    not start (the server, a resource). 'dramatiq MODULE:APP.broker' works as well.

    With --processes a worker that dies is replaced while the others go on, what middleware runs beside workers (an exporter of metrics) runs
    once for all, and --health-port is answered by the master: ready when all are.

    For example:

        callboard worker shop.events:app

        callboard worker shop.events:app --processes 4 --threads 32 --queues default --queues mail

        callboard worker shop.events:app --watch src
    """
    if folders and not watch:
        raise Failed(
            f"unexpected argument {str(folders[0])!r}: folders are for --watch; see 'callboard worker --help'", USAGE
        )
    health = (health_host, health_port) if health_port is not None else None
    wishes = Wishes(where=where, threads=threads, queues=tuple(queues or ()), grace_s=grace_s, health=health)
    if child is not None:
        tether = Tether(child)
        log_to_stderr(tether.number or None)
        add_folder()
        if fork is not None:
            run_fork(fork, tether)
        serve(wishes, tether)
        return 0
    log_to_stderr()
    if processes == 1 and not watch:
        serve(wishes, None)
        return 0
    return supervise(
        Command("worker"), processes, grace_s=grace_s, health=health, watched=(folders or [Path()]) if watch else ()
    )


def supervise(
    command: Command,
    processes: int,
    *,
    grace_s: float,
    health: tuple[str, int] | None = None,
    watched: list[Path] | tuple[()] = (),
) -> int:
    """Be the master of so many workers until a signal, and return the exit code. Never imports the app."""
    supervisor = Supervisor(command, processes, limit_s=grace_s + AFTER_GRACE_S + GUARD_S, patient=bool(watched))
    with ExitStack() as stack:
        stack.callback(supervisor.close)
        if health is not None:
            endpoint = stack.enter_context(open_endpoint(health))
            endpoint.reasons = lambda: reasons_of(supervisor.children())
            endpoint.more = lambda: {"workers": supervisor.children()}
        if watched:
            stack.enter_context(_watcher(watched, supervisor))
        return supervisor.run()


def _watcher(folders: list[Path], supervisor: Supervisor) -> ExitStack:
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise Failed(f"there is no folder {str(missing[0])!r} to watch", USAGE)
    try:
        watcher = Watcher(folders, supervisor.reload)
    except ModuleNotFoundError:
        raise Failed("--watch needs watchfiles: pip install 'callboard[dev]'", USAGE) from None
    keep_no_bytecode()
    watcher.start()
    stack = ExitStack()
    stack.callback(watcher.close)
    return stack
