"""A receiver of webhooks that fails on command: real HTTP over a real socket, with or without TLS."""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from msgspec import Struct
from standardwebhooks import Webhook

from tests.support.waiting import TIMEOUT_S, wait_until

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes, ok").decode()
HANG = b""
"""As an answer: none, until the receiver stops."""


class Hit(Struct):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The event, if the public library finds its signature good. Raises: WebhookVerificationError."""
        return dict(Webhook(secret).verify(self.body, self.headers))


def answer(status: int, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} said", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", body]).encode()


def write_secret(folder: Path, *secrets: str) -> Path:
    path = folder / "secret"
    path.write_text("".join(f"{secret}\n" for secret in secrets or (SECRET,)))
    return path


class Receiver:
    """`says`: what it answers to a request, bytes of HTTP."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.says: Callable[[Hit], bytes] = lambda hit: answer(204)
        self.hits: list[Hit] = []
        self.connections = 0
        self.peers: list[int] = []
        """The sender's port, of each request."""
        self.url = ""
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://localhost:{self.port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(hit.body) for hit in self.hits]

    async def got(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Hit]:
        await wait_until(lambda: len(self.hits) >= count, f"{count} webhooks have come", timeout_s)
        return self.hits

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._serving.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            hit = Hit(head[0].split()[1], headers, body)
            self.peers.append(int(writer.get_extra_info("peername")[1]))
            self.hits.append(hit)
            said = self.says(hit)
            if said == HANG:
                await asyncio.Event().wait()
            writer.write(said)
            await writer.drain()
