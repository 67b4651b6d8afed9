"""Typed twins of the worker's scripts."""

import random
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import MAX_ITEMS, Script
from shared.config import Limits
from shared.ids import place_of
from shared.keys import ShardKeys

BEAT = Script("services.inference", "beat")
START = Script("services.inference", "start")
REBASE = Script("services.inference", "rebase")
EMIT = Script("services.inference", "emit")
FINISH = Script("services.inference", "finish")
RELEASE = Script("services.inference", "release")
RETIRE = Script("services.inference", "retire")

PATIENCE_S = 60.0
"""How long emit and finish are repeated while Redis is away: longer than a failover, and past it the lease decides."""
RETIRE_PAGE = 1000
"""Entries one retire call looks at; it runs once in a worker's life, so 5 ms of the server are fair."""
FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 1000, 60_000
"""Of a task that the engine failed: full jitter below twice as much each time. Source: AWS, Exponential Backoff And Jitter."""


class Owner(Struct, frozen=True):
    """This worker, as the scripts know it."""

    shard: ShardKeys
    worker: str
    nonce: str
    limits: Limits = Limits()


class Slots(Struct, frozen=True):
    """What a worker takes at once: in all, of these tasks of the lanes normal and batch, of these of the lane batch."""

    total: int
    normal: int
    batch: int


NO_SLOTS = Slots(0, 0, 0)


class Hand(Struct, frozen=True):
    """One entry of the work stream. The arguments of one task of `start.lua`, in its order."""

    id: str
    epoch: int
    entry: bytes


class Running(Struct, frozen=True):
    """`start` said: run it."""

    attempt: int
    spec: bytes
    body: bytes
    waited_ms: int
    published: int
    """Chunks of earlier attempts."""
    eta_ms: int = -1
    """The wait that was predicted when it came; -1: none was, or this is not the first attempt."""


class Emission(Struct, frozen=True):
    """The arguments of one task of `emit.lua`, in its order."""

    id: str
    epoch: int
    first: int
    last: int
    event: bytes
    journal: bytes


class Tail(Struct, frozen=True):
    """What a run has not published yet, and its work entry: how finish.lua and release.lua begin a task's arguments."""

    id: str
    epoch: int
    entry: bytes
    first: int
    last: int
    chunks: bytes
    journal: bytes
    tokens: int
    """Of the prompt and of all chunks so far."""


class Ending(Tail, frozen=True):
    """The arguments of one task of `finish.lua`, in its order."""

    state: str
    status: int
    result: bytes
    finished: bytes


class Release(Tail, frozen=True):
    """The arguments of one task of `release.lua`, in its order."""

    charge: str
    """`failure` (tried again after a pause, `failures` times), `final` (never again), `crash` (at once, `crashes` times), or `none`."""
    why: str
    share: int
    """Of the pause, per mille."""
    status: int = 0
    result: bytes = b""
    finished: bytes = b""
    least_ms: int = 0
    """What an upstream has asked for; the pause comes on top, so that those it has refused do not all come back at once."""


class Retired(Struct, frozen=True):
    handed_back: int
    left: int


async def beat(
    bus: Bus, owner: Owner, slots: Slots, announcement: bytes, tasks: Sequence[tuple[str, int]]
) -> dict[str, str]:
    """Renew the announcement and the leases of `tasks` (id, epoch); answers what must be stopped, and why."""
    shard = owner.shard
    stopped: dict[str, str] = {}
    for start in range(0, max(1, len(tasks)), MAX_ITEMS):
        page = tasks[start : start + MAX_ITEMS]
        keys = [shard.workers, shard.leases, shard.work(owner.worker), shard.arrivals]
        keys += [shard.task(id) for id, _ in page]
        args: list[Arg] = [owner.worker, owner.nonce, owner.limits.lease_ms, *astuple(slots), announcement]
        for id, epoch in page:
            args += (id, epoch)
        said = [word.decode() for word in await bus.run(BEAT, keys, args)]
        stopped |= dict(zip(said[::2], said[1::2], strict=True))
    return stopped


async def start(bus: Bus, owner: Owner, hands: Sequence[Hand]) -> list[Running | str]:
    """One verdict per hand: Running, 'stale', or the key that holds another type."""
    keys = [owner.shard.leases, owner.shard.work(owner.worker)]
    args: list[Arg] = [*owner.limits.kept(owner.shard.base), owner.worker, owner.nonce, owner.limits.lease_ms]
    for hand in hands:
        keys += _task_keys(owner.shard, hand.id)
        args += astuple(hand)
    verdicts: list[Running | str] = []
    for word, *rest in await bus.run(START, keys, args, bulk=True, patience_s=PATIENCE_S):
        if word == b"run":
            verdicts.append(Running(*rest))
        else:
            verdicts.append(rest[0].decode() if rest else "stale")
    return verdicts


async def rebase(bus: Bus, owner: Owner, hand: Hand, *, attempt: int, behind: int) -> str:
    """Go on behind `behind` chunks, or start over with 0: 'ok', 'fenced', 'gap <last written>' or 'wrongtype <key>'."""
    args: list[Arg] = [owner.nonce, hand.id, hand.epoch, attempt, behind]
    verdict = await bus.run(REBASE, _task_keys(owner.shard, hand.id), args, patience_s=PATIENCE_S)
    return str(verdict, "utf-8")


async def emit(bus: Bus, owner: Owner, emissions: Sequence[Emission]) -> list[str]:
    """One verdict per task: 'ok', 'fenced', 'gap <last written>' or 'wrongtype <key>'."""
    keys: list[str] = []
    args: list[Arg] = [owner.nonce]
    for item in emissions:
        keys += _task_keys(owner.shard, item.id)
        args += astuple(item)
    return [verdict.decode() for verdict in await bus.run(EMIT, keys, args, patience_s=PATIENCE_S)]


async def finish(bus: Bus, owner: Owner, endings: Sequence[Ending]) -> list[str]:
    """One verdict per task: 'ok', 'fenced', 'gap <last written>' or 'wrongtype <key>'."""
    shard = owner.shard
    keys = [shard.work(owner.worker), shard.arrivals, *shard.turns]
    args: list[Arg] = [*owner.limits.kept(owner.shard.base), owner.nonce]
    for item in endings:
        keys += _task_keys(shard, item.id)
        args += astuple(item)
    return [verdict.decode() for verdict in await bus.run(FINISH, keys, args, patience_s=PATIENCE_S, durable=True)]


async def release(bus: Bus, owner: Owner, items: Sequence[Release]) -> list[str]:
    """One verdict per task: see release.lua."""
    shard, limits = owner.shard, owner.limits
    keys = [shard.work(owner.worker), shard.arrivals]
    args: list[Arg] = [
        *owner.limits.kept(owner.shard.base),
        owner.nonce,
        limits.failures,
        limits.crashes,
        FIRST_PAUSE_MS,
        LONGEST_PAUSE_MS,
    ]
    for item in items:
        keys += _task_keys(shard, item.id)
        args += astuple(item)
    return [verdict.decode() for verdict in await bus.run(RELEASE, keys, args, patience_s=PATIENCE_S, durable=True)]


async def retire(bus: Bus, owner: Owner, *, running: bool) -> Retired:
    """Hand back what has not started, and with `running` also what has."""
    shard = owner.shard
    keys = [shard.work(owner.worker), shard.workers, shard.suspects, shard.arrivals]
    args: list[Arg] = [*owner.limits.kept(owner.shard.base), owner.worker, owner.nonce, RETIRE_PAGE, int(running)]
    return Retired(*await bus.run(RETIRE, keys, args))


def jitter() -> int:
    """A share of a pause, per mille."""
    return random.randint(0, 1000)


def _task_keys(shard: ShardKeys, id: str) -> tuple[str, str, str]:
    return shard.task(id), shard.log(id), shard.bus(place_of(id).partition)
