"""Where waiting tasks stand: their place in line, when they are expected to start, and what they wait for."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.script import Script
from shared.config import Limits
from shared.ids import place_of
from shared.keys import ShardKeys, shard_keys
from shared.lifecycle import Lane

PLACE = Script("shared", "place")


class Why(StrEnum):
    """What a pending task waits for."""

    NO_WORKER = "no_worker"
    """No worker of its model is alive."""
    SLOTS = "slots"
    """Others are before it."""
    TENANT_RUNNING = "tenant_running"
    """Its tenant runs as many tasks as it may."""
    LATER = "later"
    """Its `not_before`, or the pause before it is tried again."""
    QUOTA = "quota"
    """Its tenant's rates; it asked to wait for them."""
    FOLLOWING = "following"
    """A task in flight makes the same answer."""
    HANDED_OUT = "handed_out"
    """A worker has it, and starts it in a moment."""


class Outlook(Struct, frozen=True):
    """How a pending task stands, in the order of `place.lua`. An estimate: others may come before it, or end early."""

    position: int
    """In the order of expected starts of the whole shard; 1: next of all, 0: in no line."""
    eta_ms: int
    """Until it is expected to start; 0: at once, -1: unknown."""
    why: Why
    due_ms: int
    """Unix ms, of what starts not before then; 0: no such time."""


async def outlooks(bus: Bus, shard: ShardKeys, limits: Limits, ids: Sequence[str]) -> list[Outlook | None]:
    """The twin of place.lua: one outlook per task (or lane: for who comes last in it); None if it does not wait.

    Raises: BusUnavailable, CommandRefused.
    """
    found = await bus.run(PLACE, [shard.workers, shard.later], [shard.base, limits.lease_ms, *ids], bulk=True)
    return [
        Outlook(position, eta_ms, Why(why.decode()), due_ms) if why else None
        for position, eta_ms, why, due_ms in (one or (0, 0, b"", 0) for one in found)
    ]


async def lane_etas(bus: Bus, shard: ShardKeys, limits: Limits) -> dict[Lane, int]:
    """For each lane the ms until a task would start that comes last of all in it; -1: unknown.

    Raises: BusUnavailable, CommandRefused.
    """
    found = await outlooks(bus, shard, limits, [*Lane])
    return {lane: one.eta_ms for lane, one in zip(Lane, found, strict=True) if one is not None}


class Outlooks:
    """Asks for tasks of all shards, gathered into few script calls a shard."""

    def __init__(self, bus: Bus, limits: Limits) -> None:
        self._bus, self._limits = bus, limits
        self._batches: dict[str, Batcher[str, Outlook | None]] = {}

    async def of(self, task_id: str) -> Outlook | None:
        """None: it does not wait. Raises: InvalidTaskId, BusUnavailable, CommandRefused."""
        place = place_of(task_id)
        batch = self._batches.get(place.tag)
        if batch is None:
            shard = shard_keys(place.pool, place.shard)

            async def run(ids: Sequence[str]) -> Sequence[Outlook | None]:
                return await outlooks(self._bus, shard, self._limits, ids)

            batch = self._batches[place.tag] = Batcher(run)
        return await batch.add(task_id)
