"""Tokens a second and time to the first one: bare AsyncLLM, vLLM's own server, Headrace from HTTP in to WebSocket out.

The same model on the same cores, one system at a time (idle engines spin), in turn, for several rounds.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from services.inference.engine_vllm import VllmEngine
from shared.clock import monotonic_s
from tests.bench.client import Watcher, connect, submitted_id
from tests.support.deployment import deployment
from tests.support.vllm_server import MODEL, SOURCE, vllm_server

TOKENS = 64
AT_ONCE = {1: 3, 16: 32, 64: 128}
"""Requests of a round, by how many run at once."""
BARE = "bare AsyncLLM"
QUESTION = "Tell me a long story about a mill, its wheel and the water that drives it."

Ask = Callable[[int], Awaitable[float]]
"""Sends request number n and returns when its first token came (monotonic seconds), after its last."""


class Row(Struct):
    tokens_per_s: list[float] = msgspec.field(default_factory=list)
    first_ms: list[float] = msgspec.field(default_factory=list)


def body(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        **more,
    }


@contextlib.asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[Ask]:
    """The engine alone, in this process: no HTTP, no chat template at run time."""
    engine = VllmEngine(model=MODEL, source=SOURCE, options={}, slots=0)
    await engine.start()
    from vllm import SamplingParams  # noqa: TID251
    from vllm.sampling_params import RequestOutputKind  # noqa: TID251

    inner: Any = engine._inner
    tokenizer = inner.get_tokenizer()
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]

    async def ask(number: int) -> float:
        parameters = SamplingParams(max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        first_at_s = 0.0
        async for _ in inner.generate({"prompt_token_ids": prompt}, parameters, f"bare-{number}-{monotonic_s()}"):
            first_at_s = first_at_s or monotonic_s()
        return first_at_s

    try:
        yield ask
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Ask]:
    """vLLM's own OpenAI server, with the options that Headrace gives its engine."""
    data = json.dumps(body()).encode()
    with vllm_server(folder) as url:

        async def ask(number: int) -> float:
            return await (await connect(url)).stream("/v1/chat/completions", data)

        yield ask


@contextlib.asynccontextmanager
async def headrace(folder: Path) -> AsyncIterator[Ask]:
    """Submitted over HTTP, read over one WebSocket that follows the session."""
    with deployment(folder, "--engine", "vllm") as running:
        watcher, ready = Watcher(), asyncio.Event()
        watching = asyncio.create_task(watcher.run(running.ws, "bench", ready))
        await ready.wait()
        yield _asker(running.http, watcher)
        watching.cancel()


def _asker(http: str, watcher: Watcher) -> Ask:
    data = json.dumps({"body": body(), "session": "bench", "lane": "interactive"}).encode()

    async def ask(number: int) -> float:
        line = await connect(http)
        status, answer = await line.post("/v1/tasks", data)
        line.close()
        assert status == 202, answer
        task = submitted_id(answer)
        await watcher.wait_for_task(task)
        return watcher.first_at_s[task]

    return ask


async def measure(ask: Ask, at_once: int, row: Row) -> None:
    numbers = iter(range(AT_ONCE[at_once]))

    async def one() -> None:
        for number in numbers:
            asked_at_s = monotonic_s()
            row.first_ms.append((await ask(number) - asked_at_s) * 1000)

    began_at_s = monotonic_s()
    await asyncio.gather(*(one() for _ in range(at_once)))
    row.tokens_per_s.append(AT_ONCE[at_once] * TOKENS / (monotonic_s() - began_at_s))


def report(rows: dict[int, dict[str, Row]]) -> None:
    for at_once, systems in rows.items():
        base = statistics.median(systems[BARE].tokens_per_s)
        for name, row in systems.items():
            rate, first = statistics.median(row.tokens_per_s), sorted(row.first_ms)
            print(
                f"{at_once:3} at once  {name:22} {rate:7.1f} tokens/s  {rate / base:5.2f} of bare   first token "
                f"p50 {first[len(first) // 2]:7.0f} ms  p99 {first[min(len(first) - 1, int(len(first) * 0.99))]:7.0f} ms"
            )


SYSTEMS = {BARE: bare, "vLLM's server": server, "Headrace, HTTP to WS": headrace}


async def measure_all(name: str) -> None:
    """One system at every level; prints its rows as JSON."""
    rows = {at_once: Row() for at_once in AT_ONCE}
    with tempfile.TemporaryDirectory() as folder:
        async with SYSTEMS[name](Path(folder)) as ask:
            await ask(0)
            for at_once, row in rows.items():
                await measure(ask, at_once, row)
    print(msgspec.json.encode(rows).decode(), flush=True)


async def main(rounds: int) -> None:
    """Each measurement in a process of its own: what an engine leaves running would disturb the next one."""
    rows = {at_once: {name: Row() for name in SYSTEMS} for at_once in AT_ONCE}
    for number in range(rounds):
        for name in SYSTEMS:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "tests.bench.tokens", name]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            said, _ = await process.communicate()
            assert process.returncode == 0, said.decode()
            for at_once, row in msgspec.json.decode(said.splitlines()[-1], type=dict[int, Row]).items():
                rows[at_once][name].tokens_per_s += row.tokens_per_s
                rows[at_once][name].first_ms += row.first_ms
    print(f"{MODEL}, {TOKENS} tokens an answer, {rounds} rounds, medians")
    report(rows)


if __name__ == "__main__":
    uvloop.run(measure_all(sys.argv[1]))
