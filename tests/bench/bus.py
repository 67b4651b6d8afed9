"""The bus client against redis-py's public client: the same XADD, one at a time and from 64 callers at once."""

import asyncio
import statistics
import time

import redis.asyncio

from shared.bus.connection import Connection
from shared.clock import monotonic_s
from tests.support.redis import redis_server

VALUE = b"x" * 256
COUNT, CALLERS = 20_000, 64


async def ours(url: str, callers: int) -> tuple[float, float]:
    connection = Connection(url, name="bench")
    connection.open()
    await connection.call("DEL", "bench")
    measured = await measure(lambda: connection.call("XADD", "bench", "MAXLEN", "~", 1000, "*", "v", VALUE), callers)
    await connection.close()
    return measured


async def theirs(url: str, callers: int) -> tuple[float, float]:
    client = redis.asyncio.Redis.from_url(url, max_connections=callers)
    measured = await measure(lambda: client.xadd("bench", {"v": VALUE}, maxlen=1000, approximate=True), callers)
    await client.aclose()
    return measured


async def measure(call, callers: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """(operations a second, client CPU us an operation)."""
    count = COUNT if callers > 1 else COUNT // 4

    async def work() -> None:
        for _ in range(count // callers):
            await call()

    began_at_s, cpu_s = monotonic_s(), time.process_time()
    await asyncio.gather(*(work() for _ in range(callers)))
    return count / (monotonic_s() - began_at_s), (time.process_time() - cpu_s) * 1e6 / count


async def main(rounds: int) -> None:
    with redis_server() as url:
        print("XADD of 256 bytes, one process")
        for callers in (1, CALLERS):
            rows = [(await theirs(url, callers), await ours(url, callers)) for _ in range(rounds)]
            for name, column in (("redis-py", 0), ("bus", 1)):
                rate = statistics.median(row[column][0] for row in rows)
                cpu = statistics.median(row[column][1] for row in rows)
                print(f"  {callers:3} at once  {name:9} {rate:9.0f} ops/s  {cpu:6.1f} us CPU an operation")
            ratio = statistics.median(row[1][0] / row[0][0] for row in rows)
            print(f"  {callers:3} at once  ratio     {ratio:9.1f}")
