"""The command ``callboard``: one module for each of its commands, and the one place where errors become a line.

Whatever can be expected to go wrong ends as one line on stderr, ``error: ...``, that says what to do: never a traceback,
never a URL or a password. Exit codes: 0 done; 1 failed (a server, a file or its data; a problem that the doctor found);
2 asked wrongly (arguments, settings, an app that cannot be found or used); 3 a worker that could not start; 130 cut short
by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Protocol, runtime_checkable

import typer

from bus import BusError
from workers.cli import dead, demo, dev, doctor, publish, queues, tail, worker
from workers.cli.outcome import CUT_SHORT, FAILURE, Failed, exit_code_of
from workers.cli.terminal import tell, tell_error
from workers.errors import WorkersError

__all__ = ["main"]

cli = typer.Typer(
    name="callboard",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # they would show values of variables, a URL among them
)
cli.command("demo")(demo.demo)
cli.command("dev")(dev.dev)
cli.command("worker")(worker.worker)
cli.command("doctor")(doctor.doctor)
cli.command("publish", no_args_is_help=False)(publish.publish)
cli.command("tail")(tail.tail)
cli.add_typer(queues.queues, name="queues")
cli.add_typer(dead.dead, name="dead")


@runtime_checkable
class _Complaint(Protocol):
    """A usage error of typer, or of the click below it: which of the two, and where it is defined, depends on versions."""

    exit_code: int

    def format_message(self) -> str: ...


@cli.callback(invoke_without_command=True)
def callboard(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Pin an event to the board once: workers handle it durably, and everyone who is looking sees it live.

    The server is named by BUS_URL (then REDIS_URL), as in `export BUS_URL=redis://localhost:6379/0`.
    Begin with `callboard demo`, which needs none.
    """
    if version:
        tell(f"callboard {_version()}", to=sys.stdout)
    elif context.invoked_subcommand is None:
        tell(context.get_help(), to=sys.stdout)


def main() -> None:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # Some terminals cannot show every character of an event.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    code = _run()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _not_written(error)
    sys.exit(code)


def _run() -> int:
    try:
        # Not standalone: typer would frame its own errors, and give up at a broken pipe, in its own way.
        done = _command()(prog_name="callboard", standalone_mode=False)
    except KeyboardInterrupt:
        return CUT_SHORT
    except Failed as error:
        tell_error(str(error))
        return error.exit_code
    except (BusError, WorkersError) as error:
        tell_error(str(error))
        return exit_code_of(error)
    except OSError as error:
        return _not_written(error)
    except Exception as error:
        if not isinstance(error, _Complaint):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "callboard")
        if why := error.format_message().rstrip("."):  # none where the help itself was the answer
            tell_error(f"{why}; see '{command} --help'")
        return error.exit_code
    return done if isinstance(done, int) else 0


def _command() -> Any:
    """The command line as typer makes it, whose flags look like flags: its newer versions show a value after them, ``<bool>``."""
    command = typer.main.get_command(cli)
    _show_flags_bare(command)
    return command


def _show_flags_bare(command: Any) -> None:
    for option in command.get_params(typer.Context(command)):  # that of --help is made here, and kept
        if getattr(option, "is_flag", False) and option.metavar is None:
            option.metavar = ""
    for one in getattr(command, "commands", {}).values():
        _show_flags_bare(one)


def _not_written(error: OSError) -> int:
    """Output failed: quietly where its reader has left, otherwise with the reason (a full disk, say)."""
    if not isinstance(error, BrokenPipeError):
        tell_error(f"the output cannot be written: {error.strerror or type(error).__name__}")
    _let_go_of_stdout()
    return FAILURE


def _let_go_of_stdout() -> None:
    """Whoever read our output has left (``| head``); what is buffered must not fail again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow, and asked for once

    try:
        return version("callboard")
    except PackageNotFoundError:
        return "(run from its source, not installed)"
