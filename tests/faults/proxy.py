"""A TCP proxy that loses, on request, exactly one kind of message on its way to or from the server, or leads elsewhere.

It recognises a script call by its SHA in what the client sends. On every connection of ours one answer follows one
request, so what the server says next is the reply to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bus.store.redis.scripts import script
from tests.waiting import wait_until

__all__ = ["Drop", "Hold", "Proxy", "calling"]

CHUNK = 1 << 16


def calling(name: str) -> bytes:
    """What a request holds that calls one of our scripts."""
    return script(name).sha.encode()


@dataclass
class Drop:
    """Forward the request to the server; lose its reply, and the connection with it.

    ``times`` is how often, ``None`` for always. With ``reply`` it loses only a reply that holds these bytes. With
    ``then_away`` new connections are refused from then on, as by a server that went away, until :meth:`Proxy.come_back`.
    """

    request: bytes
    times: int | None = 1
    reply: bytes = b""
    then_away: bool = False
    hits: int = 0
    lost: list[bytes] = field(default_factory=list)
    """The replies, so that a test can be sure that the server had done what it was asked."""

    @property
    def spent(self) -> bool:
        return self.times is not None and self.hits >= self.times


@dataclass
class Hold:
    """Keep the request for so long, then forward it, whether the client still waits or not. Once."""

    request: bytes
    seconds: float
    hits: int = 0
    forwarded: bool = False

    @property
    def spent(self) -> bool:
        return self.hits > 0


class Proxy:
    """Forwards a loopback port of its own to a server's, on a thread of its own. A context manager."""

    def __init__(self, port: int) -> None:
        self._upstream: int | None = port
        self._fault: Drop | Hold | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._listening: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault proxy", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.port, "the proxy to listen")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"redis://127.0.0.1:{self.port}/0"

    def arm(self, fault: Drop | Hold | None) -> None:
        """From now on do this to what matches; ``None`` forwards everything."""
        self._fault = fault

    def come_back(self) -> None:
        """Accept connections again."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def switch(self, port: int | None) -> None:
        """Cut every connection; new ones lead to this port from now on, or nowhere (``None``)."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._switch(port), self._loop).result(5)

    # -- on its own thread ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        await self._ending.wait()
        self.go_away()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]

    def go_away(self) -> None:
        """Accept no connections. On our thread only."""
        assert self._listening is not None
        self._listening.close()

    async def _switch(self, port: int | None) -> None:
        self._upstream = port
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with contextlib.suppress(asyncio.CancelledError):  # we are ending; asyncio would report it
            await self._serve(reader, writer)
        self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._upstream is None:
                raise ConnectionRefusedError
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()  # otherwise the client would wait for us, not for the server
            return
        line = _Line(self, reader, writer, server_reader, server_writer)
        try:
            await line.run()
        finally:
            writer.transport.abort()
            server_writer.transport.abort()

    @property
    def fault(self) -> Drop | Hold | None:
        """What is armed and not spent."""
        return None if self._fault is None or self._fault.spent else self._fault


class _Line:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._awaited: Drop | None = None

    async def run(self) -> None:
        up, down = asyncio.create_task(self._requests()), asyncio.create_task(self._replies())
        try:
            # A client that leaves may have sent something just before; the server hangs up when it has done that.
            await down
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _requests(self) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while data := await self._client.read(CHUNK):
                fault, seen = self._proxy.fault, tail + data
                found = fault is not None and fault.request in seen
                self._awaited = fault if found and isinstance(fault, Drop) else None
                if found and isinstance(fault, Hold):
                    fault.hits += 1
                    await asyncio.sleep(fault.seconds)
                self._to_server.write(data)
                await self._to_server.drain()
                if found and isinstance(fault, Hold):
                    fault.forwarded = True
                # A request may come in pieces, cut within the SHA.
                tail = b"" if found or fault is None else seen[-len(fault.request) + 1 :]
        with contextlib.suppress(OSError):
            self._to_server.write_eof()

    async def _replies(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._server.read(CHUNK):
                drop = self._awaited
                if drop is not None and not drop.spent and drop.reply in data:
                    drop.hits += 1
                    # A command may have gone ahead (see bus/store/redis/wire.py).
                    drop.lost.append(data.removeprefix(b"+PONG\r\n"))
                    if drop.then_away:
                        self._proxy.go_away()
                    return
                self._to_client.write(data)
                await self._to_client.drain()
