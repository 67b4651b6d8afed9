"""One process's way to Redis, over TCP: it can be cut, stalled, slowed, torn in the middle of a reply, left half open."""

import asyncio
import contextlib
import re

from msgspec import Struct

WORKER_NAME = re.compile(rb"worker-[0-9a-f]{16}")
READ_BYTES = 2**18
BROKEN = (OSError, RuntimeError)
"""The latter is uvloop's, for a connection that was closed meanwhile."""


class Pipe(Struct):
    """One connection through a link: the client's side and Redis' side."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    half_open: bool = False
    """The server is gone, and nobody has told the client."""


class Link:
    """`async with`: listens on a port of its own until the end, whatever becomes of Redis."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pipes: list[Pipe] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._torn = False
        self.delay_s = 0.0
        self.url = ""
        self.worker = ""
        """The name of the worker that connected last, as it told Redis."""

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    # -- faults

    def cut(self) -> None:
        """Break all connections, with a reset."""
        for pipe in self._pipes:
            _abort(pipe.client, pipe.server)
        self._pipes.clear()

    def stall(self) -> None:
        """Forward nothing, and keep every connection open; new ones are accepted, and stalled too."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def half_open(self) -> None:
        """Redis forgets the connections that there are; their clients hear nothing. New ones work."""
        for pipe in self._pipes:
            pipe.half_open = True
            _abort(pipe.server)

    def tear(self) -> None:
        """The next piece that Redis says ends in its middle, and with it the connection."""
        self._torn = True

    # -- life

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flowing.wait()
            upstream, server = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        except OSError:
            _abort(writer)
            return
        pipe = Pipe(writer, server)
        self._pipes.append(pipe)
        for pump in (self._up(pipe, reader), self._down(pipe, upstream)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _up(self, pipe: Pipe, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(*BROKEN):
            while data := await reader.read(READ_BYTES):
                if named := WORKER_NAME.search(data[:500]) if b"SETNAME" in data[:500] else None:
                    self.worker = named[0].decode()
                await self._wait()
                if not pipe.half_open:
                    pipe.server.write(data)
                    await pipe.server.drain()
        self._end(pipe)

    async def _down(self, pipe: Pipe, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(*BROKEN):
            while data := await reader.read(READ_BYTES):
                await self._wait()
                if self._torn:
                    self._torn = False
                    pipe.client.write(data[: len(data) // 2])
                    break
                pipe.client.write(data)
                await pipe.client.drain()
        if not pipe.half_open:
            self._end(pipe)

    async def _wait(self) -> None:
        await self._flowing.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)

    def _end(self, pipe: Pipe) -> None:
        pipe.client.close()
        pipe.server.close()
        if pipe in self._pipes:
            self._pipes.remove(pipe)


def _abort(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.transport.abort()
