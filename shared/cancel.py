"""Cancelling a task, from any door: by our id, or by the producer's own.

A cancel may overtake its task, since doors are read in parallel: it then leaves a note under the task's id, which submit
obeys, and for a producer's key a reservation that leads to that id.
"""

from collections.abc import Sequence

from msgspec import Struct

from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.script import Script
from shared.config import Config, Limits
from shared.errors import InvalidTaskId, WrongKeyType
from shared.ids import GENERATION, Place, new_task_id, place_of
from shared.keys import ShardKeys, shard_keys
from shared.lifecycle import State
from shared.submit import ANY_BODY, reserve

CANCEL = Script("shared", "cancel")


class Cancelled(Struct, frozen=True):
    id: str
    state: State
    """After the call: `cancelled`; `processing`, if its worker has been told; or how it had ended before."""
    known: bool
    """False: there is no such task yet; if it comes, it is cancelled at once."""


class Canceller:
    """Cancels tasks of all shards, gathered into one script call a shard."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self._bus, self._config = bus, config
        self._batches: dict[str, Batcher[str, str]] = {}

    async def cancel(self, task_id: str) -> Cancelled:
        """Harmless when repeated. Raises: InvalidTaskId, WrongKeyType, BusUnavailable."""
        place = place_of(task_id)
        if place.pool not in self._config.pools or place.shard >= self._config.pools[place.pool].shards:
            raise InvalidTaskId(task_id)
        verdict = await self._batch(place).add(task_id)
        if verdict.startswith("wrongtype"):
            raise WrongKeyType(f"the key {verdict.partition(' ')[2]} holds a type that is not Headrace's; remove it")
        if verdict == "unknown":
            return Cancelled(task_id, State.CANCELLED, False)
        return Cancelled(task_id, State(verdict), True)

    async def cancel_key(self, tenant: str, key: str) -> Cancelled:
        """By the producer's own task_id. Raises: WrongKeyType, BusUnavailable."""
        pool = next(iter(self._config.pools))
        fresh = new_task_id(Place(pool, 0, GENERATION, 0))
        return await self.cancel(await reserve(self._bus, self._config.limits, tenant, key, fresh, ANY_BODY))

    def _batch(self, place: Place) -> Batcher[str, str]:
        batch = self._batches.get(place.tag)
        if batch is None:
            shard = shard_keys(place.pool, place.shard)

            async def run(ids: Sequence[str]) -> Sequence[str]:
                return await cancel(self._bus, shard, self._config.limits, ids)

            batch = self._batches[place.tag] = Batcher(run)
        return batch


async def cancel(bus: Bus, shard: ShardKeys, limits: Limits, ids: Sequence[str]) -> Sequence[str]:
    """The twin of cancel.lua: one verdict per task."""
    keys = [shard.task(id) for id in ids]
    args = [*limits.kept(shard.base), limits.keys_kept_ms, *ids]
    return [str(verdict, "utf-8") for verdict in await bus.run(CANCEL, keys, args, durable=True)]
