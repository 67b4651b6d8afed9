"""The three addresses that every service answers for its operators: /healthz, /readyz, /metrics."""

from collections.abc import Callable

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.clock import monotonic_s

Check = Callable[[], str | None]
"""None when all is well, else the fault in one line."""

STALE_S = 10.0
"""A read loop that made no pass for so long is not alive, whatever the process looks like: a pass takes about one second."""


def passing(name: str, last_pass_s: Callable[[], float | None], fault: Callable[[], str | None]) -> Check:
    """A check on a read loop: it made a pass lately, and the last one had no fault."""

    def check() -> str | None:
        last = last_pass_s()
        if last is None:
            return fault() or f"{name} has not made a pass yet"
        if monotonic_s() - last > STALE_S:
            return fault() or f"{name} made no pass for {monotonic_s() - last:.0f} s"
        return fault()

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


def _answer(status: int, word: str, faults: list[str]) -> Response:
    body = msgspec.json.encode({"status": word, "faults": faults})
    return Response(body, status_code=status, media_type="application/json")
