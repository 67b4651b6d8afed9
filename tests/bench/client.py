"""A load client that costs little: raw HTTP/1.1 over kept-alive connections, and one WebSocket for the answers."""

import asyncio
import json
import sys
from urllib.parse import urlsplit

import msgspec
import websockets
from msgspec import Struct

from shared.clock import monotonic_s


class Submitted(Struct):
    id: str


class Push(Struct):
    t: str
    task: str = ""
    d: str = ""
    ts: int = 0


_submitted = msgspec.json.Decoder(Submitted)
_frame = msgspec.json.Decoder(list[Push])


class Connection:
    """One request at a time; answers with Content-Length only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        self._writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), len(body), body)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at : lower.index(b"\r\n", at)])
        return status, await self._reader.readexactly(length)

    async def stream(self, path: str, body: bytes) -> float:
        """Read a streamed answer to its end; when its first token came (monotonic seconds)."""
        self._writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        )
        first_at_s, seen = 0.0, b""
        while piece := await self._reader.read(65536):
            if not first_at_s:
                seen += piece
                first_at_s = monotonic_s() if b'"content":"' in seen.replace(b'"content":""', b"") else 0.0
            elif b"[DONE]" in piece:
                break
        self.close()
        return first_at_s

    def close(self) -> None:
        self._writer.close()


async def connect(url: str) -> Connection:
    parts = urlsplit(url)
    return Connection(*await asyncio.open_connection(parts.hostname, parts.port))


class Watcher:
    """Follows a session and tells when each task is done."""

    def __init__(self) -> None:
        self.done_at_s: dict[str, float] = {}
        self.first_at_s: dict[str, float] = {}
        self.news = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def run(self, ws_url: str, session: str, ready: asyncio.Event) -> None:
        async with websockets.connect(ws_url, subprotocols=["headrace.v1"], max_size=None) as socket:  # type: ignore[list-item]
            await socket.send(
                json.dumps([{"t": "hello", "v": 1}, {"t": "sub", "id": 1, "session": session, "after": "now"}])
            )
            await socket.recv()
            ready.set()
            async for frame in socket:
                if (asked := self._on_frame(frame if isinstance(frame, bytes) else frame.encode())) is not None:
                    await socket.send(json.dumps([{"t": "pong", "ts": asked}]))
        sys.exit("the notifier has closed the socket: what it would tell is not measured")

    def _on_frame(self, frame: bytes) -> int | None:
        """The `ts` of a ping, which wants an answer."""
        now_s, asked = monotonic_s(), None
        for message in _frame.decode(frame):
            if message.t in ("done", "fail"):
                self.done_at_s[message.task] = now_s
                if message.task in self._waiting:
                    self._waiting.pop(message.task).set_result(None)
            elif message.t == "d" and message.d and message.task not in self.first_at_s:
                self.first_at_s[message.task] = now_s
            elif message.t == "ping":
                asked = message.ts
        self.news.set()
        return asked

    async def wait_for_task(self, task: str) -> None:
        if task not in self.done_at_s:
            self._waiting[task] = asyncio.get_running_loop().create_future()
            await self._waiting[task]

    async def wait_for(self, count: int) -> None:
        while len(self.done_at_s) < count:
            self.news.clear()
            await self.news.wait()


def submitted_id(body: bytes) -> str:
    return _submitted.decode(body).id
