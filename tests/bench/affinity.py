"""Prefix affinity on two vLLM workers: groups of tasks that share a long beginning, with affinity and without it.

Online, a few tasks at once in random order: what counts is which worker a task is given to. As a batch, all at once: what
counts is also the order, in which tasks that begin alike stand together. Hits are those that vLLM counts itself, in tokens
of prompts. The KV cache holds the beginnings of about half of the groups, as real ones hold a part of what is asked.
"""

import asyncio
import random
import statistics
import sys
import tempfile
from pathlib import Path

from msgspec import Struct, field

from shared.clock import monotonic_s
from tests.bench.client import Watcher, connect
from tests.bench.load import submit, text, total
from tests.support.deployment import Deployment, deployment
from tests.support.vllm_server import MODEL

GROUPS, EACH = 8, 12
PREFIX_WORDS, QUESTION_WORDS, ANSWER_TOKENS = 300, 12, 16
SLOTS, AT_ONCE = 4, 5
"""Of a worker, and online of both: below what makes a worker count as loaded."""
KV_BYTES = 2600 * 23_040
"""2,600 tokens of SmolLM2-135M."""
ONE_CORE_EACH = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "GOMP_CPU_AFFINITY": ""}
"""Two engines of two threads on two cores would wait for one another."""
CONFIG = """
affinity = {affinity}
[pools.smol]
model = "{model}"
slots = {slots}
[pools.smol.vllm]
options = {{ block-size = 32, max-model-len = 1024, kv-cache-memory-bytes = {kv_bytes} }}
[lanes.batch]
slots = 1.0
"""
WORDING = {0.8: "affinity", 0.0: "without"}


class Row(Struct):
    tokens_per_s: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    """Share of the prompts' tokens."""
    first_ms: list[float] = field(default_factory=list)


def tasks(seed: int) -> list[str]:
    """Prompts in the order in which they are submitted."""
    chance = random.Random(seed)
    made = [
        f"{beginning}. {text(QUESTION_WORDS, chance)}"
        for beginning in [text(PREFIX_WORDS, chance) for _ in range(GROUPS)]
        for _ in range(EACH)
    ]
    chance.shuffle(made)
    return made


async def counters(running: Deployment) -> tuple[float, float]:
    workers = running.replicas["inference"]
    return await total(workers, "vllm:prefix_cache_hits_total"), await total(workers, "vllm:prefix_cache_queries_total")


async def measure(running: Deployment, lane: str, seed: int, row: Row) -> None:
    watcher, ready = Watcher(), asyncio.Event()
    watching = asyncio.create_task(watcher.run(running.ws, f"bench-{lane}", ready))
    await ready.wait()
    prompts = iter(tasks(seed))

    async def one() -> None:
        line = await connect(running.http)
        for prompt in prompts:
            asked_at_s = monotonic_s()
            task = await submit(line, MODEL, prompt, ANSWER_TOKENS, session=f"bench-{lane}", lane=lane, stream=True)
            await watcher.wait_for_task(task)
            row.first_ms.append((watcher.first_at_s[task] - asked_at_s) * 1000)
        line.close()

    before, began_s = await counters(running), monotonic_s()
    await asyncio.gather(*(one() for _ in range(GROUPS * EACH if lane == "batch" else AT_ONCE)))
    took_s, after = monotonic_s() - began_s, await counters(running)
    watching.cancel()
    row.tokens_per_s.append(GROUPS * EACH * ANSWER_TOKENS / took_s)
    row.hits.append((after[0] - before[0]) / (after[1] - before[1]))


def report(rows: dict[tuple[str, float], Row]) -> None:
    for (lane, affinity), row in rows.items():
        without = rows[lane, 0.0]
        ratios = [a / b for a, b in zip(row.tokens_per_s, without.tokens_per_s, strict=True)]
        print(
            f"{lane:7} {WORDING[affinity]:9} {statistics.median(row.hits):5.1%} of prompt tokens from the KV cache   "
            f"{statistics.median(row.tokens_per_s):6.1f} tokens/s ({statistics.median(ratios):4.2f})   "
            f"first token p50 {statistics.median(row.first_ms):6.0f} ms"
        )


async def main(rounds: int) -> None:
    """A deployment for each measurement: nothing is left in a KV cache, and every worker is new."""
    rows = {(lane, affinity): Row() for lane in ("normal", "batch") for affinity in (0.0, 0.8)}
    for number in range(rounds):
        for affinity in (0.0, 0.8):
            print(f"round {number + 1} of {rounds}: {WORDING[affinity]}", file=sys.stderr, flush=True)
            config = CONFIG.format(affinity=affinity, model=MODEL, slots=SLOTS, kv_bytes=KV_BYTES)
            with (
                tempfile.TemporaryDirectory() as folder,
                deployment(
                    Path(folder), "--replicas", "inference=2", config=config, environ=ONE_CORE_EACH, timeout_s=240
                ) as running,
            ):
                for lane in ("normal", "batch"):
                    await measure(running, lane, number, rows[lane, affinity])
    print(
        f"{MODEL}, two workers of {SLOTS} slots, {GROUPS} groups of {EACH} tasks, {PREFIX_WORDS} words in common, "
        f"{ANSWER_TOKENS} tokens an answer, {rounds} rounds, medians"
    )
    report(rows)
