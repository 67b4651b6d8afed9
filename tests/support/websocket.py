"""A WebSocket client written by docs/websocket.md alone: it checks every rule that a client may rely on."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self

import websockets
from msgspec import Struct, field
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

Message = dict[str, Any]


class Seen(Struct):
    """What one task's subscription has told so far."""

    text: str = ""
    n: int = 0
    cursor: str = "0"
    end: Message | None = None
    kinds: list[str] = field(default_factory=list)
    chunks: list[Message] = field(default_factory=list)


class PushClient:
    """`async with`: connected and greeted. Applies messages by the rules and fails on a gap or a repeat."""

    def __init__(self, url: str, *, origin: str | None = None) -> None:
        self._url, self._origin = url, origin
        self._socket: ClientConnection | None = None
        self.tasks: dict[str, Seen] = {}
        self._subscribed: dict[int, str] = {}
        self.other: list[Message] = []

    async def __aenter__(self) -> Self:
        headers = {"Origin": self._origin} if self._origin else {}
        protocol = Subprotocol("headrace.v1")
        self._socket = await websockets.connect(self._url, subprotocols=[protocol], additional_headers=headers)
        assert self._socket.subprotocol == "headrace.v1"
        await self.send({"t": "hello", "v": 1})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            await self._socket.close()

    @property
    def socket(self) -> ClientConnection:
        assert self._socket is not None
        return self._socket

    async def send(self, *messages: Message) -> None:
        await self.socket.send(json.dumps(messages))

    async def follow(self, task: str, *, id: int = 1, form: str = "text") -> None:
        """Subscribe from where this client is: from the start, or its cursor."""
        seen = self.tasks.setdefault(task, Seen())
        self._subscribed[id] = task
        await self.send({"t": "sub", "id": id, "task": task, "after": seen.cursor, "form": form})

    async def follow_session(self, session: str, *, id: int = 1) -> None:
        cursors = {task: "end" if seen.end else seen.cursor for task, seen in self.tasks.items()}
        await self.send({"t": "sub", "id": id, "session": session, "after": cursors})

    async def receive(self) -> list[Message]:
        """Apply one frame, and answer its pings: who does not is let go."""
        frame: list[Message] = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
        for message in frame:
            self._apply(message)
        if pongs := [{"t": "pong", "ts": message["ts"]} for message in frame if message["t"] == "ping"]:
            await self.send(*pongs)
        return frame

    async def until_end(self, *tasks: str) -> None:
        waiting = set(tasks)
        while waiting := {task for task in waiting if self.tasks.setdefault(task, Seen()).end is None}:
            while not any(message["t"] in ("done", "fail") for message in await self.receive()):
                pass

    def _apply(self, message: Message) -> None:
        kind = message["t"]
        task = message.get("task") or self._subscribed.get(message.get("id", -1), "")
        if not task or kind == "err":
            self.other.append(message)
            return
        seen = self.tasks.setdefault(task, Seen())
        assert seen.end is None, f"{message} after the end"
        seen.kinds.append(kind)
        if kind == "d":
            assert message["f"] == seen.n + 1, f"{message} after {seen.n}"
            seen.n = message["n"]
            seen.text += message.get("d", "")
            seen.chunks += message.get("chunks", [])
        elif kind == "sync":
            assert message["n"] == seen.n
        elif kind == "reset":
            seen.n, seen.text, seen.chunks = 0, "", []
        elif kind in ("done", "fail"):
            seen.end = message
            seen.text = message.get("text", seen.text)
            assert message["n"] == seen.n or "text" in message
        seen.cursor = message.get("c", seen.cursor)
