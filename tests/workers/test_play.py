"""The acceptance story: a whole play, published once, performed by two workers and watched by a third process.

The play is generated; where ``CALLBOARD_PLAY`` names a file of JSON Lines, it is that one.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bus import Bus, Event, Publication
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, ROOT, callboard, program
from tests.workers.running import working
from workers import App

Speeches = Sequence[dict[str, Any]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("CALLBOARD_PLAY")
    if given:
        return Path(given)
    dice = random.Random(1603)
    speeches = [
        {
            "type": "play.speech",
            "agent_id": f"agent-{dice.randrange(12)}",
            "act": "ACT I",
            "scene": "SCENE I",
            "line": line,
            "text": " ".join(dice.choices(["words", "wörds", "“words”"], k=dice.randint(1, 60))),
        }
        for line in range(1, 301)
    ]
    path = tmp_path_factory.mktemp("play") / "play.jsonl"
    path.write_text("".join(f"{json.dumps(speech)}\n" for speech in speeches))
    return path


@pytest.fixture(scope="module")
def speeches(play: Path) -> Speeches:
    return [json.loads(line) for line in play.read_text().splitlines()]


@pytest.fixture
def worker_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Procfile's own line, for a shell that finds this source's ``callboard``."""
    command = tmp_path / "bin" / "callboard"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(CALLBOARD)} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    lines = (ROOT / "Procfile").read_text().splitlines()
    return next(line.removeprefix("worker: ") for line in lines if line.startswith("worker: "))


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def by_agent(speeches: Speeches) -> dict[str, list[int]]:
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for speech in speeches:
        lines[speech["agent_id"]].append(speech["line"])
    return dict(lines)


@pytest.mark.timeout(120)
def test_two_workers_perform_the_play_and_a_third_process_watches_it(
    play: Path, speeches: Speeches, worker_line: str, bus: Bus, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "PLAY_LEDGER": str(ledger)}
    watch = [*CALLBOARD, "tail", "global", "agent:*", "--json", "--count", str(len(speeches))]
    addressed = ("--topic", "global", "--topic", "agent:{agent_id}", "--key", "agent_id")

    with (
        program(worker_line, tmp_path, env=env) as first,
        program(worker_line, tmp_path, env=env) as second,
        program(watch, tmp_path, env=env) as tail,
    ):
        for worker in (first, second):
            worker.wait_for("ready: redis")
        tail.wait_for("listening to")
        began = time.monotonic()
        published = callboard("publish", "--file", str(play), *addressed, env=env)
        assert tail.process.wait(30) == 0
        wait_until(lambda: bus.store.pending("default") == 0, "every speech to be performed", 30)
        took_s = time.monotonic() - began
        assert (first.end(), second.end()) == (0, 0)

    assert published.stderr == f"published {len(speeches)} events, 0 duplicates\n"
    performed = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(performed) == len(speeches)
    assert by_agent(performed) == by_agent(speeches)  # each once, and each agent's in order
    assert {each["pid"] for each in performed} == {first.process.pid, second.process.pid}
    assert bus.store.dead_count() == 0
    heard = [json.loads(line) for line in tail.lines]
    assert [{"type": each["type"], **each["data"]} for each in heard] == list(speeches)
    sys.stdout.write(f"{len(speeches)} speeches of {len(by_agent(speeches))} agents in {took_s:.1f} s\n")


def test_the_same_in_memory(speeches: Speeches) -> None:
    class Speech(Event, type="play.speech.in_memory"):
        agent_id: str
        line: int

    bus = Bus("memory://")
    app = App(bus)
    performed: list[dict[str, Any]] = []

    @app.on(Speech, topics="agent:**", key="agent_id")
    def perform(speech: Speech) -> None:
        performed.append(speech.model_dump())

    app.bind()
    with working(app, threads=8):
        bus.publish_many_sync(
            Publication(Speech(agent_id=each["agent_id"], line=each["line"]), ["global", f"agent:{each['agent_id']}"])
            for each in speeches
        )
        app.broker.join("default", timeout=30_000)
    bus.close_sync()

    assert len(performed) == len(speeches)
    assert by_agent(performed) == by_agent(speeches)
