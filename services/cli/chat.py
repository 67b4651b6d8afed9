"""A question over the HTTP door, its answer as it comes."""

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from services.cli.arguments import MAX_TOKENS, TEMPERATURE
from services.cli.doors import complaint, http_door, read_json
from services.cli.failure import TASK_FAILED, Failure


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
) -> Told:
    """Raises: Failure."""
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
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                await response.aread()
                raise Failure(complaint(response), code=TASK_FAILED)
            told = Told(id=response.headers.get("x-headrace-task", ""), model=model)
            await _read(response, told, on_text)
            return told


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
