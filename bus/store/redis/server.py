"""Looking at a server from outside: what it is, how it is set up, and what our user may do there. Reads only."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from typing import Any

from redis import exceptions as errors

from bus.store.facts import Facts

__all__ = ["NEEDED", "look"]

ROUNDS = 9

NEEDED = (
    # What the scripts call.
    *(
        f"{name} $key"
        for name in ("DEL", "EXISTS", "GET", "HGETALL", "HKEYS", "HVALS", "LLEN", "LPOP", "PERSIST", "SMEMBERS")
    ),
    *(f"{name} $key f" for name in ("HDEL", "HEXISTS", "HGET", "HMGET", "SADD", "SREM", "RPUSH", "LPUSH")),
    *(f"{name} $key f" for name in ("SISMEMBER", "ZREM", "ZSCORE", "SET", "XDEL")),
    *(f"{name} $key 1" for name in ("EXPIRE", "PEXPIRE", "LINDEX")),
    *(f"{name} $key 0 1" for name in ("LRANGE", "ZRANGE", "ZRANGEBYSCORE", "ZREVRANGE", "XRANGE")),
    "HINCRBY $key f 1",
    "HSET $key f v",
    "HSETNX $key f v",
    "PUBLISH $channel v",
    "TIME",
    "HRANDFIELD $key 1",
    "XADD $key * f v",
    "XTRIM $key MAXLEN 1",
    "ZREMRANGEBYSCORE $key 0 1",
    "ZADD $key 1 f",
    "ZINCRBY $key 1 f",
    # What we call beside them.
    "PING",
    "BLPOP $key 1",
    "ZCARD $key",
    "SUBSCRIBE $channel",
    "UNSUBSCRIBE $channel",
)
"""Every command that we need but EVAL and EVALSHA, with which this is asked. A test holds it against the scripts."""


def look(commands: Any, denied: tuple[str, ...]) -> Facts:
    """The facts, by a redis-py client. Raises redis-py's errors for a server that is away."""
    trips = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        commands.ping()
        trips.append(time.perf_counter() - began)
    try:
        info: dict[str, Any] = commands.info("everything")
    except errors.NoPermissionError:
        info, denied = {}, (*denied, "INFO")
    return Facts(
        server=_name(info),
        version=_text(info.get("redis_version")),
        role=_text(info.get("role")),
        appendonly=_flag(info.get("aof_enabled")),
        snapshots=_snapshots(commands),
        persisting=_persisting(info),
        policy=_text(info.get("maxmemory_policy")),
        used_bytes=info.get("used_memory"),
        max_bytes=info.get("maxmemory"),
        replicas_missing=_replicas_missing(commands, info),
        clock_ahead_ms=_clock_ahead_ms(commands),
        round_trip_ms=statistics.median(trips) * 1000,
        denied=denied,
    )


def _name(info: dict[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}" if "redis_version" in info else "a server that hides its version"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _persisting(info: dict[str, Any]) -> bool | None:
    states = [info[name] for name in ("rdb_last_bgsave_status", "aof_last_write_status") if name in info]
    return all(state == "ok" for state in states) if states else None


def _snapshots(commands: Any) -> bool | None:
    try:
        found: dict[str, Any] = commands.config_get("save")
    except errors.ResponseError:  # denied, or switched off by whoever runs it
        return None
    return bool(found.get("save")) if found else None


def _replicas_missing(commands: Any, info: dict[str, Any]) -> int | None:
    """The server counts those that are there only where it demands some."""
    if "min_slaves_good_slaves" not in info:
        return 0 if info else None
    demanded = 1
    with suppress(errors.ResponseError):  # denied, or switched off by whoever runs it
        demanded = int(commands.config_get("min-replicas-to-write").get("min-replicas-to-write", demanded))
    return max(0, demanded - int(info["min_slaves_good_slaves"]))


def _clock_ahead_ms(commands: Any) -> float | None:
    """To half a round trip: the server read its clock somewhere between our two looks."""
    before = time.time()
    try:
        seconds, micros = commands.time()
    except errors.NoPermissionError:
        return None
    ours = (before + time.time()) / 2
    return float(seconds + micros / 1_000_000 - ours) * 1000
