"""Health endpoints: what they answer, when they refuse, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from tests.servers import Server, free_port
from tests.waiting import wait_until
from tests.workers.commands import CALLBOARD, callboard, error_of, program
from tests.workers.running import working
from workers import App
from workers.health import LOOK_S, REQUEST_S, Endpoint, WorkerHealth, reasons_of

APP = """
import os, time
from pathlib import Path
from bus import Bus
from workers import App

app = App(Bus())

@app.on("block", name="block")
async def block(event):
    Path("blocking").touch()
    while not Path("unblock").exists():
        time.sleep(0.01)

@app.lifespan
async def gate():
    import asyncio
    while not Path("open").exists():
        await asyncio.sleep(0.01)
    yield
"""


@pytest.fixture
def app(redis_url: str, namespace: str) -> Iterator[App]:
    app = App(Bus(redis_url, namespace=namespace))
    yield app
    app.bus.close_sync()


def nothing(event: dict[str, Any]) -> None:
    """A handler."""


def get(port: int, path: str = "/ready") -> tuple[int, dict[str, Any]]:
    """The status and the body; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())
    except OSError:
        return 0, {}


# The endpoint.


def test_it_is_live_from_the_start_and_ready_when_there_is_no_reason_left() -> None:
    with Endpoint("127.0.0.1", 0) as endpoint:
        assert get(endpoint.port, "/live") == (200, {"status": "live"})
        assert get(endpoint.port) == (503, {"status": "not ready", "reasons": ["it is starting"]})
        endpoint.reasons = list
        endpoint.more = lambda: {"workers": []}
        assert get(endpoint.port) == (200, {"status": "ready", "workers": []})
        assert get(endpoint.port, "/")[0] == 404


def test_closing_waits_for_no_client_that_says_nothing() -> None:
    endpoint = Endpoint("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        wait_until(lambda: threading.active_count() > 2, "the request's thread")
        began = time.monotonic()
        endpoint.close()
        took_s = time.monotonic() - began

    assert took_s < 5
    assert get(endpoint.port) == (0, {})


def test_closing_waits_for_no_client_that_is_never_done() -> None:
    endpoint = Endpoint("127.0.0.1", 0)
    over = threading.Event()
    with socket.create_connection(("127.0.0.1", endpoint.port)) as client:

        def trickle() -> None:
            with suppress(OSError):
                while not over.wait(0.1):
                    client.send(b"G")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        wait_until(lambda: threading.active_count() > 3, "the request's thread")
        closing = threading.Thread(target=endpoint.close, daemon=True)
        closing.start()
        closing.join(5)
        closed = not closing.is_alive()
        over.set()
        trickling.join()
    closing.join()

    assert closed


@contextmanager
def trickling(port: int) -> Iterator[threading.Thread]:
    """A client whose request never comes to an end, a byte at a time; its thread ends when it is cut off."""
    ending = threading.Event()

    def trickle() -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /ready HTTP/1.0\r\nx: ")
            with suppress(OSError):
                while not ending.wait(0.05):
                    client.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield thread
    finally:
        ending.set()
        thread.join(10)


def test_a_client_that_trickles_is_cut_off() -> None:
    with Endpoint("127.0.0.1", 0) as endpoint, trickling(endpoint.port) as client:
        wait_until(lambda: not client.is_alive(), "it to be cut off", REQUEST_S + 3)

        assert get(endpoint.port, "/live")[0] == 200


def test_closing_waits_for_an_answer_under_way() -> None:
    endpoint = Endpoint("127.0.0.1", 0)
    asked, go_on = threading.Event(), threading.Event()

    def reasons() -> list[str]:
        asked.set()
        go_on.wait(10)
        return ["it was asked"]

    endpoint.reasons = reasons
    answers: list[tuple[int, dict[str, Any]]] = []
    client = threading.Thread(target=lambda: answers.append(get(endpoint.port)))
    client.start()
    assert asked.wait(10)
    closing = threading.Thread(target=endpoint.close)
    closing.start()
    wait_until(lambda: get(endpoint.port, "/live") == (0, {}), "it to listen no more")
    go_on.set()
    closing.join(10)
    client.join(10)

    assert answers == [(503, {"status": "not ready", "reasons": ["it was asked"]})]


def test_a_master_is_ready_when_all_of_its_workers_are() -> None:
    well = {"worker": 1, "pid": 5, "booted": True, "health": []}
    starting = {"worker": 2, "pid": 6, "booted": False, "health": None}
    silent = {"worker": 3, "pid": 7, "booted": True, "health": None}
    ill = {"worker": 4, "pid": 8, "booted": True, "health": ["the bus does not answer"]}

    assert reasons_of([well]) == []
    assert reasons_of([well, starting, silent, ill]) == [
        "worker 2: it is starting",
        "worker 3: it has told nothing for some seconds",
        "worker 4: the bus does not answer",
    ]


# A worker's own.


def health_of(app: App, **options: float) -> WorkerHealth:
    def served() -> set[str]:
        return {f"default|{name}" for name in app.handlers}

    health = WorkerHealth(app.bus, served, lambda: app.runtime.loop.lag_s, app.broker.staff.limit_of, **options)
    app.broker.add_middleware(health.pulse)
    return health


def test_a_worker_that_works_is_ready(app: App) -> None:
    app.on("job", name="work")(nothing)
    health = health_of(app, stuck_s=0.1)

    with working(app):
        for _ in range(20):
            app.bus.publish_sync({"type": "job"})
        app.broker.join("default", timeout=5000)
        assert health.reasons() == []


def test_work_that_waits_while_nothing_is_taken_is_a_reason_and_paused_work_is_none(app: App) -> None:
    release, begun = threading.Event(), threading.Event()

    @app.on("job", name="work")
    def work(event: dict[str, Any]) -> None:
        begun.set()
        release.wait(20)

    @app.on("rest", name="rest")
    def rest(event: dict[str, Any]) -> None: ...

    health = health_of(app, stuck_s=0.3)
    app.bus.usable()
    app.bus.store.pause("default|rest")
    with working(app, threads=1):
        app.bus.publish_sync({"type": "rest"})
        wait_until(lambda: health.reasons() == [], "a first look")
        app.bus.publish_sync({"type": "job"})
        assert begun.wait(5)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.5, "more time to pass than work may wait")
        assert health.reasons() == []  # nothing waits but what is paused
        for _ in range(300):
            app.bus.publish_sync({"type": "job"})
        try:
            (reason,) = wait_until(health.reasons, "a reason", 10)
        finally:
            release.set()

        assert reason.startswith("work waits, and none was taken for ")
        wait_until(lambda: health.reasons() == [], "it to be ready again", 10)


def test_work_that_waits_for_a_limit_of_its_own_is_none_until_something_else_waits(app: App) -> None:
    release, begun, other = threading.Event(), threading.Event(), threading.Event()

    @app.on("job", name="work", max_concurrent=1)
    async def work(event: dict[str, Any]) -> None:
        begun.set()
        await asyncio.to_thread(release.wait, 20)

    @app.on("other", name="other")
    def wait(event: dict[str, Any]) -> None:
        other.set()
        release.wait(20)

    health = health_of(app, stuck_s=0.3)
    with working(app, threads=1):
        for _ in range(2):
            app.bus.publish_sync({"type": "job"})
        assert begun.wait(5)
        assert health.reasons() == []  # from here on it would have waited
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2 * LOOK_S, "two looks more")
        assert health.reasons() == []

        for _ in range(4):  # more than a thread has fetched ahead
            app.bus.publish_sync({"type": "other"})
        assert other.wait(5)
        wait_until(lambda: any("work waits" in reason for reason in health.reasons()), "the other's wait to be told", 8)

        release.set()
        wait_until(lambda: not health.reasons(), "it to be ready again", 8)


def test_a_bus_that_is_away_is_a_reason_that_goes(start_server: Callable[..., Server], namespace: str) -> None:
    server = start_server()
    app = App(Bus(server.url, namespace=namespace))
    app.on("job", name="work")(nothing)
    health = health_of(app)
    with working(app):
        assert health.reasons() == []
        server.kill()
        wait_until(lambda: health.reasons() == ["the bus does not answer"], "it to be noticed", 10)
        server.start()
        wait_until(lambda: health.reasons() == [], "it to be ready again", 10)
    app.bus.close_sync()


def test_a_handler_that_blocks_the_loop_is_a_reason(app: App) -> None:
    release, begun = threading.Event(), threading.Event()

    @app.on("job", name="work")
    async def work(event: dict[str, Any]) -> None:
        begun.set()
        release.wait(20)

    health = health_of(app)
    with working(app):
        app.bus.publish_sync({"type": "job"})
        assert begun.wait(5)
        (reason,) = wait_until(health.reasons, "a reason", 10)
        release.set()

        assert reason.startswith("the event loop is ")
        assert reason.endswith(" s late: does an async handler block?")
        wait_until(lambda: health.reasons() == [], "the loop to go on", 10)


# The command.


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_answers_while_it_starts_works_and_is_stuck(
    processes: int, redis_url: str, namespace: str, server: object, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    port = free_port()
    command = [*CALLBOARD, "worker", "shop", "--health-port", str(port), "--processes", str(processes), "--grace", "1"]
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}
    bus = Bus(redis_url, namespace=namespace)
    with program(command, tmp_path, folder=tmp_path, env=env) as worker:
        wait_until(lambda: get(port, "/live")[0] == 200, "it to be live", 20)
        assert get(port)[0] == 503
        (tmp_path / "open").touch()
        wait_until(lambda: get(port)[0] == 200, "it to be ready", 20)
        assert len(get(port)[1].get("workers", [])) == (processes if processes > 1 else 0)
        bus.publish_sync({"type": "block"})
        wait_until((tmp_path / "blocking").exists, "the handler to block")
        wait_until(lambda: get(port)[0] == 503, "that to be noticed", 20)
        assert "the event loop is" in str(get(port)[1]["reasons"])
        (tmp_path / "unblock").touch()
        wait_until(lambda: get(port)[0] == 200, "it to be ready again", 20)

        assert worker.end() == 0

    bus.close_sync()
    assert get(port) == (0, {})
    assert "GET /" not in worker.errors


def test_a_port_that_is_taken_is_one_line_and_exit_code_2() -> None:
    with Endpoint("127.0.0.1", 0) as taken:
        for processes in ("1", "2"):
            done = callboard(
                "worker", "shop", "--health-port", str(taken.port), "--processes", processes,
                env={"BUS_URL": "redis://127.0.0.1:1"},
            )  # fmt: skip
            assert "cannot be had: Address already in use" in error_of(done, 2)
