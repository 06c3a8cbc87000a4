"""The README's own code: every Python block runs, in both modes, and prints what the README says it prints."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from tests.workers.running import ROOT, run_program
from workers import App

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WORKERS_README = (ROOT / "workers" / "README.md").read_text("utf-8")
WORKERS_BLOCKS = re.findall(r"```python\n(.*?)```", WORKERS_README, re.DOTALL)
OUTPUT = re.findall(r"```text\n(.*?)```", README, re.DOTALL)[0]


def without_what_differs(text: str) -> str:
    text = re.sub(r"position='[0-9a-f]{8}-(\d+)-[0-9a-f]{8}'", r"position='...-\1-...'", text)
    return re.sub(r"id='[0-9a-f.-]+'", "id='...'", text)


def test_code_comes_by_line_15() -> None:
    lines = README.splitlines()

    assert lines.index("```python") < 15


def test_the_first_program_prints_what_the_readme_shows(url: str, namespace: str) -> None:
    printed = run_program(BLOCKS[0], BUS_URL=url, BUS_NAMESPACE=namespace)

    assert without_what_differs(printed) == without_what_differs(OUTPUT)


def run_pytest(folder: Path) -> str:
    return run_program(
        "import sys, pytest; sys.exit(pytest.main(['-q', '-W', 'error', '-p', 'no:cacheprovider', sys.argv[1]]))",
        str(folder),
    )


def test_the_example_of_a_test_passes_in_both_modes(tmp_path: Path) -> None:
    (tmp_path / "board.py").write_text(BLOCKS[0], "utf-8")
    (tmp_path / "test_board.py").write_text(BLOCKS[1], "utf-8")

    assert "2 passed" in run_pytest(tmp_path)
    assert len(BLOCKS[1].splitlines()) < 20


def test_the_example_of_a_test_fails_where_the_app_does_not_do_its_work(tmp_path: Path) -> None:
    (tmp_path / "board.py").write_text(BLOCKS[0].replace("agent.post.approved", "agent.post.lost"), "utf-8")
    (tmp_path / "test_board.py").write_text(BLOCKS[1], "utf-8")

    with pytest.raises(AssertionError):
        run_pytest(tmp_path)


def test_dramatiqs_idioms_work_as_the_workers_readme_shows(tmp_path: Path) -> None:
    (tmp_path / "test_idioms.py").write_text(WORKERS_BLOCKS[1], "utf-8")

    assert "1 passed" in run_pytest(tmp_path)


def test_a_handler_that_asks_for_another_try_gets_it_when_it_said() -> None:
    room: dict[str, Any] = {}
    exec(compile(WORKERS_BLOCKS[0].replace("Bus()", "Bus('memory://')"), "README.md", "exec"), room)  # noqa: S102 - ours
    app: App = room["app"]
    kit = app.testing
    app.bind()

    app.bus.publish_sync(room["Asked"](agent_id="ada"))
    assert [attempt.retry_in_ms for attempt in kit.drain_sync()] == [30_000]
    kit.travel(seconds=29)
    assert kit.drain_sync() == []
    kit.travel(seconds=2)
    assert [attempt.outcome for attempt in kit.drain_sync()] == ["done"]

    app.bus.close_sync()


def test_the_workers_readme_names_every_option_of_a_handler() -> None:
    ours = inspect.signature(App.on).parameters.keys() - {"self", "types", "options"}
    theirs = App(Bus("memory://")).broker.actor_options - {"pipe_target"}  # of a message's
    table = WORKERS_README.partition("## What a handler may say of itself")[2].partition("```")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]

    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == ours | theirs


def test_the_tour_of_the_bus_runs(url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
    room: dict[str, Any] = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), room)  # noqa: S102 - our own README

    async def tour() -> None:
        async with Bus(url, namespace=namespace) as bus:
            start = await bus.publish({"type": "agent.start"}, topics=["agent:a0"])
            await room["more"](bus, start.position)

    asyncio.run(tour())

    assert capsys.readouterr().out.count("Delivery(") == 10


def test_every_block_of_python_is_run_here() -> None:
    assert (len(BLOCKS), len(WORKERS_BLOCKS)) == (3, 2)
