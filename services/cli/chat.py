"""A question over the HTTP door, its answer as it comes."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from services.cli.arguments import MAX_TOKENS, TEMPERATURE
from services.cli.doors import complaint, http_door, read_json
from services.cli.failure import TASK_FAILED, Failure
from services.cli.line import of_view

LOOK_S = 1.0
"""Between two looks at the place of the question, while nothing comes."""


class Told(Struct, kw_only=True):
    """An answer, when it is whole."""

    id: str
    model: str
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


async def ask(
    url: str,
    model: str | None,
    question: str,
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    on_text: Callable[[str], None],
    on_place: Callable[[str], None] | None = None,
) -> Told:
    """`on_place` is told in words how the question waits, and the empty word when it does no more. Raises: Failure."""
    async with http_door(url) as client:
        model = model or await only_model(client)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        session = f"ask-{secrets.token_hex(8)}" if on_place is not None else ""
        headers = {"x-headrace-session": session} if session else {}
        async with (
            _watching(client, session, on_place) as stop,
            client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
        ):
            await stop()
            if response.is_error:
                await response.aread()
                raise Failure(complaint(response), code=TASK_FAILED)
            told = Told(id=response.headers.get("x-headrace-task", ""), model=model)
            await _read(response, told, on_text)
            return told


@contextlib.asynccontextmanager
async def _watching(
    client: httpx.AsyncClient, session: str, on_place: Callable[[str], None] | None
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The place of the session's only task is told until the block ends, or what it gives is called."""

    async def watch(tell: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(httpx.HTTPError, Failure):  # the question itself will tell what is wrong
                found = read_json(await client.get("/v1/tasks", params={"session": session}))["data"]
                tell(of_view(found[0]) if found else "")

    watching = asyncio.create_task(watch(on_place)) if on_place is not None else None

    async def stop() -> None:
        if watching is not None and on_place is not None:
            watching.cancel()
            await asyncio.wait([watching])
            on_place("")

    try:
        yield stop
    finally:
        await stop()


async def _read(response: httpx.Response, told: Told, on_text: Callable[[str], None]) -> None:
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        chunk = msgspec.json.decode(data)
        if error := chunk.get("error"):
            raise Failure(f"\n{error['message']}", code=TASK_FAILED)
        told.usage = chunk.get("usage") or told.usage
        for choice in chunk["choices"]:
            told.finish_reason = choice.get("finish_reason") or told.finish_reason
            if text := choice["delta"].get("content"):
                told.text += text
                on_text(text)


async def only_model(client: httpx.AsyncClient) -> str:
    """The first model that is served. Raises: Failure."""
    models = read_json(await client.get("/v1/models"))["data"]
    return str(models[0]["id"])
