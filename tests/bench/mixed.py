"""Interactive tasks beside a batch that takes all there is: SmolLM2 through the whole of Headrace.

Three loads take turns on one deployment: interactive tasks alone, both, the batch alone. In the first round a fourth is both
again with the batch in the lane of the interactive tasks: what lanes are good for.
"""

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct, field

from shared.clock import monotonic_s
from tests.bench.client import Watcher, connect
from tests.bench.load import submit, text, total
from tests.support.deployment import Deployment, deployment
from tests.support.vllm_server import MODEL

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
"""
"""All else as it is by default: services/inference/vllm_options.py, shared/policy.py."""
PROMPT_WORDS = (40, 180)
ANSWER_TOKENS, BATCH_TOKENS = 32, 128
PER_S = 1.0
"""Interactive tasks, at random times, the same in every load."""
OUTSTANDING = 64
"""Batch tasks that run or wait: several times the slots."""
PHASE_S, LEAD_S = 40.0, 6.0
"""A load is measured for so long, and the batch begun so much before."""
GOAL_FIRST, GOAL_KEPT = 1.5, 0.85


class Rows(Struct):
    first_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    """Of each round, sorted."""
    tokens_per_s: dict[str, list[float]] = field(default_factory=dict)


class Load:
    def __init__(self, running: Deployment) -> None:
        self._running = running
        self._quick, self._slow = Watcher(), Watcher()
        self._watching: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        for watcher, session in ((self._quick, "quick"), (self._slow, "slow")):
            ready = asyncio.Event()
            self._watching.append(asyncio.create_task(watcher.run(self._running.ws, session, ready)))
            await ready.wait()

    async def close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def tokens(self) -> float:
        return await total(self._running.replicas["inference"], "vllm:generation_tokens_total")

    async def interactive(self, seed: int) -> list[float]:
        """Time to the first token of each task, ms."""
        chance, asked = random.Random(seed), []
        at_s = began_s = monotonic_s()
        while (at_s := at_s + chance.expovariate(PER_S)) < began_s + PHASE_S:
            await asyncio.sleep(max(0.0, at_s - monotonic_s()))
            asked.append(asyncio.create_task(self._ask(text(chance.randint(*PROMPT_WORDS), chance))))
        await asyncio.sleep(max(0.0, began_s + PHASE_S - monotonic_s()))
        return list(await asyncio.gather(*asked))

    async def _ask(self, prompt: str) -> float:
        began_s = monotonic_s()
        line = await connect(self._running.http)
        task = await submit(line, MODEL, prompt, ANSWER_TOKENS, session="quick", lane="interactive", stream=True)
        line.close()
        await self._quick.wait_for_task(task)
        return (self._quick.first_at_s[task] - began_s) * 1000

    @contextlib.asynccontextmanager
    async def batch(self, lane: str) -> AsyncIterator[None]:
        """Meanwhile so many batch tasks are outstanding, always."""
        chance, waiting, over = random.Random(1), set[str](), False

        async def keep_one() -> None:
            line = await connect(self._running.http)
            while not over:
                prompt = text(chance.randint(*PROMPT_WORDS), chance)
                task = await submit(line, MODEL, prompt, BATCH_TOKENS, session="slow", lane=lane, stream=False)
                waiting.add(task)
                await self._slow.wait_for_task(task)
                waiting.discard(task)
            line.close()

        keepers = [asyncio.create_task(keep_one()) for _ in range(OUTSTANDING)]
        await asyncio.sleep(LEAD_S)
        try:
            yield
        finally:
            over = True
            line = await connect(self._running.http)
            for task in list(waiting):
                await line.post(f"/v1/tasks/{task}/cancel", b"")
            line.close()
            await asyncio.gather(*keepers)


async def measure(load: Load, title: str, rows: Rows, seed: int, *, interactive: bool, batch: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if batch:
            await stack.enter_async_context(load.batch(batch))
        before, began_s = await load.tokens(), monotonic_s()
        first_ms = await load.interactive(seed) if interactive else await asyncio.sleep(PHASE_S, [])
        made, took_s = await load.tokens() - before, monotonic_s() - began_s
    if interactive:
        rows.first_ms.setdefault(title, []).append(sorted(first_ms))
    rows.tokens_per_s.setdefault(title, []).append((made - len(first_ms) * ANSWER_TOKENS) / took_s)


ALONE, BATCH, BOTH, NO_LANES = "interactive alone", "batch alone", "both", "both, one lane"


def report(rows: Rows) -> None:
    """Medians of the rounds, and in brackets of the ratios to the load alone of the same round."""
    for title in (ALONE, BATCH, BOTH, NO_LANES):
        line = f"{title:18}"
        if title in rows.first_ms:
            for share in (0.5, 0.95, 0.99):
                told = [at(first, share) for first in rows.first_ms[title]]
                ratio = statistics.median(b / at(a, share) for a, b in zip(rows.first_ms[ALONE], told, strict=False))
                line += f"p{share * 100:.0f} {statistics.median(told):6.0f} ms ({ratio:5.2f})  "
        if title != ALONE:
            made = rows.tokens_per_s[title]
            kept = statistics.median(b / a for a, b in zip(rows.tokens_per_s[BATCH], made, strict=False))
            line += f"batch {statistics.median(made):6.1f} tokens/s ({kept:4.2f})"
        print(line)
    asked = sum(map(len, rows.first_ms[ALONE]))
    print(
        f"to the first token; goal of both: p99 at most {GOAL_FIRST}, batch at least {GOAL_KEPT}; {asked} interactive tasks"
    )


def at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def main(rounds: int) -> None:
    rows = Rows()
    with tempfile.TemporaryDirectory() as folder, deployment(Path(folder), config=CONFIG) as running:
        load = Load(running)
        await load.open()
        for seed in range(rounds):
            loads = [(ALONE, True, ""), (BOTH, True, "batch"), (BATCH, False, "batch")]
            loads = loads[seed % 3 :] + loads[: seed % 3]  # whatever drifts, drifts for all
            for title, interactive, batch in [*loads, *[(NO_LANES, True, "interactive")] * (seed == 0)]:
                print(f"round {seed + 1} of {rounds}: {title}", file=sys.stderr, flush=True)
                await measure(load, title, rows, seed, interactive=interactive, batch=batch)
        await load.close()
    print(
        f"{MODEL}, {PER_S:g} interactive task a second, {OUTSTANDING} batch tasks outstanding, {rounds} rounds of {PHASE_S:g} s"
    )
    report(rows)
