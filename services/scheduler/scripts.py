"""Typed twins of the scheduler's scripts."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import MAX_BYTES, MAX_ITEMS, Script
from shared.config import Config, Limits
from shared.keys import ShardKeys
from shared.lifecycle import Lane

ADMIT = Script("services.scheduler", "admit")
DISPATCH = Script("services.scheduler", "dispatch")
REAP = Script("services.scheduler", "reap")
DUE = Script("services.scheduler", "due")
REPAIR = Script("services.scheduler", "repair")
FOLLOW = Script("services.scheduler", "follow")


WARM_MS = 600_000
"""How long a worker is taken to have a prompt's beginning in its KV cache. Longer and memory holds digests that nobody asks
for; a wrong guess costs what it would without."""


class Arrival(Struct, frozen=True):
    """The arguments of one arrival of `admit.lua`, in its order; an empty id is a wake-up."""

    id: str
    entry: bytes
    quota: str = ""
    """`taken`, or the milliseconds until it may be asked for again; empty: nobody has asked."""


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
    """Retries, and tasks that had to wait for their time, that arrive now."""


class Followed(Struct, frozen=True):
    """What became of those that waited for the answer of a task that has ended."""

    answered: int
    promoted: int
    """1: one of them leads the others, and is in `in`."""
    more: int
    """1: call again."""


class Look(Struct, frozen=True):
    """The arguments of one task of `repair.lua`, in its order."""

    id: str
    astray_epoch: str
    """What an earlier look answered; empty: this is the first."""


async def admit(bus: Bus, shard: ShardKeys, limits: Limits, arrivals: Sequence[Arrival]) -> list[str]:
    """One verdict per arrival: see admit.lua."""
    args: list[Arg] = [*limits.kept(shard.base)]
    for arrival in arrivals:
        args += astuple(arrival)
    return [verdict.decode() for verdict in await bus.run(ADMIT, [shard.arrivals, shard.later], args)]


async def dispatch(bus: Bus, shard: ShardKeys, config: Config, most: int = MAX_ITEMS) -> Dispatched:
    limits, policy = config.limits, config.policy
    args: list[Arg] = [shard.base, most, limits.lease_ms, max(1, limits.crashes - 1)]
    args += [str(policy.affinity), WARM_MS]
    args += [str(policy.lanes[lane].share) for lane in Lane]
    return Dispatched(*await bus.run(DISPATCH, [shard.workers, shard.suspects, shard.later], args))


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


async def follow(
    bus: Bus, shard: ShardKeys, limits: Limits, digest: str, ended_id: str, most: int = MAX_ITEMS
) -> Followed:
    keys = [shard.followers(digest), shard.flight(digest), shard.arrivals]
    return Followed(*await bus.run(FOLLOW, keys, [*limits.kept(shard.base), digest, ended_id, most, MAX_BYTES]))
