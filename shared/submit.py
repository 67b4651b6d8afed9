"""From a valid request to a task in its shard: reserve the producer's key, then submit.

The two steps lie in different slots and are never pretended to be atomic: the reservation keeps the id, so whoever finds it
repeats the submit with that id, and a repeat of a submit is harmless. A body that is too large for Redis is put into the object
store between the two.
"""

import contextlib
import hashlib
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple, replace

from shared import keys
from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.memory import Memory
from shared.bus.script import Script
from shared.clock import now_ms
from shared.config import Config, Limits
from shared.errors import (
    BacklogFull,
    BatchFull,
    DeadlineTooShort,
    HeadraceError,
    IdempotencyConflict,
    StoreUnavailable,
    TenantFull,
    WrongKeyType,
)
from shared.ids import GENERATION, Place, bucket, derived_task_id, new_nonce, new_task_id, place_of
from shared.keys import ShardKeys, keys_of, shard_keys
from shared.large import Large
from shared.lifecycle import State
from shared.messages import Pending, Stored, Task, encode
from shared.objects import Objects
from shared.quota import Quotas
from shared.request import Request, on_pool
from shared.shadow import Shadows

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
    tenant: str
    session: str
    reply_to: str
    attached: str
    """`1`, or empty; so are the others of this kind."""
    expires_in_ms: int
    hurried: str
    """Refused if it would not start by its deadline."""
    starts_in_ms: int
    tokens_in: int
    tokens_out: int
    """Most that it may make; 0: not said."""
    queued_limit: int
    batch_limit: int
    metered: str
    """Tokens are reserved for it, to be settled when it ends."""
    owes: str
    """Tokens are to be reserved before it is admitted."""
    tells: str
    """A webhook is told of its end."""
    cache: str
    """`<digest> <kept ms> <use|refresh>`, or empty."""
    prefix: str
    """Digests of the prompt's beginnings, the longest first, joined by commas."""
    spec: bytes
    body: bytes
    pending: bytes
    kept_until_ms: str = ""
    """Unix ms, of Redis; empty: for as long as results are."""


class Submitted(Struct, frozen=True):
    id: str
    state: State
    new: bool
    """False: the id was known, and nothing was changed."""


class Submitter:
    """Submits tasks of all shards, gathered into one script call a shard."""

    def __init__(self, bus: Bus, config: Config, objects: Objects | None = None) -> None:
        """`objects`: where large bodies go; None: through Redis, as all others."""
        self._bus, self._config, self._memory = bus, config, Memory(bus)
        self._quotas, self._shadows = Quotas(bus, config), Shadows(self)
        self._large = Large(bus, objects, config.limits.inline_bytes)
        self._batches: dict[str, Batcher[SubmitItem, str]] = {}

    def place(self, request: Request, *origin: bytes) -> Place:
        """The shard is chosen by what makes requests the same for a cache, else by the producer's key or the origin, else at
        random; the partition by the session."""
        pool = self._config.pools[request.pool]
        who = f"{request.task.tenant}:{request.task.task_id}" if request.task.task_id else _name_of(origin)
        alike = request.cache.digest if request.cache is not None else who
        return Place(
            request.pool,
            bucket(alike, pool.shards) if pool.shards > 1 else 0,
            GENERATION,
            bucket(request.task.session or who, pool.partitions) if pool.partitions > 1 else 0,
        )

    def new_id(self, request: Request, *origin: bytes) -> str:
        """An id for a request; the same `origin` gives the same id, none gives a new one."""
        place = self.place(request, *origin)
        return derived_task_id(place, *origin) if origin else new_task_id(place)

    async def submit(self, request: Request, task_id: str) -> Submitted:
        """Make the task, or find the one that the producer's key is bound to.

        Raises: IdempotencyConflict, RateLimited, BacklogFull, TenantFull, BatchFull, DeadlineTooShort, MemoryFull, WrongKeyType,
        BusUnavailable, StoreUnavailable.
        """
        await self._memory.check()
        if request.task.task_id:  # stays with its pool: two that send it at once could else have it made twice
            task_id = await self._reserve(request, task_id)
            submitted = await self.submit_as(on_pool(self._config, request, place_of(task_id).pool), task_id)
        else:
            found = await self._found_elsewhere(request, task_id)
            submitted = found or await self._submit_somewhere(request, task_id)
        if submitted.new:
            self._shadows.cast(request, submitted.id)
        return submitted

    async def _submit_somewhere(self, request: Request, task_id: str) -> Submitted:
        """Raises: what the first pool refused it with, if the fallbacks refuse it too."""
        try:
            return await self.submit_as(request, task_id)
        except (BacklogFull, DeadlineTooShort) as refused:
            for way in request.fallbacks:
                with contextlib.suppress(BacklogFull, DeadlineTooShort):
                    return await self.submit_as(way, self._fallback_id(way, task_id), asked_before=True)
            raise refused

    def _fallback_id(self, way: Request, task_id: str) -> str:
        """Follows from the first id, so that a repeat finds it."""
        origin = task_id.encode()
        return derived_task_id(self.place(way, origin), origin)

    async def _found_elsewhere(self, request: Request, task_id: str) -> Submitted | None:
        """The task, if this is a repeat of a submission that a fallback accepted. An attached one is never repeated."""
        for way in () if request.task.attached else request.fallbacks:
            if (found := await self._found(self._fallback_id(way, task_id))) is not None:
                return found
        return None

    async def _found(self, id: str) -> Submitted | None:
        keys, _ = keys_of(id)
        state, spec = await self._bus.read("HMGET", keys.task(id), "state", "spec")
        return Submitted(id, State(state.decode()), False) if state and spec else None

    async def submit_as(self, request: Request, task_id: str, *, asked_before: bool = False) -> Submitted:
        """Make the task under that very id, whatever the producer's key is bound to: a dead task is run again so.

        `asked_before`: another pool has refused it. Raises: as submit, but for IdempotencyConflict.
        """
        await self._memory.check()
        task = request.task
        if (large := self._large.takes(request.body)) and (found := await self._found(task_id)) is not None:
            return found  # a repeat, which stores nothing
        limited, taken = self._quotas.limits(task), False
        if limited and task.waits:
            self._quotas.check(task, most_tokens(request))
        elif limited:
            taken = await self._quotas.take(task, task_id, most_tokens(request), asked_before=asked_before)
        stored = await self._put(request, task_id, taken=taken) if large else None
        metered, owes = limited and not task.waits, limited and task.waits
        item = _item(task_id, request, self._config, stored, metered=metered, owes=owes)
        verdict = await self._batch(place_of(task_id)).add(item)
        # A repeat over a lost connection finds its own task; without a verdict nobody knows, and the quotas' sweep looks at it.
        if taken and verdict not in ("new", State.PENDING, State.PROCESSING):
            await self._quotas.settle(task.tenant, task_id, 0)
        try:
            return self._submitted(request, task_id, verdict)
        except HeadraceError:
            if stored is not None:
                await self._large.drop(task_id, stored)
            raise

    async def _put(self, request: Request, task_id: str, *, taken: bool) -> Stored:
        """The body into the object store. Raises: StoreUnavailable, BusError."""
        try:
            return await self._large.put(task_id, request.body)
        except StoreUnavailable:
            if taken and await self._found(task_id) is None:  # else another submission of the same has made it
                await self._quotas.settle(request.task.tenant, task_id, 0)
            raise

    def _submitted(self, request: Request, task_id: str, verdict: str) -> Submitted:
        """Raises: RequestError, WrongKeyType."""
        word, _, rest = verdict.partition(" ")
        tenant = request.task.tenant
        match word:
            case "new":
                return Submitted(task_id, State.PENDING, True)
            case "full":
                raise BacklogFull(request.pool, request.task.lane, self._config.limits.backlog)
            case "tenant_full":
                raise TenantFull(tenant, self._config.policy.tenant(tenant).queued)
            case "batch_full":
                raise BatchFull(tenant, self._config.policy.tenant(tenant).batch_tokens)
            case "late":
                raise DeadlineTooShort(request.task.expires_in_s, int(rest) / 1000)
            case "wrongtype":
                raise WrongKeyType(f"the key {rest} holds a type that is not Headrace's; remove it")
        return Submitted(task_id, State(verdict), False)

    async def _reserve(self, request: Request, task_id: str) -> str:
        task = request.task
        body = request.fingerprint or request.body
        fingerprint = hashlib.blake2b(task.route.encode() + b"\0" + body, digest_size=16).hexdigest()
        return await reserve(self._bus, self._config.limits, task.tenant, task.task_id, task_id, fingerprint)

    def _batch(self, place: Place) -> Batcher[SubmitItem, str]:
        batch = self._batches.get(place.tag)
        if batch is None:
            shard = shard_keys(place.pool, place.shard)

            async def run(items: Sequence[SubmitItem]) -> Sequence[str]:
                return await submit(self._bus, shard, self._config, items)

            batch = self._batches[place.tag] = Batcher(run, size=lambda item: len(item.body))
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


async def submit(bus: Bus, shard: ShardKeys, config: Config, items: Sequence[SubmitItem]) -> Sequence[str]:
    """The twin of submit.lua: one verdict per task."""
    names = [shard.arrivals, shard.later]
    limits = config.limits
    args: list[Arg] = [*limits.kept(shard.base), limits.backlog, INDEX_LENGTH, ATTACHED_MS]
    for item in items:
        tenant = shard.tenant(item.tenant)
        names += [
            shard.task(item.id),
            tenant,
            shard.session(item.session) if item.session else tenant,
            shard.bus(place_of(item.id).partition),
        ]
        args += astuple(item)
    return [str(verdict, "utf-8") for verdict in await bus.run(SUBMIT, names, args, bulk=True, durable=True)]


MADE_UNKNOWN = 256
"""Tokens that are reserved for an answer whose request names no limit. shared/lua/lib/fair.lua counts the same."""


def most_tokens(request: Request) -> int:
    """What a task may use, before anybody knows."""
    return request.tokens_in + (request.tokens_out or MADE_UNKNOWN)


def _name_of(origin: Sequence[bytes]) -> str:
    return hashlib.blake2b(b"\0".join(origin), digest_size=16).hexdigest() if origin else new_nonce()


def _spec(request: Request, stored: Stored | None) -> Task:
    """What was asked, and what a worker has to know beside."""
    shared = request.cache is not None
    return replace(request.task, shared=shared, stored=stored) if shared or stored is not None else request.task


def _item(
    task_id: str, request: Request, config: Config, stored: Stored | None, *, metered: bool, owes: bool
) -> SubmitItem:
    task, cache = request.task, request.cache
    tenant = config.policy.tenant(task.tenant)
    starts_in_ms = max(0, task.not_before_ms - now_ms()) if task.not_before_ms else 0
    waiting_s = config.policy.lanes[task.lane].waiting_s or config.limits.waiting_s
    expires_in_ms = int(task.expires_in_s * 1000) or starts_in_ms + waiting_s * 1000
    return SubmitItem(
        id=task_id,
        lane=task.lane,
        tenant=task.tenant,
        session=task.session,
        reply_to=task.reply_to,
        attached="1" if task.attached else "",
        expires_in_ms=expires_in_ms,
        hurried="1" if task.expires_in_s else "",
        starts_in_ms=starts_in_ms,
        tokens_in=request.tokens_in,
        tokens_out=request.tokens_out,
        queued_limit=tenant.queued,
        batch_limit=tenant.batch_tokens,
        metered="1" if metered else "",
        owes="1" if owes else "",
        tells="1" if task.webhook else "",
        cache=cache.field if cache is not None else "",
        prefix=",".join(request.prefix),
        spec=encode(_spec(request, stored)),
        body=b"" if stored is not None else request.body,
        pending=encode(Pending(model=task.model, lane=task.lane)) if task.session else b"",
        kept_until_ms=str(request.kept_until_ms or ""),
    )
