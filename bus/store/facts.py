"""What a store knows of the server below it: for people who want to know whether that is fit, never for the way of an event."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Facts"]


class Facts(NamedTuple):
    """One look. ``None`` stands for what the server does not say, or not to this user.

    ``server`` is its name and version, ``version`` that of the Redis it is like. ``snapshots``: whether it saves now and then
    (``save``); ``persisting``: whether its last write and save worked. ``policy`` is its ``maxmemory-policy``; a
    ``max_bytes`` of 0 means no limit. ``replicas_missing``: how many more it demands before it takes a write
    (``min-replicas-to-write``). ``clock_ahead_ms``: how far its clock is ahead of ours. ``round_trip_ms``: the
    median of some. ``denied``: commands that this user needs and may not use.
    """

    server: str
    version: str | None = None
    role: str | None = None
    appendonly: bool | None = None
    snapshots: bool | None = None
    persisting: bool | None = None
    policy: str | None = None
    used_bytes: int | None = None
    max_bytes: int | None = None
    replicas_missing: int | None = None
    clock_ahead_ms: float | None = None
    round_trip_ms: float = 0.0
    denied: tuple[str, ...] = ()
