"""Tasks through all four services with the echo engine: HTTP in, WebSocket out.

Prints tasks/s, latency at 100 tasks/s, and per task the Redis commands and the CPU of each process.
"""

import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from shared.bus.connection import Connection as RedisConnection
from shared.clock import monotonic_s
from tests.bench.client import Connection, Watcher, connect, submitted_id
from tests.support.deployment import Deployment, cpu_s, deployment

MODEL = "smollm2-135m-instruct"
TEXT = "x" * 180
"""The body is 200 to 300 bytes, as in docs of other queues."""
TASKS, AT_ONCE = 10_000, 64


class Round(Struct):
    tasks_per_s: float
    latencies_ms: list[float]
    commands: float
    cpu_us: dict[str, float]
    """Per task, by service."""


async def measure(running: Deployment, *, tasks: int, at_once: int, rate: float, streamed: bool) -> Round:
    watcher, ready = Watcher(), asyncio.Event()
    watching = asyncio.create_task(watcher.run(running.ws, "bench", ready))
    await ready.wait()
    body = {"model": MODEL, "stream": streamed, "messages": [{"role": "user", "content": TEXT}]}
    data = json.dumps({"body": body, "session": "bench"}).encode()
    lines = [await connect(running.http) for _ in range(at_once)]
    redis = RedisConnection(running.redis, name="bench")
    redis.open()
    processes = running.processes()
    before = await _commands(redis), {name: sum(map(cpu_s, pids)) for name, pids in processes.items()}
    began_at_s = monotonic_s()
    sent: dict[str, float] = {}
    numbers = iter(range(tasks))
    await asyncio.gather(*(_send(line, data, numbers, rate, began_at_s, sent) for line in lines))
    await asyncio.wait_for(watcher.wait_for(tasks), 120)
    took_s = monotonic_s() - began_at_s
    commands = (await _commands(redis) - before[0]) / tasks
    cpu = {name: (sum(map(cpu_s, pids)) - before[1][name]) * 1e6 / tasks for name, pids in processes.items()}
    latencies = [(watcher.done_at_s[id] - at_s) * 1000 for id, at_s in sent.items()]
    watching.cancel()
    await redis.close()
    return Round(tasks / took_s, sorted(latencies), commands, cpu)


async def _send(
    line: Connection, data: bytes, numbers: Iterator[int], rate: float, began_at_s: float, sent: dict[str, float]
) -> None:
    for number in numbers:
        if rate:
            await asyncio.sleep(max(0.0, began_at_s + number / rate - monotonic_s()))
        at_s = monotonic_s()
        status, answer = await line.post("/v1/tasks", data)
        assert status == 202, answer
        sent[submitted_id(answer)] = at_s


async def _commands(redis: RedisConnection) -> int:
    info = (await redis.call("INFO", "stats")).decode()
    return int(info.partition("total_commands_processed:")[2].split()[0])


def report(title: str, rounds: list[Round]) -> None:
    cpu = {name: statistics.median(r.cpu_us[name] for r in rounds) for name in rounds[0].cpu_us}
    latencies = sorted(ms for r in rounds for ms in r.latencies_ms)
    print(
        f"{title:34} {statistics.median(r.tasks_per_s for r in rounds):7.0f} tasks/s   "
        f"p50 {latencies[len(latencies) // 2]:6.1f} ms  p99 {latencies[int(len(latencies) * 0.99)]:6.1f} ms   "
        f"{statistics.median(r.commands for r in rounds):5.2f} commands/task   CPU us/task: "
        + "  ".join(f"{name} {value:.0f}" for name, value in sorted(cpu.items()))
        + f"  all {sum(cpu.values()):.0f}",
        flush=True,
    )


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, deployment(Path(folder), "--engine", "echo") as running:
        print("Echo engine, one process of each service, one Redis (AOF everysec), client on the same cores")
        await measure(running, tasks=2000, at_once=AT_ONCE, rate=0, streamed=True)  # warm
        report("100 tasks/s offered", [await measure(running, tasks=1000, at_once=50, rate=100, streamed=True)])
        for streamed, title in ((True, "streamed, as fast as it goes"), (False, "whole answers, as fast as it goes")):
            measured = [
                await measure(running, tasks=TASKS, at_once=AT_ONCE, rate=0, streamed=streamed) for _ in range(rounds)
            ]
            report(title, measured)
