"""The store on Redis, as threads use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import redis
from redis.exceptions import NoScriptError

from bus.errors import UnsafeServer
from bus.position import Position
from bus.store.base import (
    COMPANY,
    NO_LIMITS,
    PATIENCE_MS,
    Announced,
    Appended,
    Batch,
    Beat,
    Bindings,
    Census,
    Company,
    Cues,
    Dead,
    Ended,
    Exchange,
    Facts,
    Job,
    LoopStore,
    OwnLimits,
    Page,
    Retrying,
    Route,
    Settlement,
    Stale,
    Take,
    Whisper,
    Woken,
)
from bus.store.redis import scripts, server
from bus.store.redis.cues import cues
from bus.store.redis.lines import Lines
from bus.store.redis.link import ATTEMPT_S, FOREIGN, Link, blocking_pool, translated, unavailable
from bus.store.redis.loop import RedisLoopStore
from bus.store.redis.scripts import Call
from bus.store.redis.wire import Command

__all__ = ["RedisStore"]

T = TypeVar("T")

POOL = 32
"""Connections for commands, a process; more threads than that wait their turn."""
LONGEST_WAIT_S = 5.0
"""The longest a blocking wait is left on the server; longer ones are made of these."""


class RedisStore:
    """One namespace on one Redis or Valkey server (7.0 or newer). See :class:`bus.store.base.Store` for the promises.

    All keys carry one hash tag, so that one script may touch them all, on a cluster too.
    """

    mode = "redis"

    def __init__(
        self, url: str, namespace: str, *, lease_ms: int, company: Company = COMPANY, patience_ms: int = PATIENCE_MS
    ) -> None:
        self.link = Link(url)
        self.prefix = f"callboard:{{{namespace}}}:"
        self._lease_ms = lease_ms
        self._suspects = company, patience_ms
        # Clients are lazy: this opens no socket. Any: redis-py types its answers for all settings at once.
        self._commands: Any = redis.Redis(connection_pool=blocking_pool(self.link, size=POOL, timeout_s=ATTEMPT_S))
        self._connect = _connecting(self._commands.connection_pool)
        self._lines = Lines(self._connect, most=POOL, patience_s=ATTEMPT_S)
        # A blocking pop may rest on the server for LONGEST_WAIT_S; its socket must be more patient than that.
        patient = blocking_pool(self.link, size=POOL, timeout_s=LONGEST_WAIT_S + ATTEMPT_S)
        self._waits = Lines(_connecting(patient), most=POOL, patience_s=ATTEMPT_S, resting=True)

    def __repr__(self) -> str:
        return f"<RedisStore {self.prefix} at {self.link.where}>"

    def open(self) -> None:
        self._lines.open()
        self._waits.open()
        with translated(self.link, writing=False):
            self._commands.ping()
            try:
                facts: dict[str, Any] = self._commands.info("server") | self._commands.info("memory")
            except redis.exceptions.NoPermissionError:
                return  # a least-privilege user may be denied INFO; then its operator answers for the settings
        _check_fit(self.link, facts)

    def close(self) -> None:
        self._lines.shut()
        self._waits.shut()
        self._commands.connection_pool.disconnect()

    def facts(self) -> Facts:
        with translated(self.link, writing=False):
            try:
                (answer,) = self._lines.ask([self._command(call := scripts.rights(server.NEEDED))])
                denied = self._answered(call, answer)
            except redis.exceptions.NoPermissionError:
                denied = ("EVAL", "EVALSHA")
            return server.look(self._commands, denied)

    def on_loop(self) -> LoopStore:
        return RedisLoopStore(self.link, self.prefix)

    # -- the log side --------------------------------------------------------------------------------------------------

    def append(self, batch: Batch) -> list[Appended] | Stale | Ended:
        first, *others = calls = scripts.append(batch)
        if not others:
            return self._run(first)
        try:
            came, *more = self._lines.ask([self._command(call) for call in calls], tells=True, apart=True)
            return scripts.joined(self._answered(first, came), zip(others, more, strict=True))
        except FOREIGN as error:
            raise unavailable(self.link, error, writing=True) from error

    def announce(self, log: str, epoch: str, whispers: Sequence[Whisper]) -> Announced | Ended:
        return self._run(scripts.announce(log, epoch, whispers))

    def close_log(self, log: str, epoch: str, own: OwnLimits = NO_LIMITS) -> Position:
        return self._run(scripts.close_log(log, epoch, own))

    def read(self, log: str, epoch: str, after: int, limit: int) -> Page:
        return self._run(scripts.read(log, epoch, after, limit), writing=False)

    def seek(self, log: str, epoch: str, at_ms: int) -> Position:
        return self._run(scripts.seek(log, epoch, at_ms), writing=False)

    def logs(self) -> list[str]:
        return self._run(scripts.logs(), writing=False)

    def bind(self, bindings: Bindings) -> int:
        return self._run(scripts.bind(bindings))

    def unbind(self, handlers: Sequence[str]) -> list[bool]:
        return self._run(scripts.unbind(handlers)) if handlers else []

    def bindings(self) -> Stale:
        with translated(self.link, writing=False):
            # The version first: bindings that change in between are then newer than it says, and the next append is told.
            version = self._commands.hget(self.prefix + "meta", "v")
            return scripts.stale(version, self._commands.hgetall(self.prefix + "bindings"))

    # -- the queue side ------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, window_ms: int) -> bool:
        return self._run(scripts.enqueue(job, window_ms))

    def exchange(self, worker: str, settlements: Sequence[Settlement], takes: Sequence[Take]) -> Exchange:
        wishes = [wish for wish in takes if wish.limit > 0 and wish.handlers]
        if not settlements and not wishes:
            return Exchange([], [])
        return self._run(scripts.exchange(worker, self._lease_ms, *self._suspects, settlements, wishes))

    def beat(
        self,
        worker: str,
        lease_ms: int,
        ticket: int,
        held: Sequence[tuple[str, int]],
        max_lost: int,
        *,
        serves: Sequence[str] = (),
        unanswered: Sequence[int] = (),
        stopping: bool = False,
        standby: int = 0,
    ) -> Beat:
        return self._run(
            scripts.beat(
                worker,
                lease_ms,
                ticket,
                held,
                max_lost,
                serves=serves,
                unanswered=unanswered,
                stopping=stopping,
                standby=standby,
            )
        )

    def leave(self, worker: str) -> int:
        return self._run(scripts.beat(worker, 0, 0, (), 0)).handed_back

    def wait(self, names: Sequence[str], timeout_s: float, worker: str = "", takes: Sequence[Take] = ()) -> Woken:
        keys = [f"{self.prefix}wake:{name}" for name in names]
        wishes = [wish for wish in takes if wish.limit > 0 and wish.handlers]
        take = scripts.collect(worker, wishes) if wishes else None
        while True:
            patience = max(0.001, min(timeout_s, LONGEST_WAIT_S))  # Redis takes 0 for "for ever"
            # In one write: the server takes for us the moment that it is woken.
            rest = ("BLPOP", *keys, f"{patience:.3f}")
            try:
                rung, *taken = self._waits.ask([rest, self._command(take)] if take else [rest])
                if isinstance(rung, Exception):
                    raise rung
                came = self._answered(take, taken[0]) if take else []
            except FOREIGN as error:
                raise unavailable(self.link, error, writing=False) from error
            timeout_s -= patience
            if rung or came or timeout_s <= 0:
                return Woken(rung[0].decode().removeprefix(f"{self.prefix}wake:") if rung else None, came)

    def cues(self, worker: str) -> Cues | None:
        try:
            return cues(self._connect(), f"{self.prefix}cue:{worker}")
        except FOREIGN as error:
            raise unavailable(self.link, error, writing=False) from error

    def poke(self, name: str) -> None:
        self._run(scripts.poke(name))

    def pause(self, name: str) -> bool:
        return self._run(scripts.pause(name, paused=True))

    def resume(self, name: str) -> bool:
        return self._run(scripts.pause(name, paused=False))

    def census(self) -> Census:
        return self._run(scripts.census(), writing=False)

    def retrying(self, limit: int = 100) -> list[Retrying]:
        return self._run(scripts.retrying(limit), writing=False)

    def pending(self, queue: str) -> int:
        with translated(self.link, writing=False):
            counts = self._commands.hgetall(self.prefix + "pending")
        return sum(int(n) for name, n in counts.items() if name.decode().partition("|")[0] == queue)

    def queues(self) -> list[str]:
        with translated(self.link, writing=False):
            names = self._commands.hkeys(self.prefix + "pending")
        return sorted({name.decode().partition("|")[0] for name in names})

    def flush(self, queue: str, handler: str = "") -> int:
        return self._run(scripts.flush(queue, handler))

    def replay(self, jobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        return self._run(scripts.replay(jobs)) if jobs else []

    def drop(self, jobs: Sequence[str]) -> list[bool]:
        return self._run(scripts.drop(jobs)) if jobs else []

    def dead_letter(self, job: str) -> Dead | None:
        with translated(self.link, writing=False):
            at_ms = self._commands.zscore(self.prefix + "dead", job)
        found = self._letters([(job.encode(), at_ms)]) if at_ms is not None else []
        return found[0] if found else None

    def dead(self, limit: int = 100, skip: int = 0) -> list[Dead]:
        if limit < 1:
            return []  # Redis would read the -1 that follows as "all"
        with translated(self.link, writing=False):
            newest = self._commands.zrevrange(self.prefix + "dead", skip, skip + limit - 1, withscores=True)
        return self._letters(newest)

    def _letters(self, newest: Sequence[tuple[bytes, float]]) -> list[Dead]:
        if not newest:
            return []
        jobs = [job for job, _ in newest]
        with translated(self.link, writing=False):
            pipe = self._commands.pipeline(transaction=False)
            for name in ("letters", "jobs", "lost"):
                pipe.hmget(self.prefix + name, jobs)
            pipe.hmget(self.prefix + "jobs", [job + b"n" for job in jobs])
            letters, bodies, lost, notes = pipe.execute()
        return [
            _dead(job, int(at_ms), *found)
            for (job, at_ms), *found in zip(newest, letters, bodies, notes, lost, strict=True)
            if found[0] is not None  # dropped between the two looks
        ]

    def dead_count(self) -> int:
        with translated(self.link, writing=False):
            return int(self._commands.zcard(self.prefix + "dead"))

    def recall(self, job: str, step: str) -> bytes | None:
        with translated(self.link, writing=False):
            value: bytes | None = self._commands.hget(f"{self.prefix}steps:{job}", step)
        return value

    def record(self, job: str, step: str, value: bytes, linger_ms: int) -> bytes:
        return self._run(scripts.record(job, step, value, linger_ms))

    # -- calling scripts -----------------------------------------------------------------------------------------------

    def _run(self, call: Call[T], *, writing: bool = True) -> T:
        try:
            return self._answered(call, self._lines.ask((self._command(call),), tells=call.tells)[0])
        except FOREIGN as error:
            raise unavailable(self.link, error, writing=writing) from error

    def _command(self, call: Call[Any]) -> Command:
        return ("EVALSHA", call.script.sha, 1, self.prefix, *call.arguments)

    def _answered(self, call: Call[T], answer: Any) -> T:
        """A script that the server does not know (it was restarted, or its scripts flushed) is sent again as text."""
        if isinstance(answer, NoScriptError):
            answer = self._in_full(call, answer.__cause__)
        if isinstance(answer, Exception):
            raise answer
        return call.answer(answer)

    def _in_full(self, call: Call[Any], lost: BaseException | None) -> Any:
        """The script itself. Where a first try of it was ``lost``, a refusal now does not say that this had not arrived."""
        try:
            (answer,) = self._lines.ask([("EVAL", call.script.text, 1, self.prefix, *call.arguments)])
        except FOREIGN:
            if lost is None:
                raise
            raise lost from None
        if lost is not None and isinstance(answer, Exception):
            raise lost
        return answer


def _connecting(pool: redis.ConnectionPool) -> Callable[[], Any]:
    """How to make a connection that its pool does not know: it would close those that other threads are using."""
    return partial(pool.connection_class, **pool.connection_kwargs)


def _dead(job: bytes, at_ms: int, letter: bytes, body: bytes | None, notes: bytes | None, lost: bytes | None) -> Dead:
    reason, priority, queue, handler, key = letter.decode().split("|", 4)
    route = Route(queue, handler, int(priority))
    return Dead(job.decode(), at_ms, reason, route, key, body or b"", notes or b"", int(lost or 0))


def _check_fit(link: Link, facts: dict[str, Any]) -> None:
    """Refuse a server that would lose what it accepted (1,833 of 3,000 events were evicted in a trial), or is too old."""
    major = str(facts.get("redis_version", "7")).partition(".")[0]
    if major.isdigit() and int(major) < 7:
        raise UnsafeServer(
            f"{link.where} has version {facts['redis_version']}: Redis 7.0 or newer, or Valkey, is needed"
        )
    policy = str(facts.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise UnsafeServer(
            f"{link.where} evicts data when memory is short (maxmemory-policy {policy}) and would lose accepted events: "
            "set 'maxmemory-policy noeviction' on it"
        )
