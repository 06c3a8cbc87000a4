"""The teller: one thread of a worker that tells what happens in it, to whoever listens to ``$worker:**``.

Whoever says something leaves it here and goes on; nothing that becomes of it reaches a job. What was said within a window
of 50 ms goes in one round trip (the first goes at once), and it is encoded here as well. Where nobody heard, nothing is
taken in for a second; then the next thing that is said is tried, alone, and what follows waits for what becomes of it: it is
told as well, or dropped. So a worker that nobody listens to sends one small command a second while it works, and none while
it idles, and who has listened for a second hears all of what happens then.

::

    resting ── said ──> telling ── heard by somebody ──> 50 ms, gathering ──> resting
       ^                   └────── heard by nobody ────> deaf for 1 s ──> resting, then one word is tried

Live only: what cannot be told, or is said faster than it can be told (10,000 wait), is lost, and logged at DEBUG.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic_core import to_json

from bus import Bus, BusError, codec, ids
from bus.envelope import rfc3339
from bus.store.base import Announced, Whisper
from bus.topics import WORKER
from workers.notices import Notice

__all__ = ["Form", "Teller"]

WINDOW_S = 0.05
DEAF_S = 1.0
MOST = 500
"""Notices in one round trip."""
MOST_WAITING = 10_000
"""Notices that wait to be told; then the oldest are lost."""
END_S = 1.0

log = logging.getLogger("callboard.workers")


class _Said(NamedTuple):
    kind: type[Notice]
    at_ms: int
    fields: dict[str, Any]


class Teller:
    """One for each worker. ``start`` and ``close`` bear being called twice; a mute one never says anything."""

    def __init__(self, bus: Bus, *, mute: bool = False) -> None:
        self.mute = mute
        self.listening = False
        """Whether to say what happens to jobs: somebody may hear it."""
        self._bus = bus
        self._worker = ""
        self._thread: threading.Thread | None = None
        self._waiting: deque[_Said] = deque(maxlen=MOST_WAITING)
        self._lost = 0
        self._trying = False
        """Whether the next thing that is said is to find out if somebody listens: what follows waits for the answer."""
        self._said = threading.Event()
        self._ending = threading.Event()

    def __repr__(self) -> str:
        state = "mute" if self.mute else "closed" if self._thread is None else "heard" if self.listening else "deaf"
        return f"<Teller {state}, {len(self._waiting)} waiting>"

    def start(self, worker: str) -> None:
        """Be ready to tell, as the worker of that name."""
        if self.mute or self._thread is not None:
            return
        self._worker, self.listening, self._trying = worker, True, False
        self._waiting.clear()
        # Of its own: a thread that an earlier worker left behind, hanging on its server, must not wake to this one's.
        self._said, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(self._said, self._ending), name="callboard teller", daemon=True
        )
        self._thread.start()

    def now_ms(self) -> int:
        """The time by which notices are dated."""
        return self._bus.clock.now_ms()

    def say(self, kind: type[Notice], **fields: Any) -> None:
        """Have something told, unless it is closed. Never blocks; from any thread."""
        if self._thread is None:
            return
        self._lost += len(self._waiting) == MOST_WAITING
        self._waiting.append(_Said(kind, self.now_ms(), fields))
        if not self._said.is_set():
            self._said.set()

    def close(self) -> None:
        """Tell what was said, and end the thread, within a deadline."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.listening = False
            self._ending.set()
            self._said.set()
            thread.join(END_S)

    # -- on its thread -------------------------------------------------------------------------------------------------

    def _work(self, said: threading.Event, ending: threading.Event) -> None:
        over = False
        while not over:
            said.wait()
            said.clear()
            over = ending.is_set()  # before it takes, so that what was said until the end is told
            if not self._waiting:
                continue
            heard = self._tell()
            self.listening = heard and not ending.is_set()
            ending.wait(WINDOW_S if heard else DEAF_S)
            if not heard:
                self._waiting.clear()  # what somebody was about to say when we went deaf: what became of it was not said
            self._trying, self.listening = not heard, not ending.is_set()

    def _tell(self) -> bool:
        """Tell what waits. Whether somebody may have heard it; if not, what was said meanwhile is dropped as well."""
        left, heard, most = len(self._waiting), True, 1 if self._trying else MOST
        while left and heard:
            batch = [self._waiting.popleft() for _ in range(min(left, most))]
            left, most = left - len(batch), MOST
            heard = self._announce(batch)
        if not heard:
            self.listening = False
            self._waiting.clear()
        lost, self._lost = self._lost, 0
        if lost:
            log.debug("%d notices were said faster than they could be told, and are lost", lost)
        return heard

    def _announce(self, batch: list[_Said]) -> bool:
        try:
            answer = self._bus.store.announce(WORKER, ids.epoch(), list(self._whispers(batch)))
        except Exception as error:  # noqa: BLE001 - telling must not harm what it tells of
            why = error if isinstance(error, BusError) else type(error).__name__
            log.debug("%d notices of this worker are lost: %s", len(batch), why)
            return False
        return isinstance(answer, Announced) and answer.heard > 0

    def _whispers(self, batch: list[_Said]) -> Iterator[Whisper]:
        for said in batch:
            try:
                yield self._whisper(said)
            except ValueError as error:  # a message's id may be any text; what cannot travel costs the others nothing
                log.debug("a notice of this worker is lost: %s", type(error).__name__)

    def _whisper(self, said: _Said) -> Whisper:
        form = _form(said.kind, f"/{self._bus.namespace}", _topic(self._worker, said.fields.get("handler", "")))
        return Whisper(form.topic, form.filled(said.at_ms, {"worker": self._worker, **said.fields}))


class Form:
    """The wire form of one kind of notice on one topic. Only ids, times and data differ, so the rest is encoded once.

    Encoding each anew cost four times as much, and a handler that does nothing a third of its speed.
    """

    __slots__ = ("_after_id", "_after_time", "_before_id", "topic")

    def __init__(self, kind: type[Notice], source: str, topic: str) -> None:
        self.topic = topic
        empty = kind.model_construct(worker="")
        *_, body = codec.write(empty, (topic,), None, id=_SOME_ID, source=source, now_ms=0, reserved=True)
        self._before_id, body = _cut(body, _SOME_ID)
        self._after_id, body = _cut(body, rfc3339(0))
        self._after_time = body[: body.rindex(b'"data":') + len(b'"data":')]  # the last on the wire

    def filled(self, at_ms: int, data: dict[str, Any]) -> bytes:
        """A notice. Raises ``ValueError`` for what is no JSON."""
        id_, time = ids.uuid7(at_ms).encode(), rfc3339(at_ms).encode()
        return b"".join((self._before_id, id_, self._after_id, time, self._after_time, to_json(data), b"}"))


_SOME_ID = "00000000-0000-7000-8000-000000000000"
_form = lru_cache(maxsize=4096)(Form)


def _cut(body: bytes, at: str) -> tuple[bytes, bytes]:
    before, _, after = body.partition(at.encode())
    return before, after


@lru_cache(maxsize=1024)
def _topic(worker: str, handler: str) -> str:
    """Where it is told: names that topics cannot hold are told there in part; the fields have them whole."""
    return ":".join([WORKER, *(_segment(name) for name in (worker, handler) if name)])


def _segment(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.~@-]", "~", name)[:120]
