"""The README's own code: every Python block runs, in both modes, and prints what the README says it prints."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from tests.workers.running import ROOT, run_program

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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


def test_the_example_of_a_test_passes(tmp_path: Path) -> None:
    example = tmp_path / "test_example.py"
    example.write_text(BLOCKS[1], "utf-8")

    passed = run_program(
        "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]]))", str(example)
    )

    assert "1 passed" in passed


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
    assert len(BLOCKS) == 3
