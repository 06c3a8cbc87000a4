"""The plugin, as a stranger's project has it: an app, a conftest, tests, and nothing of ours but what is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workers
from tests.workers.running import ROOT

APP = """
from bus import Bus, Event
from workers import App, Context

class Posted(Event, type="shop.posted", version=1):
    agent_id: str

bus = Bus()
app = App(bus)
seen = []

@app.on(Posted, key="agent_id")
async def moderate(event: Posted, ctx: Context) -> None:
    seen.append(event.agent_id)
    await ctx.publish({"type": "shop.approved", "agent_id": event.agent_id})
"""

CONFTEST = """
import pytest

@pytest.fixture
def callboard_app():
    from shop import app
    return app
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    return tmp_path


def run(project: Path, tests: str = "", *args: str, **environment: str) -> tuple[int, str]:
    """Run pytest in a project, and return its exit code and what it printed."""
    if tests:
        (project / "test_shop.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "no:cacheprovider", *args],
        cwd=project,
        env={**os.environ, "BUS_URL": "", "REDIS_URL": "", **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_app_is_tested_as_it_is_in_both_modes_each_time_in_an_empty_world(project: Path) -> None:
    code, said = run(
        project,
        """
import pytest
from shop import Posted, bus, moderate, seen

pytestmark = pytest.mark.callboard("memory", "redis")

@pytest.mark.parametrize("name", ["ada", "bob"])
def test_a_post_is_approved(callboard, callboard_mode, name):
    assert bus.mode == callboard_mode
    bus.publish_sync(Posted(agent_id=name))
    callboard.drain_sync()
    callboard.assert_handled(moderate, times=1)
    assert callboard.published("shop.approved") == [{"agent_id": name}]

def test_the_bus_is_where_it_was_again():
    assert bus.mode == "memory" and bus.namespace == "callboard"
    assert sorted(seen) == ["ada", "ada", "bob", "bob"]
""",
    )

    assert code == 0, said
    assert "5 passed" in said


def test_a_settings_of_a_server_in_the_environment_is_not_the_tests(project: Path) -> None:
    """Whoever has BUS_URL set in their shell must not have their tests write there."""
    code, said = run(
        project,
        """
from shop import Posted, app, bus

def test_it(callboard):
    bus.publish_sync(Posted(agent_id="ada"))
    assert [ran.outcome for ran in callboard.drain_sync()] == ["done"]
    assert app.bus.mode == "memory"
""",
        BUS_URL="redis://127.0.0.1:1/0",
    )

    assert code == 0, said


def test_a_worker_and_dramatiqs_idioms_are_there(project: Path) -> None:
    code, said = run(
        project,
        """
import pytest
from shop import Posted, app, bus

@pytest.mark.callboard()
def test_it(callboard, callboard_worker):
    bus.publish_sync(Posted(agent_id="ada"))
    app.broker.join("default", timeout=5000)
    callboard_worker.join()
    assert app.broker.dead_letters == []
    assert callboard.assert_handled("shop.moderate").attempt == 1
""",
    )

    assert code == 0, said
    assert "2 passed" in said


def test_it_says_how_to_give_the_app(tmp_path: Path) -> None:
    code, said = run(tmp_path, "def test_it(callboard): pass")

    assert code != 0
    assert "say which app is tested, in conftest.py" in said


def test_a_mode_that_is_none_is_an_error(project: Path) -> None:
    code, said = run(project, "import pytest\n@pytest.mark.callboard('rabbit')\ndef test_it(callboard): pass")

    assert code != 0
    assert 'the mark callboard takes "memory" and "redis"' in said


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_without_a_server_a_test_on_one_is_skipped_and_fails_in_ci(project: Path, ci: str, outcome: str) -> None:
    code, said = run(
        project,
        "import pytest\n@pytest.mark.callboard('redis')\ndef test_it(callboard): pass",
        REDIS_SERVER_BIN="/no/such/server",
        CI=ci,
    )

    assert (code == 0) is (not ci), said
    assert outcome in said


def test_who_asks_for_nothing_pays_for_nothing(project: Path) -> None:
    """Its fixtures are made when they are asked for, and nothing is imported, or started, before."""
    code, said = run(
        project,
        """
import sys
import threading

def test_it():
    assert not {"workers.testing", "workers.app", "bus", "dramatiq", "redis", "freezegun"} & set(sys.modules)
    assert threading.active_count() == 1
""",
        "-p",
        "no:hypothesispytest",
    )

    assert code == 0, said


def test_what_works_imports_nothing_that_tests(project: Path) -> None:
    program = (
        "import sys, workers.cli, shop; assert 'workers.testing' not in sys.modules and 'pytest' not in sys.modules"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_package_gives_what_its_stub_names() -> None:
    stub = (ROOT / "workers" / "__init__.pyi").read_text()
    named = re.findall(r'"(\w+)"', stub.partition("__all__")[2])

    assert sorted(named) == sorted(workers.__all__)
    assert all(getattr(workers, name).__name__ == name for name in named)
    assert set(named) <= set(dir(workers))
    with pytest.raises(AttributeError, match="module 'workers' has no attribute 'Nothing'"):
        workers.Nothing  # type: ignore[attr-defined] # noqa: B018 - asking is the point
