"""From a valid request to a task in its shard: reserve the producer's key, then submit.

The two steps lie in different slots and are never pretended to be atomic: the reservation keeps the id, so whoever finds it
repeats the submit with that id, and a repeat of a submit is harmless.
"""

import hashlib
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from shared import keys
from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.memory import Memory
from shared.bus.script import Script
from shared.config import Config, Limits
from shared.errors import BacklogFull, IdempotencyConflict, WrongKeyType
from shared.ids import GENERATION, Place, bucket, derived_task_id, new_nonce, new_task_id, place_of
from shared.keys import ShardKeys, shard_keys
from shared.lifecycle import State
from shared.messages import Pending, Task, encode
from shared.request import Request

RESERVE = Script("shared", "reserve")
SUBMIT = Script("shared", "submit")

ATTACHED_MS = 10_000
"""How long a client of an attached task may be away: its ingress renews this every quarter."""
INDEX_LENGTH = 1000
"""Tasks that a tenant's or session's list remembers: enough for any page, 60 KB each at most."""


class SubmitItem(Struct, frozen=True):
    """The arguments of one task of `submit.lua`, in its order."""

    id: str
    lane: str
    session: str
    reply_to: str
    attached: str
    """`1`, or empty."""
    expires_in_ms: int
    spec: bytes
    body: bytes
    pending: bytes


class Submitted(Struct, frozen=True):
    id: str
    state: State
    new: bool
    """False: the id was known, and nothing was changed."""


class Submitter:
    """Submits tasks of all shards, gathered into one script call a shard."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self._bus, self._config, self._memory = bus, config, Memory(bus)
        self._batches: dict[str, Batcher[tuple[SubmitItem, Task], str]] = {}

    def place(self, request: Request) -> Place:
        """The shard is chosen by the producer's key, or else at random; the partition by the session."""
        pool = self._config.pools[request.pool]
        who = f"{request.task.tenant}:{request.task.task_id}" if request.task.task_id else new_nonce()
        return Place(
            request.pool,
            bucket(who, pool.shards) if pool.shards > 1 else 0,
            GENERATION,
            bucket(request.task.session or who, pool.partitions) if pool.partitions > 1 else 0,
        )

    def new_id(self, request: Request, *origin: bytes) -> str:
        """An id for a request; the same `origin` gives the same id, none gives a new one."""
        place = self.place(request)
        return derived_task_id(place, *origin) if origin else new_task_id(place)

    async def submit(self, request: Request, task_id: str) -> Submitted:
        """Make the task, or find the one that the producer's key is bound to.

        Raises: IdempotencyConflict, BacklogFull, MemoryFull, WrongKeyType, BusUnavailable.
        """
        await self._memory.check()
        if request.task.task_id:
            task_id = await self._reserve(request, task_id)
        return await self.submit_as(request, task_id)

    async def submit_as(self, request: Request, task_id: str) -> Submitted:
        """Make the task under that very id, whatever the producer's key is bound to: a dead task is run again so.

        Raises: BacklogFull, MemoryFull, WrongKeyType, BusUnavailable.
        """
        await self._memory.check()
        item = _item(task_id, request, self._config.limits.waiting_s)
        verdict = await self._batch(place_of(task_id)).add((item, request.task))
        if verdict == "new":
            return Submitted(task_id, State.PENDING, True)
        if verdict == "full":
            raise BacklogFull(request.pool, self._config.limits.backlog)
        if verdict.startswith("wrongtype"):
            raise WrongKeyType(f"the key {verdict.partition(' ')[2]} holds a type that is not Headrace's; remove it")
        return Submitted(task_id, State(verdict), False)

    async def _reserve(self, request: Request, task_id: str) -> str:
        task = request.task
        fingerprint = hashlib.blake2b(task.route.encode() + b"\0" + request.body, digest_size=16).hexdigest()
        return await reserve(self._bus, self._config.limits, task.tenant, task.task_id, task_id, fingerprint)

    def _batch(self, place: Place) -> Batcher[tuple[SubmitItem, Task], str]:
        batch = self._batches.get(place.tag)
        if batch is None:
            shard = shard_keys(place.pool, place.shard)

            async def run(items: Sequence[tuple[SubmitItem, Task]]) -> Sequence[str]:
                return await submit(self._bus, shard, self._config, items)

            batch = self._batches[place.tag] = Batcher(run, size=lambda item: len(item[0].body))
        return batch


ANY_BODY = "-"
"""Fingerprint of a key that was cancelled before its task came."""


async def reserve(bus: Bus, limits: Limits, tenant: str, producer_key: str, task_id: str, fingerprint: str) -> str:
    """The task id that the producer's key is bound to: `task_id`, if it was free. The twin of reserve.lua.

    Raises: IdempotencyConflict, WrongKeyType, BusUnavailable.
    """
    key = keys.idempotency(tenant, producer_key)
    verdict, bound = await bus.run(RESERVE, [key], [task_id, fingerprint, limits.keys_kept_ms], durable=True)
    if verdict == b"conflict":
        raise IdempotencyConflict(producer_key)
    if verdict == b"wrongtype":
        raise WrongKeyType(f"the key {key} holds a type that is not Headrace's; remove it")
    return str(bound, "ascii")


async def submit(bus: Bus, shard: ShardKeys, config: Config, items: Sequence[tuple[SubmitItem, Task]]) -> Sequence[str]:
    """The twin of submit.lua: one verdict per task."""
    names = [shard.arrivals, *shard.backlogs]
    limits = config.limits
    args: list[Arg] = [*limits.kept(shard.base), limits.backlog, INDEX_LENGTH, ATTACHED_MS]
    for item, task in items:
        tenant = shard.tenant(task.tenant)
        names += [
            shard.task(item.id),
            tenant,
            shard.session(item.session) if item.session else tenant,
            shard.bus(place_of(item.id).partition),
        ]
        args += astuple(item)
    return [str(verdict, "utf-8") for verdict in await bus.run(SUBMIT, names, args, bulk=True, durable=True)]


def _item(task_id: str, request: Request, waiting_s: float) -> SubmitItem:
    task = request.task
    return SubmitItem(
        id=task_id,
        lane=task.lane,
        session=task.session,
        reply_to=task.reply_to,
        attached="1" if task.attached else "",
        expires_in_ms=int((task.expires_in_s or waiting_s) * 1000),
        spec=encode(task),
        body=request.body,
        pending=encode(Pending(model=task.model, lane=task.lane)) if task.session else b"",
    )
