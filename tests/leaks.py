"""What a test may not leave behind: threads, tasks, sockets, connections on the server, keys outside its namespace.

``*_now`` is looked at before a test; ``*_left(before)`` describes what is there after it and was not before, one line
each. ``tests/conftest.py`` runs these around every test.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import redis

from tests.servers import LAUNCHER
from tests.waiting import NeverHappened, wait_until

__all__ = [
    "clear_keys",
    "connections_left",
    "connections_now",
    "sockets_left",
    "sockets_now",
    "stray_keys",
    "tasks_left",
    "threads_left",
    "threads_now",
]

PATIENCE_S = 2.0  # for what is still closing
_DESCRIPTORS = Path("/proc/self/fd")


def threads_now() -> frozenset[threading.Thread]:
    """The threads that are alive."""
    return frozenset(threading.enumerate())


def threads_left(before: frozenset[threading.Thread]) -> list[str]:
    """Threads that a test started and did not end, daemons too; not the session's own launcher of servers."""

    def new() -> list[str]:
        started = threads_now() - before
        return [f"thread {t.name!r}" for t in started if not t.name.startswith(LAUNCHER)]

    return _what_stays(new)


def tasks_left() -> list[str]:
    """Tasks of the running loop besides the one that asks, each with the place where it waits. Never waits itself."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return [f"task {task.get_name()!r}, {_whereabouts(task)}" for task in others]


def sockets_now() -> frozenset[str]:
    """This process's open sockets, by inode. Linux only; elsewhere there are none to be seen."""
    found = set()
    for descriptor in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        try:
            target = str(descriptor.readlink())
        except OSError:  # closed meanwhile; the descriptor that lists the folder always is
            continue
        if target.startswith("socket:"):
            found.add(target)
    return frozenset(found)


def sockets_left(before: frozenset[str]) -> list[str]:
    """Sockets that a test opened and did not close, event loops' own pairs included."""
    return _what_stays(lambda: sorted(sockets_now() - before))


def connections_now(client: redis.Redis) -> frozenset[str]:
    """The ids of the server's clients, without the one that asks."""
    return frozenset(_clients(client))


def connections_left(client: redis.Redis, before: frozenset[str]) -> list[str]:
    """Connections to the server that a test made, from any process, and did not close."""

    def new() -> list[str]:
        return [
            f"connection {id_} on the server (last command {each['cmd']}, {each.get('name') or 'no name'})"
            for id_, each in _clients(client).items()
            if id_ not in before
        ]

    return _what_stays(new)


def stray_keys(client: redis.Redis, namespace: str) -> list[str]:
    """Keys in any of the server's databases that are not under this namespace, or one whose name begins with it."""
    ours = f"callboard:{{{namespace}".encode()
    strays = [f"key {key!r} in database 0" for key in client.scan_iter(count=1000) if not key.startswith(ours)]
    keyspace: dict[str, Any] = client.info("keyspace")
    return strays + [f"keys in database {name[2:]}: {what}" for name, what in keyspace.items() if name != "db0"]


def clear_keys(client: redis.Redis) -> None:
    """Leave an empty server to the next test."""
    client.flushall()


def _clients(client: redis.Redis) -> dict[str, dict[str, str]]:
    own = str(client.client_id())
    return {each["id"]: each for each in client.client_list() if each["id"] != own}


def _whereabouts(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    place = f"waits at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "not started"
    return f"{task.get_coro()!r} {place}"


def _what_stays(look: Callable[[], Collection[str]]) -> list[str]:
    """What ``look`` still sees once garbage has been collected and its patience is at an end."""
    if not look():
        return []
    gc.collect()  # what only a reference cycle holds is no leak, and warns of itself if it should have been closed
    try:
        wait_until(lambda: not look(), "leaks to go away", PATIENCE_S)
    except NeverHappened:
        return list(look())
    return []
