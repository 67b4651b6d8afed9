"""The three addresses that every service answers for its operators: /healthz, /readyz, /metrics."""

from collections.abc import Callable
from typing import Protocol

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.clock import monotonic_s
from shared.errors import ErrorBody
from shared.periodic import Periodic

Check = Callable[[], str | None]
"""None when all is well, else the fault in one line."""

STALE_S = 10.0
"""A read loop that made no pass for so long is not alive, whatever the process looks like: a pass takes about one second."""


class Loop(Protocol):
    """Anything that runs in passes and tells how the last one went."""

    name: str

    @property
    def last_pass_s(self) -> float | None: ...

    @property
    def fault(self) -> str | None: ...

    async def run(self) -> None: ...

    async def stop(self) -> None: ...


def passing(loop: Loop, *, stale_s: float = STALE_S) -> Check:
    """A check on a read loop: it made a pass lately, and the last one had no fault. `stale_s`: beside its own pause."""

    if isinstance(loop, Periodic):
        stale_s += loop.interval_s

    def check() -> str | None:
        if loop.last_pass_s is None:
            return loop.fault or f"{loop.name} has not made a pass yet"
        silent_s = monotonic_s() - loop.last_pass_s
        if silent_s > stale_s:
            return loop.fault or f"{loop.name} made no pass for {silent_s:.0f} s"
        return loop.fault

    return check


def probe_routes(*checks: Check) -> list[Route]:
    """Routes for a Starlette app. /healthz says the event loop turns; /readyz also that every check passes."""

    async def healthz(_: Request) -> Response:
        return _answer(200, "ok", [])

    async def readyz(_: Request) -> Response:
        faults = [fault for check in checks if (fault := check())]
        return _answer(503 if faults else 200, "not ready" if faults else "ok", faults)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


class Door:
    """A service's port. Until `open` it is alive and not ready, and whoever asks for more than that is told to come again."""

    def __init__(self, waits_for: Check) -> None:
        """`waits_for`: what it cannot start without."""
        routes = probe_routes(lambda: waits_for() or "it is starting")
        self._app: ASGIApp = Starlette(routes=[*routes, Mount("/", _come_again)])

    def open(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _come_again(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket is answered with the same: in ASGI that is an extension, with names of its own."""
    kind = scope["type"]
    prefix = "websocket.http" if kind == "websocket" else kind
    error = ErrorBody(message="This service is starting. Try again later.", type="server_error", code="starting")
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"2")]
    await send({"type": f"{prefix}.response.start", "status": 503, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body})


def _answer(status: int, word: str, faults: list[str]) -> Response:
    body = msgspec.json.encode({"status": word, "faults": faults})
    return Response(body, status_code=status, media_type="application/json")
