"""``callboard demo``, and what the command line says of itself."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.workers.commands import CALLBOARD, callboard, error_of, program

LEDGER = re.compile(
    r"^published (\d+) · handled (\d+) · retried (\d+) · dead letters 1 · delivered (\d+) · gaps 0 · duplicates 0$",
    re.MULTILINE,
)


def test_the_demo_shows_its_account_in_plain_lines_where_there_is_no_terminal() -> None:
    done = callboard("demo", "--speed", "20")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "").isprintable()  # so no control codes
    account = LEDGER.search(done.stdout)
    assert account is not None
    published, handled, retried, delivered = map(int, account.groups())
    assert published > 30
    assert handled > 30
    assert retried > 0
    assert delivered > 2 * published
    assert "trying again" in done.stdout
    assert "to the dead letters" in done.stdout
    assert "page 3 of 3" in done.stdout
    assert re.search(r"#\d+ ↳\d+ +prompter", done.stdout)  # what answers what
    assert "Next: export BUS_URL" in done.stdout.splitlines()[-1]


def test_on_a_terminal_the_demo_is_drawn_live() -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another process
        os.execve(sys.executable, [*CALLBOARD, "demo", "--speed", "20"], {**os.environ, "TERM": "xterm"})  # noqa: S606
    shown = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # Linux's word for the end of a terminal
            break
        shown += read
        if not read:
            break
    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")
    assert "the stage" in text
    assert LEDGER.search(text)


def test_ctrl_c_ends_the_demo_quietly(tmp_path: Path) -> None:
    with program([*CALLBOARD, "demo"], tmp_path) as playing:
        playing.wait_for("#3")

        assert playing.end(signal.SIGINT) == 130

    assert playing.errors == ""


@pytest.mark.parametrize("command", ["demo", "worker", "publish", "tail"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    shown = callboard(command, "--help")

    assert shown.returncode == 0
    assert f" callboard {command}" in shown.stdout.partition("For example:")[2]


@pytest.mark.parametrize("command", ["", "dev", "queues", "queues drop", "dead list", "doctor", "publish"])
def test_flags_are_shown_without_a_value(command: str) -> None:
    shown = callboard(*command.split(), "--help").stdout

    assert "--help  " in shown
    assert "<bool>" not in shown


def test_the_command_alone_shows_what_there_is() -> None:
    shown = callboard()

    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("demo", "worker", "publish", "tail", "BUS_URL"))


def test_the_version_is_told() -> None:
    assert callboard("--version").stdout.startswith("callboard ")


def test_a_command_that_is_none_is_answered_with_a_guess() -> None:
    assert "Did you mean 'tail'" in error_of(callboard("tial"), 2)
