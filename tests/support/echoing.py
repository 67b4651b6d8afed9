"""A callable for the python engine that answers with the words it was asked, as the echo engine does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

PAUSE_S = 0.005


async def echoing(body: dict[str, Any]) -> Any:
    if "file" in body:
        return {"text": f"{body['file'].filename} {len(body['file'].data)} bytes"}
    if "input" in body:
        return f"RIFF {body['input']}".encode(), "audio/wav"
    chat = "messages" in body
    said = body["messages"][-1]["content"] if chat else body["prompt"]
    words = said.split()[: body.get("max_tokens")]
    if body.get("stream"):
        return _frames(words, chat)
    text = " ".join(words)
    return {"choices": [{"index": 0, "message": {"content": text}} if chat else {"index": 0, "text": text}]}


async def _frames(words: list[str], chat: bool) -> AsyncIterator[Any]:
    for number, word in enumerate(words):
        text = f" {word}" if number else word
        yield {"choices": [{"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}]}
        await asyncio.sleep(PAUSE_S)
