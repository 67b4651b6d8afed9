"""Calls to an engine, as the worker makes them."""

from typing import Any, cast

import msgspec

from services.inference.engine import Answer, Call, Chunk, Engine


async def ask(engine: Engine, route: str, **body: Any) -> tuple[list[Chunk], Answer]:
    return await called(engine, Call(task_id="t1", route=route, body=msgspec.json.encode(body), priority=1))


async def called(engine: Engine, call: Call) -> tuple[list[Chunk], Answer]:
    """All chunks and the answer; there is exactly one, and it comes last."""
    made = [piece async for piece in engine.run(call)]
    chunks = [piece for piece in made if isinstance(piece, Chunk)]
    assert len(chunks) == len(made) - 1
    return chunks, cast("Answer", made[-1])


def hello(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def text_of(chunks: list[Chunk]) -> str:
    """The text of a streamed chat or completion."""
    choices = [choice for chunk in chunks for choice in msgspec.json.decode(chunk.data)["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)
