"""What an item of a batch costs beside vLLM's own `run_batch`: the same file, the same model and options, on the same cores.

    python -m tests.bench batch_vllm                        three rounds of 200 items
    python -m tests.bench.batch_vllm --items 20 --rounds 1

`run_batch` is called as the command `vllm run-batch` calls it, with an engine that has started. Headrace gets the file over HTTP,
makes a batch of it, and gives the output back. It runs twice: as it is by default, where half of a worker's slots go to batches,
and with all of them. Start-up is measured of neither: a short file goes before, with other prompts.

The model computes in float32, in which the same prompt has the same answer whatever runs beside it: answers are compared.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import openai
import uvloop
from msgspec import Struct

from services.inference.models import resolve
from services.inference.vllm_options import defaults, environment, to_flags
from shared.clock import monotonic_s
from tests.bench.load import text
from tests.support.deployment import cpu_s, deployment
from tests.support.processes import descendants
from tests.support.vllm_server import MODEL, SOURCE

CHAT = "/v1/chat/completions"
ITEMS, WARM_ITEMS = 200, 8
PROMPT_WORDS, TOKENS = (20, 60), 16
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
[pools.smol.vllm.options]
dtype = "float32"
"""
ALL_SLOTS = """
[lanes.batch]
slots = 1.0
"""
BARE, BESIDE, ALONE = "run_batch", "Headrace", "Headrace, all slots"
SYSTEMS = (BARE, BESIDE, ALONE)
POLL_S = 0.2


class Use(Struct, frozen=True):
    """CPU seconds so far."""

    engine: float
    """The processes that vLLM starts: scheduler and model."""
    beside: float
    """All the others: reading, tokenizing, waiting, writing."""

    def since(self, before: "Use") -> "Use":
        return Use(self.engine - before.engine, self.beside - before.beside)


class Outcome(Struct):
    took_s: float
    used: Use
    answers: dict[str, str]
    """Text by custom_id."""


def lines(items: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return b"\n".join(line(number, text(chance.randint(*PROMPT_WORDS), chance)) for number in range(items))


def line(number: int, prompt: str) -> bytes:
    asked = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **asked}
    return msgspec.json.encode({"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body})


def answers(output: bytes) -> dict[str, str]:
    """Raises: AssertionError unless each line has an answer of the whole length."""
    found = {}
    for told in map(msgspec.json.decode, output.splitlines()):
        assert told["response"]["status_code"] == 200, told
        body = told["response"]["body"]
        assert body["usage"]["completion_tokens"] == TOKENS, told
        found[told["custom_id"]] = body["choices"][0]["message"]["content"]
    return found


def engine_s(pid: int) -> float:
    return sum(map(cpu_s, descendants(pid)))


# -- the two systems


async def bare(folder: Path, warm: bytes, data: bytes) -> Outcome:
    """vLLM's runner in this process, whose environment is that of `environment`."""
    from vllm.entrypoints.launchers import run_batch as runner  # noqa: TID251
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client  # noqa: TID251
    from vllm.usage.usage_lib import UsageContext  # noqa: TID251
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: TID251

    options = {**defaults(cpu=True, slots=0), "dtype": "float32"}
    flags = [f"--model={resolve(SOURCE)}", f"--served-model-name={MODEL}", "-i", str(folder / "in"), "-o", str(folder / "out")]  # fmt: skip
    flags += to_flags(options, {name.replace("_", "-") for name in options})
    arguments = runner.make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    me = os.getpid()
    async with build_async_engine_client(arguments, usage_context=UsageContext.OPENAI_BATCH_RUNNER) as engine:
        (folder / "in").write_bytes(warm)
        await runner.run_batch(engine, arguments)
        (folder / "in").write_bytes(data)
        before, began_s = Use(engine_s(me), cpu_s(me)), monotonic_s()
        await runner.run_batch(engine, arguments)
        took_s, used = monotonic_s() - began_s, Use(engine_s(me), cpu_s(me)).since(before)
    return Outcome(took_s, used, answers((folder / "out").read_bytes()))


async def headrace(folder: Path, warm: bytes, data: bytes, config: str) -> Outcome:
    with deployment(folder, config=config, timeout_s=300) as running:

        def use() -> Use:
            pids = running.processes()
            engine = sum(map(engine_s, pids["inference"]))
            return Use(engine, sum(cpu_s(pid) for of_one in pids.values() for pid in of_one))

        async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", timeout=60) as client:
            await batch(client, warm)
            before, began_s = use(), monotonic_s()
            output = await batch(client, data)
            took_s, used = monotonic_s() - began_s, use().since(before)
    return Outcome(took_s, used, answers(output))


async def batch(client: openai.AsyncOpenAI, data: bytes) -> bytes:
    """Uploaded, run, and its output downloaded."""
    file = await client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    made = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while made.status not in ("completed", "failed", "cancelled", "expired"):
        await asyncio.sleep(POLL_S)
        made = await client.batches.retrieve(made.id)
    assert made.status == "completed", made
    assert made.output_file_id is not None
    return (await client.files.content(made.output_file_id)).content


async def measure(name: str, items: int, seed: int) -> None:
    """One system; prints its outcome as JSON."""
    warm, data = lines(WARM_ITEMS, -seed - 1), lines(items, seed)
    with tempfile.TemporaryDirectory() as folder:
        if name == BARE:
            found = await bare(Path(folder), warm, data)
        else:
            found = await headrace(Path(folder), warm, data, CONFIG + (ALL_SLOTS if name == ALONE else ""))
    assert found.answers.keys() == {f"item-{number}" for number in range(items)}
    print(msgspec.json.encode(found).decode(), flush=True)


# -- turn and turn about


async def apart(name: str, items: int, seed: int) -> Outcome:
    """In a process of its own: what an engine leaves running would disturb the next one."""
    environ = {**os.environ, **(environment(cpu=True) if name == BARE else {})}  # noqa: TID251
    command = [sys.executable, "-m", "tests.bench.batch_vllm", "--system", name, "--items", str(items), "--seed", str(seed)]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environ)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return msgspec.json.decode(said.splitlines()[-1], type=Outcome)


def report(rounds: list[dict[str, Outcome]], items: int) -> None:
    """Medians of the rounds; ratios are to run_batch in the same round."""
    for name in SYSTEMS:
        took = statistics.median(each[name].took_s for each in rounds) / items * 1000
        engine = statistics.median(each[name].used.engine for each in rounds) / items * 1000
        beside = statistics.median(each[name].used.beside for each in rounds) / items * 1000
        slower = statistics.median(each[name].took_s / each[BARE].took_s for each in rounds)
        dearer = statistics.median(total(each[name]) / total(each[BARE]) for each in rounds)
        same = sum(each[name].answers[key] == each[BARE].answers[key] for each in rounds for key in each[BARE].answers)
        print(
            f"{name:20} {took:7.1f} ms an item ({slower:4.2f})   CPU an item: engine {engine:7.1f} ms, beside it "
            f"{beside:5.1f} ms ({dearer:4.2f})   {same} of {items * len(rounds)} answers as those of run_batch"
        )


def total(found: Outcome) -> float:
    return found.used.engine + found.used.beside


async def main(rounds: int, items: int = ITEMS) -> None:
    found = list[dict[str, Outcome]]()
    for seed in range(rounds):
        order = SYSTEMS[seed % 3 :] + SYSTEMS[: seed % 3]  # whatever drifts, drifts for all
        found.append({})
        for name in order:
            print(f"round {seed + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            found[-1][name] = await apart(name, items, seed)
    print(f"{MODEL} in float32, {items} items of {TOKENS} tokens, {rounds} rounds, medians; in brackets over run_batch")
    report(found, items)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS, help=f"({ITEMS})")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--system", choices=SYSTEMS, help="that one alone, its outcome as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts of --system")
    given = parser.parse_args()
    uvloop.run(measure(given.system, given.items, given.seed) if given.system else main(given.rounds, given.items))
