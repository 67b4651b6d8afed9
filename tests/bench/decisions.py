"""What a task costs Redis while many others wait: of few or many tenants, in all three lanes.

The backlog is filled by the scripts that fill it in earnest. Then, at each depth, some tasks more are submitted, admitted, handed
out, started and finished, so the depth stays: microseconds a task are those that Redis counts for the scripts. If a command
walked over what waits, its time a call would grow with the depth: the second table shows those that grew most.
"""

import argparse
import itertools
import random
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct, field

from services.inference.scripts import Hand, Owner, beat, finish, start
from services.scheduler.scripts import Arrival, admit, dispatch
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.config import Config, Limits
from shared.ids import new_nonce
from shared.keys import SCHEDULER, WORKERS
from shared.lifecycle import Lane
from shared.submit import submit
from tests.support.redis import find_server
from tests.support.server import server
from tests.support.tasks import CONFIG, SHARD, ending, item, room

DEPTHS, TENANTS = (100, 10_000, 1_000_000), (1, 100, 10_000)
AT_ONCE = (1, 16)
"""Tasks a call: alone, and what a moderate load gathers. One tenant's tasks share its look-ups then, those of many cannot."""
SLOTS = max(AT_ONCE)
CALLS = 200
"""Of each script and round."""
BODY = b'{"model":"echo-1","messages":[{"role":"user","content":"%s"}]}'
STAGES = ("submit", "admit", "dispatch", "start", "finish")
WALKS = {"keys", "scan", "smembers", "hkeys", "hvals", "sort", "lrange", "sunion", "sinter", "flushdb"}
"""Commands that look at everything there is: none of them belongs into a script."""
LIMITS = Limits(backlog=10**9, lease_s=600)

Stats = dict[str, tuple[int, int]]
"""Calls and microseconds of each command."""


class Row(Struct):
    us: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    """A task, by stage; a value a call, so that the median is of calls that nothing interrupted."""
    commands: dict[str, tuple[int, int]] = field(default_factory=dict)

    def median(self, stage: str) -> float:
        return statistics.median(self.us[stage])


class Shard:
    """One shard under measurement: a Redis of its own, one worker, so many tenants."""

    def __init__(self, bus: Bus, tenants: int, body: bytes) -> None:
        self.bus, self._tenants, self._body = bus, tenants, body
        self._config = Config(pools=CONFIG.pools, limits=LIMITS)
        self._owner = Owner(SHARD, "w1", new_nonce(), LIMITS)
        self._numbers = itertools.count()
        self._chance = random.Random(1)

    async def open(self) -> None:
        await self.bus.commands.call("XGROUP", "CREATE", SHARD.arrivals, SCHEDULER, "0", "MKSTREAM")
        await beat(self.bus, self._owner, room(SLOTS), b"{}", [])

    async def submit(self, count: int) -> int:
        lanes = list(Lane)
        numbers = list(itertools.islice(self._numbers, count))
        tenants = (number if number < self._tenants else self._chance.randrange(self._tenants) for number in numbers)
        items = [
            item(tenant=f"t{tenant}", lane=lanes[number % 3], body=self._body, expires_in_s=86_400)
            for number, tenant in zip(numbers, tenants, strict=True)
        ]
        verdicts = await submit(self.bus, SHARD, self._config, items)
        assert set(verdicts) == {"new"}, set(verdicts)
        return count

    async def admit(self, count: int) -> int:
        found = await self._read(SCHEDULER, SHARD.arrivals, count)
        arrivals = [Arrival(fields[1].decode() if fields[0] == b"t" else "", entry) for entry, fields in found]
        return (await admit(self.bus, SHARD, LIMITS, arrivals)).count("queued") if arrivals else 0

    async def dispatch(self, count: int) -> int:
        return (await dispatch(self.bus, SHARD, self._config, count)).handed_out

    async def hands(self, count: int) -> list[Hand]:
        found = await self._read(WORKERS, SHARD.work(self._owner.worker), count)
        return [Hand(fields[1].decode(), int(fields[3]), entry) for entry, fields in found]

    async def start(self, hands: Sequence[Hand]) -> None:
        await start(self.bus, self._owner, list(hands))

    async def finish(self, hands: Sequence[Hand]) -> None:
        verdicts = await finish(self.bus, self._owner, [ending(hand, 1, 0) for hand in hands])
        assert set(verdicts) == {"ok"}, set(verdicts)

    async def fill(self, depth: int) -> None:
        for done in range(0, depth, MAX_ITEMS):
            await self.submit(min(MAX_ITEMS, depth - done))
            while await self.admit(MAX_ITEMS):
                pass
            if done % 100_000 == 0:
                print(f"filled {done} of {depth}", file=sys.stderr, flush=True)

    async def _read(self, group: str, stream: str, count: int) -> list[Any]:
        reply = await self.bus.commands.call("XREADGROUP", "GROUP", group, "s", "COUNT", count, "STREAMS", stream, ">")
        return reply[0][1] if reply else []


async def measure(shard: Shard, at_once: int, row: Row) -> None:
    """One round: the same number of tasks comes as leaves."""

    async def timed(stage: str, work: Awaitable[Any]) -> Any:
        before = (await commands(shard.bus))["evalsha"][1]
        made = await work
        row.us[stage].append(((await commands(shard.bus))["evalsha"][1] - before) / at_once)
        return made

    before = await commands(shard.bus)
    for _ in range(CALLS):
        await timed("submit", shard.submit(at_once))
        await timed("admit", shard.admit(at_once * 2))
        assert await timed("dispatch", shard.dispatch(at_once)) == at_once
        hands = await shard.hands(at_once)
        await timed("start", shard.start(hands))
        await timed("finish", shard.finish(hands))
    after = await commands(shard.bus)
    for name, (calls, us) in after.items():
        old, more = before.get(name, (0, 0)), row.commands.get(name, (0, 0))
        row.commands[name] = (more[0] + calls - old[0], more[1] + us - old[1])


async def commands(bus: Bus) -> Stats:
    info = (await bus.commands.call("INFO", "commandstats")).decode()
    found = re.findall(r"cmdstat_([^:]+):calls=(\d+),usec=(\d+)", info)
    return {"evalsha": (0, 0)} | {name: (int(calls), int(us)) for name, calls, us in found}


async def used_bytes(bus: Bus) -> int:
    info = (await bus.commands.call("INFO", "memory")).decode()
    return int(info.partition("used_memory:")[2].split()[0])


@asynccontextmanager
async def filled(depth: int, tenants: int, body: bytes) -> AsyncIterator[tuple[Shard, float]]:
    """A shard with so many waiting tasks, and the bytes of memory that each of them takes."""
    with tempfile.TemporaryDirectory() as folder, server(find_server(), Path(folder) / "redis") as redis:
        async with Bus(redis.url, name="bench") as bus:
            shard = Shard(bus, tenants, body)
            await shard.open()
            before = await used_bytes(bus)
            await shard.fill(depth)
            yield shard, (await used_bytes(bus) - before) / depth


def report(at_once: int, rows: dict[tuple[int, int], Row]) -> None:
    base = next(iter(rows.values()))
    print(f"{at_once} a call: microseconds of Redis a task")
    print(
        "  waiting  tenants"
        + "".join(f"{stage:>10}" for stage in STAGES)
        + "       all  dispatch  dispatch/start, of the first"
    )
    for (depth, tenants), row in rows.items():
        cells = "".join(f"{row.median(stage):10.1f}" for stage in STAGES)
        ratio = row.median("dispatch") / base.median("dispatch")
        steady = (
            ratio * base.median("start") / row.median("start")
        )  # start looks at one task: what it varies by is the machine
        print(f"{depth:9}{tenants:9}{cells}{sum(map(row.median, STAGES)):10.1f}{ratio:10.2f}{steady:30.2f}")


def report_commands(rows: dict[tuple[int, int], Row]) -> None:
    """What each command takes a call at the least and at the greatest depth."""
    least, greatest = rows[min(rows)], rows[max(rows)]
    walked = {name for row in rows.values() for name in row.commands if name.partition("|")[0] in WALKS}
    print(f"commands that look at all there is: {', '.join(sorted(walked)) or 'none'}")
    each = {
        name: (least.commands[name][1] / least.commands[name][0], us / calls)
        for name, (calls, us) in greatest.commands.items()
        if calls and least.commands.get(name, (0, 0))[0] and name not in ("info", "evalsha")
    }
    for name, (few, many) in sorted(each.items(), key=lambda one: one[1][0] - one[1][1])[:8]:
        print(f"  {name:18} {few:6.2f} us a call at {min(rows)[0]} waiting, {many:6.2f} at {max(rows)[0]}")


async def main(rounds: int, most: int = DEPTHS[-1]) -> None:
    rows: dict[int, dict[tuple[int, int], Row]] = {at_once: {} for at_once in AT_ONCE}
    for depth, tenants in itertools.product(DEPTHS, TENANTS):
        if tenants > depth or depth > most:
            continue
        async with filled(depth, tenants, BODY % (b"x" * 150)) as (shard, _):
            for at_once in AT_ONCE:
                row = rows[at_once][depth, tenants] = Row()
                for _ in range(rounds):
                    await measure(shard, at_once, row)
        print(f"measured {depth} waiting, {tenants} tenants", file=sys.stderr, flush=True)
    print(f"{rounds} rounds of {CALLS} calls of each script, medians of the calls")
    for at_once, some in rows.items():
        report(at_once, some)
    report_commands(rows[SLOTS])
    for name, body in (("200 bytes", BODY % (b"x" * 139)), ("2 bytes", b"{}")):
        async with filled(min(most, 100_000), 100, body) as (_, bytes_a_task):
            print(f"memory a waiting task with a body of {name}: {bytes_a_task:.0f} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decisions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=DEPTHS[-1], help="deepest backlog that is tried")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rounds, arguments.tasks))
