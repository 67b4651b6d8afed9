"""Typed twins of the scheduler's scripts."""

from collections.abc import Sequence

from msgspec import Struct

from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import MAX_ITEMS, Script
from shared.keys import ShardKeys
from shared.lifecycle import LEASE_MS

ADMIT = Script("services.scheduler", "admit")
DISPATCH = Script("services.scheduler", "dispatch")
REAP = Script("services.scheduler", "reap")


class Arrival(Struct, frozen=True):
    """The arguments of one arrival of `admit.lua`, in its order; an empty id is a wake-up."""

    id: str
    entry: bytes


class Dispatched(Struct, frozen=True):
    handed_out: int
    still_waiting: int
    free_slots: int


class Reaped(Struct, frozen=True):
    running: int
    unstarted: int
    workers: int


async def admit(bus: Bus, shard: ShardKeys, arrivals: Sequence[Arrival]) -> list[str]:
    keys = [shard.arrivals, *shard.backlogs]
    keys += [shard.task(arrival.id) if arrival.id else shard.arrivals for arrival in arrivals]
    args: list[Arg] = []
    for arrival in arrivals:
        args += (arrival.id, arrival.entry)
    return [verdict.decode() for verdict in await bus.run(ADMIT, keys, args)]


async def dispatch(bus: Bus, shard: ShardKeys, most: int = MAX_ITEMS) -> Dispatched:
    return Dispatched(*await bus.run(DISPATCH, [shard.workers, *shard.backlogs], [shard.base, most, LEASE_MS]))


async def reap(bus: Bus, shard: ShardKeys, most: int = MAX_ITEMS) -> Reaped:
    keys = [shard.leases, shard.workers, shard.arrivals, *shard.backlogs]
    return Reaped(*await bus.run(REAP, keys, [shard.base, most, LEASE_MS]))
