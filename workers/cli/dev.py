"""``callboard dev``: bus, workers and listeners of an app in one process, begun anew with every change of its code.

::

    import ──> boot ──> work, print, publish what is typed ──Ctrl-C──> stop: exit 0
      │ error    │ error               │
      └──────────┴──> say so, wait ────┴──a .py file changed──> stop, exec this very command

A fresh process for fresh code: nothing of the old is left in it, and what was in memory is gone.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from workers.app import App
from workers.cli.beginning import begin_project
from workers.cli.loading import load_app
from workers.cli.logs import log_to_stderr
from workers.cli.outcome import USAGE, Failed
from workers.cli.terminal import tell, tell_error
from workers.errors import WorkersError
from workers.leaving import AFTER_GRACE_S, Watchdog
from workers.supervisor import Command, Watcher, keep_no_bytecode

__all__ = ["dev"]


def dev(
    where: Annotated[
        str | None, typer.Argument(metavar="MODULE:APP", help="The app, as in shop.events:app. Default: app:app.")
    ] = None,
    new: Annotated[
        str | None,
        typer.Option("--new", metavar="NAME", help="Write a small app into a new folder NAME, and end."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Sync handlers at once.")] = 4,
    reload: Annotated[bool, typer.Option(help="Begin anew with every change of a .py file below this folder.")] = True,
) -> int:
    """Run an app while you write it: workers and a listener in this process, in memory unless BUS_URL names a server.

    Every event is printed as it passes, and what each handler made of it. A line that you type is published: a type, fields,
    and where to ('--topic', else global). Each change of a .py file begins anew; what was in memory is gone then. Ctrl-C ends it.

    For example:

        callboard dev --new shop && cd shop

        callboard dev app:app

        shop.note.written agent_id=ada text='To be, or not to be'
    """
    if new is not None:
        if where is not None:
            raise Failed("--new NAME writes an app of that name: leave MODULE:APP out", USAGE)
        begin_project(new)
        return 0
    log_to_stderr()
    changed = _Changed()
    with ExitStack() as stack:
        watching = reload and _watch(changed, stack)
        try:
            _run(_chosen(where), threads, changed, watching=watching)
        except WorkersError as error:
            if not watching:
                raise
            tell_error(str(error))
            tell("waiting for a change of a .py file; Ctrl-C ends")
            changed.wait()
    if changed.is_set():
        tell("changed: beginning anew")
        command = Command("dev").with_options()
        os.execv(command[0], command)  # noqa: S606 - this very command
    Watchdog(AFTER_GRACE_S).all_done()  # a thread that a handler has left behind must not keep us
    return 0


def _chosen(where: str | None) -> str:
    if where is None and not Path("app.py").exists():
        raise Failed(
            "name the app, as in 'callboard dev shop.events:app' (there is no app.py here), or begin one: "
            "'callboard dev --new shop'",
            USAGE,
        )
    return where or "app:app"


def _run(where: str, threads: int, changed: _Changed, *, watching: bool) -> None:
    # Here and not above: what tests an app looks over its shoulder, and no other command needs it.
    from workers.cli.stagedoor import show  # noqa: PLC0415

    app = load_app(where)
    _greet(app, where, watching=watching)
    asyncio.run(show(app, threads, changed.bind))


def _greet(app: App, where: str, *, watching: bool) -> None:
    place = (
        f"on a server, namespace {app.bus.namespace!r}"
        if app.bus.mode == "redis"
        else "in memory (BUS_URL names a server)"
    )
    tell(f"callboard dev: {where} {place}")
    for handler in app.handlers.values():
        binding = handler.binding
        tell(f"  {handler.name} <- {', '.join(binding.types)} on {' '.join(binding.topics)}")
    if not app.broker.actors:
        tell("  no handlers yet: declare one with @app.on(...)")
    example = next((name for handler in app.handlers.values() for name in handler.binding.types), "agent.greeted")
    tell(f"type an event to publish it, as in:  {example} agent_id=ada   (--topic agent:ada; else global)")
    tell("a change of a .py file begins anew; Ctrl-C ends" if watching else "Ctrl-C ends")


class _Changed:
    """Whether code has changed. Set from the watcher's thread, once it is bound to a loop there too."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._bound: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def is_set(self) -> bool:
        """Whether it has."""
        return self._event.is_set()

    def wait(self) -> None:
        """Block until it has; Ctrl-C is heard meanwhile, and ends the wait."""
        try:
            self._event.wait()
        except KeyboardInterrupt:
            return

    def bind(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Set that, too, on its loop."""
        self._bound = (loop, stop)
        if self._event.is_set():
            stop.set()

    def note(self) -> None:
        """It has."""
        self._event.set()
        if self._bound is not None:
            loop, stop = self._bound
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)


def _watch(changed: _Changed, stack: ExitStack) -> bool:
    try:
        watcher = Watcher([Path()], changed.note)
    except ModuleNotFoundError:
        tell("without reload: pip install 'callboard[dev]' has changes of the code begin anew")
        return False
    keep_no_bytecode()
    watcher.start()
    stack.callback(watcher.close)
    return True
