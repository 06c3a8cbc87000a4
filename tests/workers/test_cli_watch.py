"""``callboard worker --watch``: fresh processes for fresh code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import Bus
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, ROOT, Program, callboard, error_of, program

WATCH = [*CALLBOARD, "worker", "shop:app", "--grace", "1", "--watch"]

WRITTEN_AT = 1_750_000_000

APP = """
from bus import Bus
from workers import App

app = App(Bus())

@app.on("job", name="work")
def work(event):
    print("version", 1, flush=True)
"""


@pytest.fixture
def env(redis_url: str, namespace: str) -> dict[str, str]:
    return {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace, "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def write(folder: Path, version: int | str) -> None:
    """An app of this version, or one that is not Python at all."""
    source = APP.replace("1, flush", f"{version}, flush") if isinstance(version, int) else version
    path = folder / "shop.py"
    path.write_text(source)
    os.utime(path, (WRITTEN_AT, WRITTEN_AT))  # as if all were saved within one second: of one size, they look alike


def wait_for_version(worker: Program, bus: Bus, version: int) -> None:
    """Wait until events are handled by this version."""

    def handled() -> bool:
        bus.publish_sync({"type": "job"})
        return bool(worker.lines) and worker.lines[-1] == f"version {version}"

    wait_until(handled, f"version {version} at work", 20)


def test_a_change_is_at_work_and_an_error_is_told_and_the_next_change_tried(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, 1)
    with program(WATCH, tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("1 process is ready")
        wait_for_version(worker, bus, 1)
        write(tmp_path, 2)
        wait_for_version(worker, bus, 2)
        write(tmp_path, "def")
        worker.wait_for("SyntaxError")
        worker.wait_for("the reload is given up, the old ones go on")
        wait_for_version(worker, bus, 2)
        write(tmp_path, 33)
        wait_for_version(worker, bus, 33)

        assert worker.end() == 0

    assert "changed: shop.py" in worker.errors
    assert "Traceback" not in worker.errors


def test_an_app_that_is_broken_at_the_start_is_tried_again_with_the_next_change(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, "def")
    with program(WATCH, tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("worker 1 waits for the next change")
        write(tmp_path, "app = 1")
        worker.wait_for("is a int, not a workers.App")
        write(tmp_path, 3)
        wait_for_version(worker, bus, 3)

        assert worker.end() == 0

    assert worker.errors.count("SyntaxError") == 1  # it is not tried again and again


@pytest.mark.parametrize("at_first", [True, False], ids=["at the start", "later"])
def test_code_that_hangs_while_it_is_imported_is_overtaken_by_the_next_change(
    bus: Bus, env: dict[str, str], tmp_path: Path, *, at_first: bool
) -> None:
    hanging = "import time\nprint('hangs', flush=True)\nwhile True: time.sleep(0.05)\n"
    write(tmp_path, hanging if at_first else 1)
    with program(WATCH, tmp_path, folder=tmp_path, env=env) as worker:
        if not at_first:
            wait_for_version(worker, bus, 1)
            write(tmp_path, hanging)
        wait_until(lambda: "hangs" in worker.lines, "it to hang", 20)
        write(tmp_path, 22)
        wait_for_version(worker, bus, 22)

        assert worker.end() == 0


def test_only_python_files_of_the_watched_folders_count(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, 1)
    for folder in ("src", "other"):
        (tmp_path / folder).mkdir()
    with program([*WATCH, "src"], tmp_path, folder=tmp_path, env=env) as worker:
        worker.wait_for("1 process is ready")
        (tmp_path / "other" / "ignored.py").write_text("")
        (tmp_path / "src" / "ignored.txt").write_text("")
        (tmp_path / "src" / "seen.py").write_text("")
        worker.wait_for("takes over from")

        assert worker.end() == 0

    assert "changed: seen.py" in worker.errors
    assert "ignored" not in worker.errors


def test_a_watcher_that_is_not_installed_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ModuleNotFoundError(\"No module named 'watchfiles'\")\n")
    env = {"BUS_URL": "redis://127.0.0.1:1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    error = error_of(callboard("worker", "shop", "--watch", folder=tmp_path, env=env), 2)

    assert "pip install 'callboard[dev]'" in error


@pytest.mark.parametrize(
    ("args", "what_to_do"),
    [(("--watch", "nowhere"), "there is no folder 'nowhere'"), (("src",), "folders are for --watch")],
)
def test_folders_that_cannot_be_watched_are_one_line(args: tuple[str, ...], what_to_do: str, tmp_path: Path) -> None:
    env = {"BUS_URL": "redis://127.0.0.1:1"}

    assert what_to_do in error_of(callboard("worker", "shop", *args, folder=tmp_path, env=env), 2)
