"""``AgentEventBus`` on a real server: what the old system tested with a mock, and what broke it in production."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from bus import AgentEventBus, Bus, Delivery, UnsafeServer
from tests.bus.sockets import Socket
from tests.servers import Server
from tests.waiting import eventually, wait_until
from tests.workers.commands import Program, program

StartServer = Callable[..., Server]

AWAY = "redis://canary-user:canary-word@127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def in_a_namespace_of_its_own(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUS_NAMESPACE", namespace)
    monkeypatch.delenv("BUS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def event(n: int) -> dict[str, Any]:
    return {"type": "thought", "n": n}


def kill(server: Server, kind: str) -> int:
    """Kill every connection of a kind but our own; how many there were."""
    with server.client() as client:
        return int(client.client_kill_filter(_type=kind, skipme=True))


# The five kinds of test that the old system had, and its way from end to end.


async def test_an_event_is_written_once_with_its_topics(redis_url: str) -> None:
    agents = AgentEventBus(redis_url)
    receipt = await agents.publish(event(1), ["global", "agent:ada", "global"])
    await agents.close_redis()

    async with Bus(redis_url) as bus:
        [entry] = [item async for item in bus.history()]
    assert isinstance(entry, Delivery)
    assert (entry.envelope.type, entry.envelope.topics, entry.envelope.data) == (
        "thought",
        ("global", "agent:ada"),
        {"n": 1},
    )
    assert entry.position == receipt.position


async def test_what_one_publishes_another_ones_sockets_hear(redis_url: str) -> None:
    here, there = AgentEventBus(redis_url), AgentEventBus(redis_url)
    near, far = Socket(), Socket()
    await here.subscribe("ada", near)
    await there.subscribe("bob", far)

    for n in range(20):
        await here.publish(event(n))
    await far.hears(20)
    await near.hears(20)
    await here.close_redis()
    await there.close_redis()

    assert near.heard == far.heard == [event(n) for n in range(20)]


async def test_without_a_server_it_goes_on_in_memory_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The old bus meant to and never did, because its client connected later than it looked."""
    caplog.set_level(logging.DEBUG)
    agents = AgentEventBus(AWAY)
    socket = Socket()
    await agents.subscribe("ada", socket)
    await agents.publish(event(1))

    assert await socket.hears(1) == [event(1)]
    assert "in fallback open" in repr(agents)
    await agents.close_redis()
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "IN MEMORY" in warning.getMessage()
    assert "canary" not in caplog.text + repr(agents)


async def test_a_server_that_came_back_is_found_when_it_is_opened_again(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    agents = AgentEventBus(server.url)
    await agents.subscribe_to_redis()
    assert "in fallback open" in repr(agents)
    await agents.close_redis()

    server.start()
    await agents.publish(event(1))

    assert "in redis open" in repr(agents)
    await agents.close_redis()
    async with Bus(server.url) as bus:
        assert len([item async for item in bus.history()]) == 1


async def test_the_environment_names_the_server(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    for agents in (AgentEventBus(), AgentEventBus("")):
        await agents.subscribe_to_redis()
        assert "in redis open" in repr(agents)
        await agents.close_redis()


async def test_a_bus_of_the_apps_own_keeps_its_own_rule_for_an_unfit_server(start_server: StartServer) -> None:
    server = start_server(maxmemory="50mb", maxmemory_policy="allkeys-lru")
    agents = AgentEventBus(bus=Bus(server.url))

    with pytest.raises(UnsafeServer):
        await agents.publish(event(1))
    await agents.close_redis()


async def test_a_graceful_shutdown_leaves_no_task_and_no_connection(server: Server) -> None:
    agents = AgentEventBus(server.url)
    listening = asyncio.create_task(agents.subscribe_to_redis())  # as the old app started it
    await listening
    sockets = [Socket() for _ in range(10)]
    for number, socket in enumerate(sockets):
        await agents.subscribe(f"agent {number}", socket, [f"t{number}"])
    await agents.publish(event(1), ["t1"])
    await sockets[1].hears(1)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(tasks) == 11, "a task for each socket, and the hub"

    listening.cancel()  # as the old app stopped it
    async with asyncio.timeout(5):
        await agents.close_redis()

    assert all(task.done() for task in tasks)
    with server.client() as client:
        await eventually(lambda: len(client.client_list()) == 1, "every connection but the test's own to be closed")


async def test_several_topics_reach_whoever_asked_for_any_of_them_once(redis_url: str) -> None:
    agents, elsewhere = AgentEventBus(redis_url), AgentEventBus(redis_url)
    wanted: list[list[str] | None] = [["a"], ["a", "b"], ["b", "c", "b"], ["d"], None]
    sockets = [Socket() for _ in wanted]
    for number, (socket, topics) in enumerate(zip(sockets, wanted, strict=True)):
        await agents.subscribe(f"agent {number}", socket, topics)

    await elsewhere.publish(event(1), ["a", "b", "c"])
    await elsewhere.publish(event(2), ["b", "global"])
    await elsewhere.publish(event(3), ["a", "d", "global", "c"])
    for socket, count in zip(sockets, [2, 3, 3, 1, 2], strict=True):
        await socket.hears(count)
    await agents.close_redis()
    await elsewhere.close_redis()

    assert [socket.numbers for socket in sockets] == [[1, 3], [1, 2, 3], [1, 2, 3], [3], [2, 3]]


async def test_from_end_to_end(server: Server) -> None:
    """Connect, subscribe, publish, post, leave, shut down: the old system's own flow."""
    agents = AgentEventBus(server.url)
    ada, bob = Socket(), Socket()
    await agents.subscribe_to_redis()
    await agents.subscribe("ada", ada, ["global", "agent:bob"])
    await agents.subscribe("bob", bob, ["alerts"])

    await agents.publish(event(1))
    await agents.broadcast_post({"sender_id": "bob", "post_type": "alert", "text": "Fire!"})
    await ada.hears(2)
    await bob.hears(1)
    await agents.unsubscribe("bob", bob)
    await agents.broadcast_post({"sender_id": "bob", "post_type": "alert", "text": "It was a drill."})
    await ada.hears(3)
    await agents.close_redis()

    assert [heard["type"] for heard in ada.heard] == ["thought", "agent_post", "agent_post"]
    assert [heard["post"]["text"] for heard in bob.heard] == ["Fire!"]
    assert len(asyncio.all_tasks()) == 1


# What broke it.


async def test_a_listener_outlives_killed_connections(server: Server) -> None:
    """One dropped connection ended the old bus's listener for ever."""
    agents, elsewhere = AgentEventBus(server.url), AgentEventBus(server.url)
    socket = Socket()
    await agents.subscribe("ada", socket)
    killed = 0
    for n in range(100):
        await elsewhere.publish(event(n))
        if n % 10 == 5:
            await eventually(lambda: kill(server, "pubsub"), "a subscription to be there, and killed")
            killed += 1
    await socket.hears(100)
    await agents.close_redis()
    await elsewhere.close_redis()

    assert killed == 10
    assert socket.heard == [event(n) for n in range(100)]


async def test_a_server_that_went_away_is_found_again(start_server: StartServer) -> None:
    server = start_server(appendonly=True)
    agents = AgentEventBus(server.url)
    socket = Socket()
    await agents.subscribe("ada", socket)
    await agents.publish(event(1))
    await socket.hears(1)

    await asyncio.to_thread(server.restart)
    await agents.publish(event(2))

    assert await socket.hears(2) == [event(1), event(2)]
    await agents.close_redis()


async def test_the_password_is_in_no_log_and_no_error(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The old bus logged the server's URL."""
    caplog.set_level(logging.DEBUG)
    server = start_server(requirepass="canary:p@ss")
    agents = AgentEventBus(bus=Bus(server.url, deadline_s=0.3), bridge=True)
    socket = Socket()
    await agents.subscribe("ada", socket)
    await agents.publish(event(1))
    await socket.hears(1)
    await eventually(lambda: kill(server, "pubsub") + kill(server, "normal"), "connections to be killed")
    await agents.publish(event(2))
    await socket.hears(2)
    said = repr(agents)
    await asyncio.to_thread(server.stop)
    with pytest.raises(Exception, match=r"whether|not published") as failure:
        await agents.publish(event(3))
    await agents.close_redis()

    assert "canary" not in caplog.text + said + str(failure.value) + repr(failure.value)


# Two server processes and one Redis.


def heard_by_socket(server: Program) -> dict[str, list[dict[str, Any]]]:
    heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in server.lines:
        name, said = json.loads(line)
        heard[name].append(said)
    return heard


@pytest.mark.fault
def test_two_servers_hear_each_other_once_and_in_order_through_20_killed_connections(
    server: Server, namespace: str, tmp_path: Path
) -> None:
    count, sockets = 300, 3
    env = {"REDIS_URL": server.url, "BUS_NAMESPACE": namespace}

    def serving(name: str) -> list[str]:
        return [sys.executable, "-m", "tests.bus.agent_server", name, str(sockets), str(count)]

    with (
        program(serving("east"), tmp_path, env=env, stdin=subprocess.PIPE) as east,
        program(serving("west"), tmp_path, env=env, stdin=subprocess.PIPE) as west,
    ):
        both = (east, west)
        for each in both:
            each.wait_for("ready")
        for each in both:
            assert each.process.stdin is not None
            each.process.stdin.write(b"go\n")
            each.process.stdin.flush()
        killed = 0
        for goal in range(100, 2000, 100):
            wait_until(lambda goal=goal: sum(len(each.lines) for each in both) >= goal, "the servers to go on", 20)  # type: ignore[misc]
            kind = "normal" if goal % 400 == 0 else "pubsub"
            killed += wait_until(lambda kind=kind: kill(server, kind), "a connection to be killed")  # type: ignore[misc]
        wait_until(lambda: all(len(each.lines) >= 2 * count * sockets for each in both), "every socket to hear all", 30)
        for each in both:
            assert each.process.stdin is not None
            each.process.stdin.close()
            assert each.process.wait(10) == 0, each.errors
        heard = heard_by_socket(east) | heard_by_socket(west)

    assert killed >= 20
    assert len(heard) == 2 * sockets
    for said in heard.values():
        assert said == heard["east-0"], "two sockets heard different things, or in another order"
        for name in ("east", "west"):
            assert [one["n"] for one in said if one["by"] == name] == list(range(count))


# The bridge to servers that still run the old bus.


class OldServer:
    """What is left of it: it hears every old channel, and publishes one copy for each topic."""

    def __init__(self, server: Server) -> None:
        self._client = server.client()
        self._channels = self._client.pubsub(ignore_subscribe_messages=True)
        self._channels.psubscribe("agent_events:*")
        self.heard: list[tuple[str, Any]] = []

    def publish(self, event: dict[str, Any], topics: list[str]) -> None:
        for topic in topics:
            self._client.publish(f"agent_events:{topic}", json.dumps({"topics": topics, "event": event}))

    def look(self) -> list[tuple[str, Any]]:
        """Everything that it has heard by now, by channel."""
        while (message := self._channels.get_message(timeout=0.01)) is not None:
            self.heard.append((message["channel"].decode(), json.loads(message["data"])))
        return self.heard

    async def hears(self, count: int) -> list[tuple[str, Any]]:
        await eventually(lambda: len(self.look()) >= count, f"the old server to hear {count} messages", 10)
        return self.heard

    def close(self) -> None:
        self._channels.close()
        self._client.close()


@pytest.fixture
def old(server: Server) -> Any:
    old = OldServer(server)
    yield old
    old.close()


async def bridged(server: Server, namespace: str, **options: Any) -> AgentEventBus:
    """One with a bridge that is at work."""
    agents = AgentEventBus(server.url, bridge=True, **options)
    await agents.subscribe_to_redis()
    await at_work(server, namespace)
    return agents


def patterns(client: redis.Redis) -> list[Any]:
    return [each for each in client.client_list() if each["psub"] == "1"]


async def at_work(server: Server, namespace: str) -> None:
    with server.client() as client:
        await eventually(
            lambda: client.get(f"callboard:{{{namespace}}}:bridge:cursor") and len(patterns(client)) == 2,
            "a bridge to carry both ways (the old server listens as well)",
            10,
        )


async def test_what_the_bridge_sends_has_the_old_form(server: Server, namespace: str, old: OldServer) -> None:
    agents = await bridged(server, namespace)

    await agents.publish(event(1), ["global", "category:fund research"])

    assert await old.hears(2) == [
        ("agent_events:global", {"topics": ["global", "category:fund research"], "event": event(1)}),
        ("agent_events:category:fund research", {"topics": ["global", "category:fund research"], "event": event(1)}),
    ]
    await agents.close_redis()


async def test_an_old_event_of_several_topics_comes_in_once_and_is_not_echoed(
    server: Server, namespace: str, old: OldServer
) -> None:
    agents = await bridged(server, namespace)
    socket = Socket()
    await agents.subscribe("ada", socket, ["global", "agent:bob", "category:fund research"])

    old.publish(event(1), ["global", "agent:bob", "category:fund research"])
    old.publish(event(2), ["agent:bob"])
    old.publish(event(2), ["agent:bob"])  # two equal events are two
    old.publish(event(3), ["global", "agent:bob", "global"])
    await agents.publish(event(4))
    old.publish(event(5), ["global"])
    await socket.hears(6)
    await old.hears(10)
    await agents.close_redis()

    assert sorted(socket.numbers) == [1, 2, 2, 3, 4, 5]
    assert [n for n in socket.numbers if n != 4] == [1, 2, 2, 3, 5]
    assert [message["event"]["n"] for _, message in old.look()].count(4) == 1
    assert len(old.look()) == 3 + 1 + 1 + 3 + 1 + 1, "its own copies, and the one event of ours"


async def test_of_several_bridges_one_works_and_another_takes_over(
    server: Server, namespace: str, old: OldServer
) -> None:
    first = await bridged(server, namespace)
    second = AgentEventBus(server.url, bridge=True)
    socket = Socket()
    await second.subscribe("ada", socket)

    old.publish(event(1), ["global"])
    await first.publish(event(2))
    await socket.hears(2)
    await first.close_redis()
    await second.publish(event(3))  # while nobody carries it
    await at_work(server, namespace)
    await eventually(lambda: 3 in [message["event"]["n"] for _, message in old.look()], "it to be carried", 10)
    old.publish(event(4), ["global"])
    await second.publish(event(5))
    await socket.hears(5)
    await eventually(lambda: [message["event"]["n"] for _, message in old.look()].count(5), "the last to come out", 10)
    await second.close_redis()

    assert sorted(socket.numbers) == [1, 2, 3, 4, 5]
    assert [message["event"]["n"] for _, message in old.heard] == [1, 2, 3, 4, 5]


async def test_the_bridge_comes_back_from_killed_connections_and_loses_nothing_outwards(
    server: Server, namespace: str, old: OldServer, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as client:
        [olds] = patterns(client)
    agents = await bridged(server, namespace)
    for n in range(60):
        await agents.publish(event(n))
        if n % 20 == 10:
            assert kill(server, "normal")
            with server.client() as client:
                await eventually(lambda: len(patterns(client)) == 2, "the bridge to be back")
                [bridges] = [each["id"] for each in patterns(client) if each["id"] != olds["id"]]
                assert client.client_kill_filter(_id=bridges) == 1
    await eventually(lambda: len({message["event"]["n"] for _, message in old.look()}) == 60, "all to come out", 20)
    await agents.close_redis()

    numbers = [message["event"]["n"] for _, message in old.look()]
    assert list(dict.fromkeys(numbers)) == list(range(60))
    assert "the bridge to the old channels is down and tries again" in caplog.text


async def test_what_is_no_message_of_the_old_bus_is_left_out(
    server: Server, namespace: str, old: OldServer, caplog: pytest.LogCaptureFixture
) -> None:
    agents = await bridged(server, namespace)
    socket = Socket()
    await agents.subscribe("ada", socket)
    bad: list[bytes] = [
        b"",
        b"canary",
        b"[]",
        b"\xff",
        b'{"topics": "global", "event": {}}',
        b'{"topics": [1], "event": {}}',
    ]
    bad += [b'{"topics": ["global"], "event": 1}', b'{"topics": [], "event": {}}', b"[" * 100_000]
    bad += [json.dumps({"topics": ["global"], "event": {"x": float("nan")}}).encode()]
    with server.client() as client:
        for data in bad:
            client.publish("agent_events:global", data)
    old.publish(event(1), ["global"])

    assert await socket.hears(1) == [event(1)]
    await agents.close_redis()
    assert "canary" not in caplog.text


async def test_inboxes_do_not_cross_the_bridge(server: Server, namespace: str, old: OldServer) -> None:
    agents = await bridged(server, namespace)
    await agents.broadcast_post({"sender_id": "ada", "recipient_id": "bob"})
    await agents.publish(event(1))
    [(channel, message)] = await old.hears(1)
    await agents.close_redis()

    assert (channel, message["event"]) == ("agent_events:global", event(1))


async def test_in_memory_there_is_no_bridge_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    agents = AgentEventBus("memory://", bridge=True)
    await agents.publish(event(1))
    await agents.close_redis()

    assert "there is no bridge" in caplog.text


async def test_a_worker_is_told_what_an_old_server_published(server: Server, namespace: str, old: OldServer) -> None:
    """The bridge publishes on the bus itself: listeners, history and handlers see it as any other event."""
    agents = await bridged(server, namespace)
    async with Bus(server.url) as bus, bus.listen("agent:*") as listener:
        old.publish({"type": "agent_post", "post": {"sender_id": "bob"}}, ["global", "agent:bob"])
        item = await anext(listener)
    await agents.close_redis()

    assert isinstance(item, Delivery)
    assert (item.envelope.type, item.envelope.topics) == ("agent_post", ("global", "agent:bob"))


# As bus/README.md has it, without client|setinfo, which Redis 7.0 does not know and no client insists on.
LEAST = (
    "on >pw ~callboard:{NAMESPACE}:* &callboard:{NAMESPACE}:* -@all +@scripting -script|flush -function "
    "+@read +@write +@sortedset +@pubsub -psubscribe +time +ping +hello +auth +client|setname +select "
    "-@dangerous +info &agent_events:* +psubscribe +multi +exec"
)


async def test_the_rights_that_the_readme_names_are_enough_for_the_bridge(
    start_server: StartServer, namespace: str
) -> None:
    server = start_server()
    with server.client() as client:
        rules = LEAST.replace("{NAMESPACE}", f"{{{namespace}}}").split(" ")
        assert client.execute_command("ACL", "SETUSER", "least", *rules)
    agents = AgentEventBus(f"redis://least:pw@127.0.0.1:{server.port}/0", bridge=True)
    socket = Socket()
    await agents.subscribe("ada", socket)
    with server.client() as client:
        await eventually(
            lambda: client.get(f"callboard:{{{namespace}}}:bridge:cursor") and patterns(client), "the bridge to work"
        )
    old = OldServer(server)
    old.publish(event(1), ["global"])
    await socket.hears(1)
    await agents.publish(event(2))
    await old.hears(2)
    old.close()
    await agents.close_redis()

    assert socket.numbers == [1, 2]
