"""Upstreams for the openai engine: an honest one, and one that makes trouble byte for byte."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from services.inference.engine import Answer, Call, Chunk, Engine
from shared.lifespan import HttpServer


@contextlib.asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[str]:
    """The URL of a server in this process that answers as `engine` does, and takes the request's id for the task's."""

    async def answer(request: Request) -> Response:
        call = Call(
            task_id=request.headers["x-request-id"],
            route=request.url.path,
            body=await request.body(),
            content_type=request.headers["content-type"],
            priority=1,
        )
        pieces = engine.run(call)
        first = await anext(pieces)
        if isinstance(first, Answer):
            return Response(first.body, first.status, media_type=first.content_type or "application/json")
        return StreamingResponse(_frames(first, pieces), media_type="text/event-stream")

    await engine.start()
    http = HttpServer(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])]), "127.0.0.1", 0, drain_s=1)
    await http.start()
    try:
        yield http.url
    finally:
        await http.stop()
        await engine.stop()


async def _frames(first: Chunk, pieces: AsyncIterator[Chunk | Answer]) -> AsyncIterator[bytes]:
    yield frame(first.data)
    async for piece in pieces:
        if isinstance(piece, Chunk):
            yield frame(piece.data)
        elif piece.body:
            yield frame(piece.body)
    yield frame(b"[DONE]")


def frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class Endless(Struct, frozen=True):
    """The same again and again, until the client leaves."""

    piece: bytes


class Hang(Struct, frozen=True):
    """Silence, until the client leaves."""


HANG = Hang()
TLS = b"\x16"
"""How a client begins that expects TLS."""
Part = bytes | Endless | Hang


class Asked(Struct):
    path: str
    headers: dict[str, str]
    body: bytes


def reply(body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """A whole response. A header that is given as well as made goes first."""
    head = {"content-type": kind, "content-length": str(len(body)), "connection": "close"}
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)
LAST = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Troublemaker:
    """Answers each request with the next of `answers`, and the last one for ever; then it closes the connection."""

    def __init__(self, *answers: Sequence[Part]) -> None:
        self.answers = list(answers)
        self.by_words: dict[bytes, Sequence[Part]] = {}
        """What requests get that hold these words, as often as they come."""
        self.asked: list[Asked] = []
        self.left = 0
        """Clients that have gone before the answer was over."""
        self.sent = 0
        """Bytes of endless parts."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.readexactly(1)
            if first == TLS:
                writer.write(b"this is no TLS")
                return
            self.asked.append(await _read(first, reader))
            for part in self._next():
                await self._say(part, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _next(self) -> Sequence[Part]:
        """To the request that was read last."""
        said = self.asked[-1].body
        told = next((parts for words, parts in self.by_words.items() if words in said), None)
        if told is not None:
            return told
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def _say(self, part: Part, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match part:
            case bytes():
                writer.write(part)
                await writer.drain()
            case Hang():
                await reader.read()
                raise ConnectionResetError
            case Endless(piece):
                while True:
                    writer.write(piece)
                    self.sent += len(piece)
                    await writer.drain()


async def _read(begin: bytes, reader: asyncio.StreamReader) -> Asked:
    first, *lines = (begin + await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(first.split()[1], headers, body)


@contextlib.asynccontextmanager
async def troublemaker(
    *answers: Sequence[Part], port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Troublemaker]:
    made = Troublemaker(*answers)
    server = await asyncio.start_server(made.serve, "127.0.0.1", port, ssl=tls)
    made.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
