"""A load client that costs little: raw HTTP/1.1 over kept-alive connections, and one WebSocket for the answers."""

import asyncio
import json
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
    n: int = 0


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


async def connect(url: str) -> Connection:
    parts = urlsplit(url)
    return Connection(*await asyncio.open_connection(parts.hostname, parts.port))


class Watcher:
    """Follows a session and tells when each task is done."""

    def __init__(self) -> None:
        self.done_at_s: dict[str, float] = {}
        self.first_at_s: dict[str, float] = {}
        self.news = asyncio.Event()

    async def run(self, ws_url: str, session: str, ready: asyncio.Event) -> None:
        async with websockets.connect(f"{ws_url}/v1/ws", subprotocols=["headrace.v1"], max_size=None) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps([{"t": "hello", "v": 1}, {"t": "sub", "id": 1, "session": session}]))
            await socket.recv()
            ready.set()
            async for frame in socket:
                self._on_frame(frame if isinstance(frame, bytes) else frame.encode())

    def _on_frame(self, frame: bytes) -> None:
        now_s = monotonic_s()
        for message in _frame.decode(frame):
            if message.t in ("done", "fail"):
                self.done_at_s[message.task] = now_s
            elif message.t == "d" and message.task not in self.first_at_s:
                self.first_at_s[message.task] = now_s
        self.news.set()

    async def wait_for(self, count: int) -> None:
        while len(self.done_at_s) < count:
            self.news.clear()
            await self.news.wait()


def submitted_id(body: bytes) -> str:
    return _submitted.decode(body).id
