"""Write a trace of what a deployment has done, from the tasks that it still keeps (limits.results_kept_s).

    python -m tests.simulate.record --redis redis://127.0.0.1:6379 --shard smol.0 yesterday.csv
    python -m tests.simulate --trace yesterday.csv --weights acme=3,globex=1

It only reads, a page of keys at a time. Answers that were never made count with what was made of them; tasks without any are
left out, for nobody knows how long they would have been.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from shared.bus.connection import Connection, Reply
from shared.errors import BusError
from shared.keys import ShardKeys
from shared.lifecycle import Lane
from tests.simulate.trace import Row, TraceError, ordered, write

PAGE = 1000
FIELDS = ("created_at_ms", "deadline_ms", "tenant", "lane", "tokens_in", "tokens_out", "used", "prefix")
LONG_S = 12 * 3600
"""A deadline beyond that is the deployment's own, not the client's."""


async def recorded(url: str, shard: ShardKeys) -> list[Row]:
    """Raises: BusError."""
    connection = Connection(url, name="simulator-record")
    connection.open()
    try:
        return ordered([row async for row in _rows(connection, shard)])
    finally:
        await connection.close()


async def _rows(connection: Connection, shard: ShardKeys) -> AsyncIterator[Row]:
    cursor, pattern = b"0", shard.task("*").replace("{", "[{]").replace("}", "[}]")
    while True:
        cursor, keys = await connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        for found in [connection.send("HMGET", key, *FIELDS) for key in keys]:
            if (row := _row(await found)) is not None:
                yield row
        if cursor == b"0":
            return


def _row(found: Reply) -> Row | None:
    """None: it has not made anything."""
    created_at_ms, deadline_ms, tenant, lane, tokens_in, most, used, prefix = found
    tokens_in = int(tokens_in or 0)
    made = int(used or 0) - tokens_in
    if created_at_ms is None or tokens_in < 1 or made < 1:
        return None
    expires_in_s = (int(deadline_ms) - int(created_at_ms)) / 1000
    return Row(
        arrival_s=int(created_at_ms) / 1000,
        tenant=tenant.decode(),
        lane=Lane(lane.decode()),
        tokens_in=tokens_in,
        tokens_out=made,
        max_tokens=int(most or 0),
        expires_in_s=expires_in_s if expires_in_s < LONG_S else 0.0,
        prefix=(prefix or b"").decode().rpartition(",")[2],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate.record", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="to be written, .csv or .jsonl")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379", metavar="URL", help="default: %(default)s")
    parser.add_argument("--shard", default="smol.0", metavar="POOL.N", help="whose tasks (default %(default)s)")
    given = parser.parse_args()
    pool, _, number = given.shard.rpartition(".")
    if not pool or not number.isdigit():
        parser.error(f"--shard is {given.shard!r}; it is a pool and the number of its shard, as smol.0")
    try:
        rows = asyncio.run(recorded(given.redis, ShardKeys(pool, int(number))))
        if not rows:
            parser.error(
                f"{given.shard} keeps no task that has made anything; limits.results_kept_s says how long it keeps them"
            )
        write(given.file, rows)
    except (BusError, TraceError) as error:
        parser.error(str(error))
    print(f"{len(rows)} tasks of {rows[-1].arrival_s:.0f} s in {given.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
