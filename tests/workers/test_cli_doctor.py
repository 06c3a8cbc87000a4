"""``callboard doctor``: what it finds, and what it says about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from bus.store.base import Facts
from bus.testing.suspect_checks import suspect
from tests.servers import Server
from tests.waiting import wait_until
from tests.workers.commands import ROOT, callboard, error_of
from tests.workers.running import working
from workers import App
from workers.doctor import Finding, _server, examine

SECRET = "hunter2"
FIT = Facts(
    "Redis 7.2.1",
    version="7.2.1",
    role="master",
    appendonly=True,
    snapshots=True,
    persisting=True,
    policy="noeviction",
    used_bytes=10,
    max_bytes=0,
    clock_ahead_ms=0.1,
    round_trip_ms=0.2,
)


@pytest.fixture
def bus(redis_url: str, namespace: str) -> Iterator[Bus]:
    bus = Bus(redis_url, namespace=namespace)
    yield bus
    bus.close_sync()


def nothing(event: dict[str, Any]) -> None:
    """A handler."""


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


def doctor(*args: str, exit_code: int = 0, env: dict[str, str], folder: Path = ROOT) -> dict[str, Any]:
    """Its findings by check, as a program reads them."""
    done = callboard("doctor", *args, "--json", env=env, folder=folder)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return {finding["check"]: finding for finding in map(json.loads, done.stdout.splitlines())}


# The server.


def test_a_server_that_is_fit_is_all_ok() -> None:
    assert set(verdicts(list(_server(FIT))).values()) == {"ok"}


@pytest.mark.parametrize(
    ("changed", "check", "verdict", "advice"),
    [
        ({"version": "6.2.1", "server": "Redis 6.2.1"}, "server", "problem", "upgrade"),
        ({"version": None}, "server", "warning", "operator"),
        ({"role": "slave"}, "role", "problem", "primary"),
        ({"replicas_missing": 1}, "role", "problem", "min-replicas-to-write"),
        ({"persisting": False}, "persistence", "problem", "disk"),
        ({"appendonly": False}, "persistence", "warning", "appendonly yes"),
        ({"appendonly": False, "snapshots": False}, "persistence", "warning", "appendonly yes"),
        ({"policy": "allkeys-lru"}, "memory policy", "problem", "noeviction"),
        ({"policy": None}, "memory policy", "warning", "noeviction"),
        ({"used_bytes": 79, "max_bytes": 100}, "memory", "ok", ""),
        ({"used_bytes": 81, "max_bytes": 100}, "memory", "warning", "maxmemory"),
        ({"used_bytes": 96, "max_bytes": 100}, "memory", "problem", "maxmemory"),
        ({"denied": ("ZADD",)}, "rights", "problem", "bus/README.md"),
        ({"denied": ("INFO",)}, "rights", "warning", "+info"),
        ({"clock_ahead_ms": 1_900.0}, "clock", "ok", ""),
        ({"clock_ahead_ms": -2_100.0}, "clock", "warning", "NTP"),
        ({"clock_ahead_ms": 90_000.0}, "clock", "problem", "NTP"),
        ({"round_trip_ms": 30.0}, "round trip", "warning", "nearer"),
        ({"round_trip_ms": 600.0}, "round trip", "problem", "nearer"),
    ],
)
def test_what_is_wrong_with_a_server_is_one_finding_with_advice(
    changed: dict[str, Any], check: str, verdict: str, advice: str
) -> None:
    found = {finding.check: finding for finding in _server(FIT._replace(**changed))}

    assert found[check].verdict == verdict
    assert advice in found[check].advice
    assert {one.check for one in found.values() if one.verdict != "ok"} <= {check}


def test_a_real_server_that_is_unfit_is_a_problem_and_exit_code_1(start_server: Callable[..., Server]) -> None:
    server = start_server(maxmemory="5mb", maxmemory_policy="allkeys-lru", requirepass=SECRET)

    found = doctor(env={"BUS_URL": server.url}, exit_code=1)

    assert found["memory policy"]["verdict"] == "problem"
    assert found["server"]["what"] == server.name_and_version
    assert found["work"]["verdict"] == "problem"  # the bus refuses to open on it


def test_a_real_server_that_lacks_replicas_is_a_problem(start_server: Callable[..., Server]) -> None:
    server = start_server(min_replicas_to_write=2)

    found = doctor(env={"BUS_URL": server.url}, exit_code=1)

    assert found["role"]["verdict"] == "problem"
    assert "2 more replicas" in found["role"]["what"]
    refused = error_of(callboard("publish", "job", env={"BUS_URL": server.url}), 1)
    assert "min-replicas-to-write" in refused


def test_a_database_that_the_server_has_not_is_a_problem(redis_url: str) -> None:
    found = doctor(env={"BUS_URL": f"{redis_url.rpartition('/')[0]}/99"}, exit_code=1)

    assert "has no database of the number in the URL" in found["server"]["what"]


def test_a_server_that_is_away_is_one_problem_without_the_password() -> None:
    found = doctor(env={"BUS_URL": f"redis://me:{SECRET}@127.0.0.1:1/0"}, exit_code=1)

    assert list(found) == ["server"]
    assert "cannot be reached" in found["server"]["what"]


def test_memory_is_explained() -> None:
    found = doctor(env={})

    assert [(one["check"], one["verdict"]) for one in found.values()] == [("server", "warning")]
    assert "lost when that ends" in found["server"]["what"]
    assert "BUS_URL" in found["server"]["advice"]


# The work.


def test_a_worker_that_serves_what_is_bound_is_all_ok(bus: Bus) -> None:
    app = App(bus)

    @app.on("job", name="work")
    def work(event: dict[str, Any]) -> None: ...

    with working(app):
        wait_until(lambda: bus.store.census().serving, "the worker to be known")
        found = verdicts(examine(bus, [one.binding for one in app.handlers.values()]))

    del found["persistence"]  # the tests' server keeps nothing
    assert set(found.values()) == {"ok"}


def test_work_that_nobody_does_is_found(bus: Bus) -> None:
    app, newer = App(bus), App(bus)
    app.on("job", name="work")(nothing)
    newer.on("job", topics="agent:*", name="work")(nothing)
    newer.on("job", name="mail")(nothing)
    app.bind()
    bus.publish_sync({"type": "job"})
    bus.store.pause("default")

    found = {one.check: one for one in examine(bus, [newer.handlers["work"].binding, newer.handlers["mail"].binding])}
    same = {one.check: one for one in examine(bus, [newer.handlers["work"].binding])}

    assert found["workers"].verdict == "problem"
    assert "1 jobs wait" in found["workers"].what
    assert found["handlers"].verdict == "warning"
    assert "work" in found["handlers"].what
    assert found["app"].verdict == "warning"
    assert found["app"].what.endswith("not bound, so events are no work for them: mail")
    assert "another version" in same["app"].what
    assert (found["paused"].verdict, found["paused"].what) == ("warning", "default")
    assert found["paused"].advice == "if nobody means it any more: callboard queues resume default"
    assert found["waiting"].what == "nothing but what is paused"


def test_dead_letters_and_old_work_are_found(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.doctor.WAITING_WARNING_S", 0.0)
    app = App(bus)

    @app.on("job", name="work", max_retries=0)
    def work(event: dict[str, Any]) -> None:
        raise RuntimeError("no")

    with working(app):
        bus.publish_sync({"type": "job"})
        wait_until(bus.store.dead_count, "the letter to be buried")
    bus.publish_sync({"type": "job"})

    found = {one.check: one for one in examine(bus)}

    assert (found["dead letters"].verdict, found["dead letters"].what) == ("warning", "1 kept")
    assert found["waiting"].verdict == "warning"
    assert "for work" in found["waiting"].what
    assert "app" not in found


def test_work_that_is_done_one_by_one_is_found(bus: Bus) -> None:
    before = {one.check: one for one in examine(bus)}
    suspect(bus.store)

    found = {one.check: one for one in examine(bus)}

    assert before["suspects"].verdict == "ok"
    assert found["suspects"].verdict == "warning"
    assert "1 jobs wait to be taken a few at a time" in found["suspects"].what


def test_an_app_is_compared_and_people_see_a_table(
    bus: Bus, redis_url: str, namespace: str, server: object, tmp_path: Path
) -> None:
    env = {"BUS_URL": redis_url, "BUS_NAMESPACE": namespace}
    (tmp_path / "shop.py").write_text(
        "from bus import Bus\nfrom workers import App\napp = App(Bus())\n@app.on('job')\ndef work(event): ...\n"
    )

    found = doctor("shop:app", env=env, folder=tmp_path)
    shown = callboard("doctor", "shop:app", env=env, folder=tmp_path)

    assert found["app"]["what"].endswith("shop.work")
    assert shown.returncode == 0
    assert "warning  app" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("no problems, ")


def test_an_app_and_a_url_are_too_much() -> None:
    assert "leave --url" in error_of(callboard("doctor", "shop:app", "--url", f"redis://x:{SECRET}@y"), 2)
