"""``callboard dev``: an app in one process while it is written, and the way to begin one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus import Bus
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, Program, callboard, error_of, history, program

DEV = [*CALLBOARD, "dev"]
NOTE = "notes.note.written agent_id=ada text='To be, or not to be'\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What ``callboard dev --new notes`` writes."""
    done = callboard("dev", "--new", "notes", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return tmp_path / "notes"


@contextmanager
def developing(project: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Program]:
    with program([*DEV, *args], project.parent, folder=project, env=env, stdin=subprocess.PIPE) as running:
        yield running


def type_line(running: Program, text: str) -> None:
    assert running.process.stdin is not None
    running.process.stdin.write(text.encode())
    running.process.stdin.flush()


def test_what_is_typed_is_published_handled_and_printed(project: Path) -> None:
    with developing(project) as running:
        running.wait_for("ready")
        type_line(running, NOTE)
        running.wait_for("done at notes.note.written")
        type_line(
            running, "notes.note.written agent_id=bob text=Hm --topic agent:bob\nagent.unknown\nagent:bad\n'half\n"
        )
        running.wait_for("no handler wants that")
        running.wait_for("No closing quotation")
        running.wait_for('"words": 1')
        wait_until(lambda: sum("└─" in line for line in running.lines) == 2, "both to be done")
        assert running.end(signal.SIGINT) == 0

    said = [line.partition("  ")[2] for line in running.lines if "notes.note" in line]
    assert '#1  notes.note.written  global  {"agent_id": "ada", "text": "To be, or not to be"}' in said
    assert '#2  notes.note.counted  agent:ada  {"agent_id": "ada", "words": 6}' in said
    assert sum(line == "└─  app.count_words  done at notes.note.written" for line in said) == 2
    assert any("notes.note.written  agent:bob" in line for line in said)
    errors = [line for line in running.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all("write a type and its fields, as in: agent.greeted" in line for line in errors)
    assert "callboard dev: app:app in memory (BUS_URL names a server)" in running.errors
    assert "app.count_words <- notes.note.written on **" in running.errors


def test_a_change_begins_anew_and_an_error_waits_for_the_next_change(project: Path) -> None:
    app, source = project / "app.py", (project / "app.py").read_text()
    with developing(project, "app:app") as running:
        running.wait_for("ready")
        app.write_text(source.replace("len(event.text.split())", "1000"))
        wait_until(lambda: running.errors.count("ready") == 2, "a second beginning", 20)
        type_line(running, NOTE)
        running.wait_for('"words": 1000')

        app.write_text("this is no Python")
        running.wait_for("waiting for a change")
        app.write_text(source)
        wait_until(lambda: running.errors.count("ready") == 3, "a third beginning", 20)
        type_line(running, NOTE)
        running.wait_for('"words": 6')
        assert running.end() == 0

    assert "error: importing module 'app' failed: SyntaxError" in running.errors
    assert running.errors.count("changed: beginning anew") == 3


def test_failures_are_told_with_what_comes_next(project: Path) -> None:
    app = project / "app.py"
    app.write_text(
        app.read_text()
        .replace('key="agent_id"', 'key="agent_id", max_retries=1, min_backoff=100, max_backoff=100')
        .replace("words = len(event.text.split())", 'raise ValueError("no [words]")')
    )
    with developing(project, "--no-reload") as running:
        running.wait_for("ready")
        type_line(running, NOTE)
        running.wait_for("failed for good")
        assert running.end() == 0

    told = [line.partition("app.count_words")[2].strip() for line in running.lines if "app.count_words" in line]
    assert told[0].startswith("failed, ValueError: no [words]; again in 0.")
    assert told[1] == "failed for good, ValueError: no [words] at notes.note.written"
    assert "a change of a .py file" not in running.errors


def test_a_server_that_is_named_is_used(project: Path, redis_url: str, namespace: str) -> None:
    with developing(project, env={"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}) as running:
        running.wait_for("ready")
        assert f"on a server, namespace '{namespace}'" in running.errors
        with_bus = Bus(redis_url, namespace=namespace)
        with_bus.publish_sync({"type": "notes.note.written", "agent_id": "eve", "text": "from elsewhere"})
        with_bus.close_sync()
        running.wait_for('"words": 2')
        assert running.end() == 0

    types = [delivery.envelope.type for delivery in history(redis_url, namespace)]
    assert types == ["notes.note.written", "notes.note.counted"]


def test_a_call_that_blocks_in_a_thread_keeps_nobody_from_ending_it(project: Path) -> None:
    with (project / "app.py").open("a") as app:
        app.write(
            "\n\n@app.on('block')\nasync def block(event):\n    import asyncio, time\n    print('began', flush=True)\n"
            "    await asyncio.to_thread(time.sleep, 60)\n"
        )
    with developing(project) as running:
        running.wait_for("ready")
        type_line(running, "block\n")
        running.wait_for("began")

        assert running.end(signal.SIGINT, timeout=10) == 0

    assert "time.sleep 1" in running.errors


def test_without_anybody_who_types_it_works_all_the_same(project: Path) -> None:
    with program(DEV, project.parent, folder=project, stdin=subprocess.DEVNULL) as running:
        running.wait_for("ready")
        assert running.end(signal.SIGINT) == 0


def test_the_app_that_is_written_passes_its_test_in_both_modes(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_app_that_is_written_names_its_files_and_the_next_steps(tmp_path: Path) -> None:
    done = callboard("dev", "--new", "my-notes", folder=tmp_path)

    assert done.stderr.splitlines() == [
        "wrote my-notes/: app.py, test_app.py, Procfile, requirements.txt",
        "next:",
        "    cd my-notes && pip install -r requirements.txt",
        "    pytest",
        "    callboard dev",
        "and there type a line, as in:  my-notes.note.written agent_id=ada text='To be, or not to be'",
    ]
    assert sorted(file.name for file in (tmp_path / "my-notes").iterdir()) == [
        "Procfile",
        "app.py",
        "requirements.txt",
        "test_app.py",
    ]
    assert "worker: exec callboard worker app:app" in (tmp_path / "my-notes" / "Procfile").read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "app.py").write_text("mine")
    (tmp_path / "file").write_text("mine")

    assert "'notes' is there already, and not empty" in error_of(callboard("dev", "--new", "notes", folder=tmp_path), 2)
    assert "'file' cannot be written: File exists" in error_of(callboard("dev", "--new", "file", folder=tmp_path), 1)
    assert (tmp_path / "notes" / "app.py").read_text() == "mine"
    assert list((tmp_path / "notes").iterdir()) == [tmp_path / "notes" / "app.py"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--new", "../up"), "'../up' is no name"),
        (("--new", "Shop"), "'Shop' is no name: a small letter"),
        (("--new", "shop", "shop:app"), "leave MODULE:APP out"),
        ((), "or begin one: 'callboard dev --new shop'"),
        (("--no-reload", "nowhere:app"), "there is no module 'nowhere' here"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_do(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in error_of(callboard("dev", *args, folder=tmp_path), 2)
