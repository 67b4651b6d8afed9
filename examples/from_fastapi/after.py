"""The same service in front of Headrace: the handler asks, and the model runs in workers of its own.

uvicorn --app-dir examples/from_fastapi after:app --port 8000
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from contract import Forecast, Series
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.config import Config

HEADRACE_URL = Config()("HEADRACE_URL", default="http://127.0.0.1:8080")
ROUTE, MODEL = "/invocations", "forecaster"
LONGEST_S = 600
"""That a client is kept waiting; its task goes on behind that, if it has a key."""
RUNS = 409
"""Headrace's answer to whoever asks for the result of a task that has none yet."""


@contextlib.asynccontextmanager
async def headrace(app: FastAPI) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    timeout, limits = httpx.Timeout(10, read=LONGEST_S), httpx.Limits(max_connections=None)  # who waits holds one
    async with httpx.AsyncClient(base_url=HEADRACE_URL, timeout=timeout, limits=limits) as client:
        yield {"headrace": client}


app = FastAPI(title="Forecasts", lifespan=headrace)


@app.post("/forecast", responses={202: {"description": "to whoever does not want to wait"}})
async def forecast(
    series: Series,
    request: Request,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
    prefer: Annotated[str, Header()] = "",
) -> Forecast | dict[str, str]:
    body = {"model": MODEL, **series.model_dump()}
    headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
    if "respond-async" not in prefer:
        return Forecast(**read(await request.state.headrace.post(ROUTE, json=body, headers=headers)))
    task = {"route": ROUTE, "body": body}
    accepted = read(await request.state.headrace.post("/v1/tasks", json=task, headers=headers))
    return later(accepted["id"], response)


@app.get("/forecast/{id}", responses={202: {"description": "not yet"}})
async def look(id: str, request: Request, response: Response) -> Forecast | dict[str, str]:
    answer = await request.state.headrace.get(f"/v1/tasks/{quote(id, safe='')}/result")
    return later(id, response) if answer.status_code == RUNS else Forecast(**read(answer))


@app.exception_handler(httpx.TransportError)
async def away(request: Request, error: Exception) -> JSONResponse:
    """With an `Idempotency-Key` it is safe to send the same again."""
    return JSONResponse({"detail": "Headrace cannot be reached."}, 503, {"retry-after": "5"})


def later(id: str, response: Response) -> dict[str, str]:
    response.status_code, response.headers["location"] = 202, f"/forecast/{id}"
    return {"id": id}


def read(answer: httpx.Response) -> dict[str, Any]:
    """Raises: HTTPException, with Headrace's status and words, which for a ValueError of the model are 400 and its own."""
    found: dict[str, Any] = answer.json()
    if answer.is_error:
        again = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
        raise HTTPException(answer.status_code, found["error"]["message"], again)
    return found
