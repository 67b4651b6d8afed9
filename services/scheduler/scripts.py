"""Typed twins of the scheduler's scripts."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import MAX_ITEMS, Script
from shared.config import Limits
from shared.keys import ShardKeys

ADMIT = Script("services.scheduler", "admit")
DISPATCH = Script("services.scheduler", "dispatch")
REAP = Script("services.scheduler", "reap")
DUE = Script("services.scheduler", "due")
REPAIR = Script("services.scheduler", "repair")


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
    quarantined: int


class Due(Struct, frozen=True):
    expired: int
    cancelled: int
    told: int
    """Running tasks whose workers were told to stop."""
    back: int
    """Retries put back into the waiting order."""


class Look(Struct, frozen=True):
    """The arguments of one task of `repair.lua`, in its order."""

    id: str
    astray_epoch: str
    """What an earlier look answered; empty: this is the first."""


async def admit(bus: Bus, shard: ShardKeys, arrivals: Sequence[Arrival]) -> list[str]:
    keys = [shard.arrivals, *shard.backlogs]
    keys += [shard.task(arrival.id) if arrival.id else shard.arrivals for arrival in arrivals]
    args: list[Arg] = []
    for arrival in arrivals:
        args += astuple(arrival)
    return [verdict.decode() for verdict in await bus.run(ADMIT, keys, args)]


async def dispatch(bus: Bus, shard: ShardKeys, limits: Limits, most: int = MAX_ITEMS) -> Dispatched:
    keys = [shard.workers, shard.suspects, shard.later, *shard.backlogs]
    return Dispatched(*await bus.run(DISPATCH, keys, [shard.base, most, limits.lease_ms, max(1, limits.crashes - 1)]))


async def reap(bus: Bus, shard: ShardKeys, limits: Limits, most: int = MAX_ITEMS) -> Reaped:
    keys = [shard.leases, shard.workers, shard.suspects]
    return Reaped(*await bus.run(REAP, keys, [*limits.kept(shard.base), most, limits.lease_ms, limits.crashes]))


async def due(bus: Bus, shard: ShardKeys, limits: Limits, most: int = MAX_ITEMS, *, waiters: bool = True) -> Due:
    keys = [shard.expiry, shard.attached, shard.later]
    return Due(*await bus.run(DUE, keys, [*limits.kept(shard.base), most, int(waiters)]))


async def repair(bus: Bus, shard: ShardKeys, limits: Limits, looks: Sequence[Look]) -> list[str]:
    """One verdict per task: 'well', 'repaired', or the epoch that it is astray with."""
    args: list[Arg] = [*limits.kept(shard.base)]
    for look in looks:
        args += astuple(look)
    return [verdict.decode() for verdict in await bus.run(REPAIR, [shard.expiry, shard.leases], args)]
