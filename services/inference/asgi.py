"""Calls an ASGI application in this process: the answer streams, and going away cancels it.

    read() <- bounded queue <- send() <- application, in a task of its own

The bound is the back-pressure: an application whose answer nobody reads waits in `send`. Rejected: HTTP over a local
socket (twice the CPU time of a token), and transports of HTTP clients for ASGI (they hold back the body until its end).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Generic, TypeVar

from starlette.types import ASGIApp, Message, Scope

DEPTH = 64
"""Pieces of a body that may wait to be read: a few hundred bytes each, and more than one turn of the loop makes."""

Piece = TypeVar("Piece")
_abandoned: set[asyncio.Task[None]] = set()
"""Calls that nobody reads any more, held until the application has noticed."""


class Exchange(Generic[Piece]):
    """One POST. `status` and `headers` are known once the first piece was read."""

    def __init__(
        self, app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str], take: Callable[[bytes], Piece]
    ) -> None:
        """`take` is called on each piece of the response's body in the moment the application sends it."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._app, self._body, self._take = app, body, take
        self._scope = _scope(path, {"content-type": "application/json", "content-length": str(len(body)), **headers})
        self._asked, self._gone = False, asyncio.Event()
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue(DEPTH)

    async def read(self) -> AsyncGenerator[Piece, None]:
        """The pieces of the body; closing the iterator disconnects. Raises: what the application raised unanswered."""
        task = asyncio.create_task(self._call())
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
            await task
        finally:
            self._gone.set()
            if not task.done():
                self._abandon(task)

    def _abandon(self, task: asyncio.Task[None]) -> None:
        while not self._pieces.empty():  # wakes a `send` that waits for room
            self._pieces.get_nowait()
        _abandoned.add(task)
        task.add_done_callback(_forget)

    async def _call(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception:
            if self.status == 0:  # Starlette raises again what it has answered with a 500
                raise
        finally:
            if not self._gone.is_set():
                await self._pieces.put(None)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message.get("body") and not self._gone.is_set():
            await self._pieces.put(self._take(message["body"]))


def _forget(task: asyncio.Task[None]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # its reader has gone: what it raised concerns nobody


def _scope(path: str, headers: Mapping[str, str]) -> Scope:
    scope: dict[str, Any] = {
        "type": "http",
        # From 2.4 on Starlette does not listen for a disconnect while it streams.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"engine"), *((k.lower().encode(), v.encode()) for k, v in headers.items())],
        "client": ("127.0.0.1", 0),
        "server": ("engine", 80),
        "state": {},
    }
    return scope
