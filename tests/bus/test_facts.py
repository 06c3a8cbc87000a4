"""What a store says of its server, in both modes, and what a user is told that it may not do."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files

import pytest

from bus import BusUnavailable
from bus.clock import Clock
from bus.store.memory import MemoryStore
from bus.store.redis import RedisStore
from bus.store.redis.server import NEEDED
from tests.servers import Server
from tests.workers.running import ROOT


def test_a_store_in_memory_has_no_server() -> None:
    facts = MemoryStore(Clock(), lease_ms=1000).facts()

    assert facts.server == "memory"
    assert facts.denied == ()


def test_a_server_is_described_without_being_opened_or_written_to(start_server: Callable[..., Server]) -> None:
    server = start_server(appendonly=True, maxmemory="50mb", maxmemory_policy="allkeys-lru", save="60 1000")
    with closing(RedisStore(server.url, "facts", lease_ms=1000)) as store, server.client() as client:
        facts = store.facts()  # on a server that open() refuses

        assert facts.server == server.name_and_version
        assert facts.version is not None
        assert facts.role == "master"
        assert (facts.appendonly, facts.snapshots, facts.persisting) == (True, True, True)
        assert facts.policy == "allkeys-lru"
        assert facts.max_bytes == 50 * 1024 * 1024
        assert facts.used_bytes is not None
        assert 0 < facts.used_bytes < facts.max_bytes
        assert facts.clock_ahead_ms is not None
        assert abs(facts.clock_ahead_ms) < 1_000
        assert 0 < facts.round_trip_ms < 1_000
        assert facts.denied == ()
        assert client.dbsize() == 0


def test_what_a_user_may_not_do_is_named(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with server.client() as client:
        everything = ("~callboard:{facts}:*", "&callboard:{facts}:*", "+@all")
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", *everything, "-zadd", "-publish", "-info", "-config"
        )
        client.execute_command("ACL", "SETUSER", "mute", "on", ">pw", *everything, "-@scripting")
        client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~other:*", "+@all")
    found = {}
    for user in ("app", "mute", "guest"):
        with closing(RedisStore(f"redis://{user}:pw@127.0.0.1:{server.port}", "facts", lease_ms=1000)) as store:
            found[user] = store.facts()

    assert sorted(found["app"].denied) == ["INFO", "PUBLISH", "ZADD"]
    assert found["app"].version is None
    assert found["app"].snapshots is None
    assert "EVALSHA" in found["mute"].denied
    assert found["mute"].version is not None  # what else can be told is
    assert {"EVAL", "EVALSHA"} <= {*found["guest"].denied}  # no key of ours is its own


def test_the_user_of_the_readme_lacks_nothing(start_server: Callable[..., Server]) -> None:
    server = start_server()
    readme = (ROOT / "bus" / "README.md").read_text("utf-8")
    match = re.search(r"`(~callboard:[^`]+)`", readme)
    assert match is not None
    rules = match[1].replace("NAMESPACE", "facts").split()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rules)

    with closing(RedisStore(f"redis://app:pw@127.0.0.1:{server.port}", "facts", lease_ms=1000)) as store:
        store.open()
        facts = store.facts()

    assert facts.denied == ()
    assert facts.server == server.name_and_version


def test_every_command_of_the_scripts_is_among_those_that_are_asked_for() -> None:
    called = set()
    for file in (files("bus.store") / "lua").iterdir():
        called |= set(re.findall(r"call\('([A-Z]+)'", file.read_text("utf-8")))

    assert len(called) > 30
    assert called <= {command.split()[0] for command in NEEDED}


def test_a_server_that_is_away_is_said_to_be() -> None:
    store = RedisStore("redis://me:hunter2@127.0.0.1:1", "facts", lease_ms=1000)
    with closing(store), pytest.raises(BusUnavailable) as failed:
        store.facts()

    assert "hunter2" not in str(failed.value)
