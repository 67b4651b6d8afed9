"""A batch of 50,000 lines on the echo engine: what an item costs, and with every process killed in turn that none is lost.

    python -m tests.bench batch                  three rounds, undisturbed
    python -m tests.bench.batch --kills          one round in which each process is killed, one after the other

The output is checked line by line: each custom_id once, with its own answer.
"""

import argparse
import asyncio
import io
import os
import signal
import statistics
import tempfile
from pathlib import Path

import msgspec
import openai
import uvloop

from shared.clock import monotonic_s
from tests.support.deployment import Deployment, cpu_s, deployment

MODEL, CHAT, LINES = "echo-1", "/v1/chat/completions", 50_000
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[limits]
lease_s = 2
"""
REPLICAS = "ingress=2,scheduler=2,inference=2,notifier=2"
SERVICES = ("scheduler", "inference", "notifier", "ingress")
"""What is killed in turn. Redis is not among them: with `everysec` it may forget what it has acknowledged."""
KILL_EVERY_S = 2.0


def line(number: int) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"say {number}"}]}
    return msgspec.json.encode({"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body})


async def one(client: openai.AsyncOpenAI, lines: int) -> tuple[str, float]:
    """The id of its output file, and seconds from its creation to its end."""
    data = b"\n".join(line(number) for number in range(lines))
    file = await client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    began_s = monotonic_s()
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        await asyncio.sleep(0.2)
        batch = await client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    return batch.output_file_id, monotonic_s() - began_s


async def check(client: openai.AsyncOpenAI, file_id: str, lines: int) -> None:
    """Raises: AssertionError unless each line has its own answer, once."""
    output = (await client.files.content(file_id)).content.splitlines()
    found = {}
    for said in map(msgspec.json.decode, output):
        found[said["custom_id"]] = said["response"]["body"]["choices"][0]["message"]["content"]
    assert len(output) == lines, f"{len(output)} lines of output, {lines} of input"
    assert found == {f"item-{number}": f"say {number}" for number in range(lines)}


async def kill_in_turn(running: Deployment) -> int:
    """Until cancelled. The supervisor starts them again."""
    killed = 0
    while True:
        for replica in range(2):
            for service in SERVICES:
                await asyncio.sleep(KILL_EVERY_S)
                alive = running.processes().get(service, [])
                if len(alive) == 2:  # else it is being started again
                    os.kill(alive[replica], signal.SIGKILL)
                    killed += 1
                    print(f"killed {service} {replica + 1}", flush=True)


def used_s(running: Deployment) -> dict[str, float]:
    """CPU seconds, by service."""
    return {name: sum(map(cpu_s, pids)) for name, pids in running.processes().items()}


async def main(rounds: int, lines: int = LINES) -> None:
    rates: list[float] = []
    costs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, deployment(Path(folder), config=CONFIG) as running:
        async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", timeout=60) as client:
            for _ in range(rounds):
                before = used_s(running)
                file_id, took_s = await one(client, lines)
                costs.append({name: (used - before[name]) / lines * 1e6 for name, used in used_s(running).items()})
                rates.append(lines / took_s)
                await check(client, file_id, lines)
    cost = {name: statistics.median(round[name] for round in costs) for name in costs[0]}
    print(
        f"batch of {lines} lines: {statistics.median(rates):.0f} items/s, {sum(cost.values()):.0f} us of CPU an item ("
        + ", ".join(f"{name} {used:.0f}" for name, used in sorted(cost.items()))
        + f"); {rounds} rounds, output exact"
    )


async def disturbed(lines: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder), "--replicas", REPLICAS, config=CONFIG) as running,
    ):
        async with openai.AsyncOpenAI(
            base_url=f"{running.http}/v1", api_key="none", timeout=60, max_retries=30
        ) as client:
            killing = asyncio.create_task(kill_in_turn(running))
            file_id, took_s = await one(client, lines)
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            await asyncio.sleep(5)  # what was killed last comes back
            await check(client, file_id, lines)
    print(f"batch of {lines} lines while processes were killed: {took_s:.0f} s, output exact")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", action="store_true", help="kill every process in turn")
    parser.add_argument("--lines", type=int, default=LINES, help=f"({LINES})")
    arguments = parser.parse_args()
    uvloop.run(disturbed(arguments.lines) if arguments.kills else main(1, arguments.lines))
