"""Health, as orchestrators ask for it: ``/live`` and ``/ready`` as small JSON, and what a worker knows of its own.

    GET /live    200 {"status": "live"}      the process answers
    GET /ready   200 {"status": "ready"}     or 503 {"status": "not ready", "reasons": ["...", ...]}

A worker is not ready while it starts or stops, when the bus does not answer, when work has waited for a minute and none
of it was taken, and when its event loop lags. Of several processes one endpoint answers, the master's: it is ready when
all of them are, and ``workers`` says of each how it is. No text here names a server or anything of an app's data.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware

from bus import Bus, BusError

__all__ = ["Endpoint", "Reporter", "WorkerHealth", "reasons_of"]

STUCK_S = 60.0
"""How long work may wait while nothing is taken."""
LAG_S = 1.0
"""How late the event loop may be."""
LOOK_S = 1.0
"""The store is not asked more often than this, whoever asks us."""
REPORT_S = 2.0
REQUEST_S = 2.0
"""How long a client may take over its request."""

log = logging.getLogger("callboard.health")


class Pulse(Middleware):
    """Notes when a message was last taken in hand, and which ones are."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self._in_hand: dict[str, str] = {}

    def in_hand(self, handler: str) -> int:
        """How many of its jobs have begun and not ended."""
        return list(self._in_hand.values()).count(handler)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:  # noqa: ARG002 - Dramatiq's hook
        """One begins."""
        self.at = time.monotonic()
        self._in_hand[message.message_id] = message.actor_name

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002 - Dramatiq's hook
        message: MessageProxy,
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """One has ended."""
        self._in_hand.pop(message.message_id, None)

    after_skip_message = after_process_message


class WorkerHealth:
    """One worker's. Safe from any thread.

    ``served`` names what it takes work for, as ``queue|handler``; ``lag_s`` says how late its event loop is, in seconds;
    ``limit_of``, how many jobs of a handler it may have in hand (``max_concurrent``).
    """

    def __init__(
        self,
        bus: Bus,
        served: Callable[[], set[str]],
        lag_s: Callable[[], float],
        limit_of: Callable[[str], int | None] = lambda _: None,
        *,
        stuck_s: float = STUCK_S,
    ) -> None:
        self.pulse = Pulse()
        """To be added to the broker's middleware."""
        self._bus = bus
        self._served = served
        self._lag_s = lag_s
        self._limit_of = limit_of
        self._stuck_s = stuck_s
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._of_store: list[str] = []
        self._waiting_since: float | None = None

    def reasons(self) -> list[str]:
        """Why it is not ready; nothing if it is. Asks the store at most once a second; may block as long as that does."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._of_store = self._look()
                self._looked_at = time.monotonic()
            found = list(self._of_store)
        lag_s = self._lag_s()
        if lag_s >= LAG_S:
            found.append(f"the event loop is {lag_s:.1f} s late: does an async handler block?")
        return found

    def _look(self) -> list[str]:
        try:
            census = self._bus.store.census()
        except BusError:
            return ["the bus does not answer"]
        served = self._served()
        waiting = sum(
            count.ready
            for count in census.counts
            if f"{count.queue}|{count.handler}" in served
            and not census.paused & {count.queue, f"{count.queue}|{count.handler}"}
            and not self._is_full(count.handler)
        )
        now = time.monotonic()
        if not waiting:
            self._waiting_since = None
            return []
        self._waiting_since = max(self._waiting_since or now, self.pulse.at)
        waited_s = now - self._waiting_since
        if waited_s < self._stuck_s:
            return []
        return [
            f"work waits, and none was taken for {waited_s:.0f} s: are all threads busy, or is the event loop full?"
        ]

    def _is_full(self, handler: str) -> bool:
        """Whether as many of its jobs are in hand as may be: then others wait as they were asked to."""
        limit = self._limit_of(handler)
        return limit is not None and self.pulse.in_hand(handler) >= limit


class Reporter:
    """Has a child tell its master how it is, every two seconds, for as long as the ``with`` lasts."""

    def __init__(self, reasons: Callable[[], list[str]], tell: Callable[..., None]) -> None:
        self._reasons = reasons
        self._tell = tell
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._report, name="callboard reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ending.set()
        self._tell(health=["it is stopping"])

    def _report(self) -> None:
        while True:
            reasons = self._reasons()
            if self._ending.is_set():
                return
            self._tell(health=reasons)
            if self._ending.wait(REPORT_S):
                return


def reasons_of(workers: list[dict[str, Any]]) -> list[str]:
    """The reasons of several workers, as their master knows them: each has ``worker``, ``booted`` and ``health``."""
    found: list[str] = []
    for one in workers:
        name = f"worker {one['worker']}"
        if not one["booted"]:
            found.append(f"{name}: it is starting")
        elif one["health"] is None:
            found.append(f"{name}: it has told nothing for some seconds")
        else:
            found += [f"{name}: {reason}" for reason in one["health"]]
    return found


class Endpoint:
    """Listens from its making until :meth:`close`, on threads of its own. Raises ``OSError`` where the port cannot be had.

    ``reasons`` and ``more`` (what else a readiness says, by name) may be set at any time; at first it is starting.
    """

    def __init__(self, host: str, port: int) -> None:
        self.reasons: Callable[[], list[str]] = lambda: ["it is starting"]
        self.more: Callable[[], Mapping[str, Any]] = dict
        self._server = _Server((host, port), _Request)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._serve, name="callboard health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens; of use where it was asked for port 0."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and wait for requests that are being answered: seconds at most. Safe twice."""
        self._server.shutdown()
        self._server.cut_off()
        self._server.server_close()
        self._thread.join()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def answer(self, path: str) -> tuple[int, Mapping[str, Any]]:
        """The status and the body for a path."""
        if path == "/live":
            return 200, {"status": "live"}
        if path != "/ready":
            return 404, {"status": "unknown", "paths": ["/live", "/ready"]}
        reasons = self.reasons()
        if reasons:
            return 503, {"status": "not ready", "reasons": reasons, **self.more()}
        return 200, {"status": "ready", **self.more()}


class _Server(ThreadingHTTPServer):
    """A request that has not come after REQUEST_S is cut off: what came of it is answered, and its thread ends."""

    daemon_threads = False  # so that close() waits for them
    endpoint: Endpoint

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self._begun: dict[socket.socket, float] = {}
        super().__init__(place, handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look for our name, which may wait for a name server."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own."""
        self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """It is answered, or has failed."""
        self._begun.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's hook
        """A client that leaves early is no news."""
        if not isinstance(error := sys.exception(), OSError):
            log.error("a health request failed", exc_info=error)

    def service_actions(self) -> None:
        """As the server's loop calls it, ten times a second."""
        self.cut_off(older_s=REQUEST_S)

    def cut_off(self, older_s: float = 0) -> None:
        """Read no more of requests that began so long ago."""
        now = time.monotonic()
        for request, began in list(self._begun.items()):
            if now - began >= older_s:
                with suppress(OSError):  # its client has left, or it is just being closed
                    request.shutdown(socket.SHUT_RD)


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S
    server_version = "callboard"
    sys_version = ""

    def do_GET(self) -> None:
        status, body = self.server.endpoint.answer(self.path.partition("?")[0])
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: nobody wants a line for each."""
