"""What is left in Redis when all is drained and expired, held against what there was before."""

import asyncio
import re
from collections import Counter
from typing import Any

import msgspec
from msgspec import Struct
from redis.exceptions import ResponseError

from shared.clock import monotonic_s, now_ms
from shared.keys import METERED, quota
from tests.chaos.cluster import Cluster
from tests.support import audit

NONCE = re.compile(r"[0-9a-f]{16}")
DEAD = re.compile(r":dead$|^hr:refused$")
"""Kept on purpose: dead letters wait for an operator."""
ONE_A_SHARD = re.compile(r"}:(fair|tenants)$")
"""What a shard has learnt of its runs, and knows of its tenants."""
EXPIRING = re.compile(r":(idem|prefix|group|cache):|^hr:{q\.")
"""A producer's key lives as long as its task may, and then as its result; where a prompt's KV cache is, and whose turn its group
has, is known for minutes; an answer is kept as its request says; windows of a tenant's rates go when they are empty."""
BUS_KEPT_S = 135.0
"""The bus remembers two minutes, and is trimmed a little later; younger events are kept on purpose."""
TRIES, PAUSE_S = 5, 1.0
SPARE_BYTES = 1024 * 1024
"""Fragments, and tables that have grown."""


class Content(Struct):
    """Of a Redis; names of workers and replicas are replaced by *, for each start makes new ones."""

    keys: Counter[str]
    groups: Counter[str]
    waiting: Counter[str]
    """Entries that are pending in a group, or not yet read by it."""
    bytes: int
    """Of all data, without the buffers of connections."""
    kept_bytes: int
    """Of what is kept on purpose."""


async def content(redis: Any) -> Content:
    keys, groups, waiting, kept_bytes = Counter[str](), Counter[str](), Counter[str](), 0
    async for key in redis.scan_iter(count=1000):
        if await _kept_on_purpose(redis, key):
            kept_bytes += int(await redis.memory_usage(key, samples=0) or 0)
            if ":bus:" not in key:
                continue
        keys[NONCE.sub("*", key)] += 1
        if await redis.type(key) != "stream":
            continue
        leased = await _leased(redis, key)
        try:
            found = await redis.xinfo_groups(key)
        except ResponseError:  # it has expired meanwhile
            continue
        for group in found:
            if group["name"] in leased:
                continue
            name = NONCE.sub("*", f"{group['name']} of {key}")
            groups[name] += 1
            waiting[name] += group["pending"] + (0 if ":bus:" in key else int(group["lag"] or 0))
    used = int((await redis.info("memory"))["used_memory_dataset"])
    return Content(keys, groups, +waiting, used, kept_bytes)


async def _leased(redis: Any, key: str) -> set[str]:
    """Groups of a bus whose reader may still come back: they go when their lease ends."""
    readers = key.partition(":bus:")[0] + ":readers"
    return set(await redis.zrangebyscore(readers, now_ms(), "+inf")) if ":bus:" in key else set()


async def _kept_on_purpose(redis: Any, key: str) -> bool:
    """The note of a cancel that found no task lives as long as a producer's key."""
    if EXPIRING.search(key) or (":task:" in key and await redis.hexists(key, "tombstone")):
        return int(await redis.ttl(key)) != -1
    if ":bus:" in key:
        oldest = await redis.xrange(key, count=1)
        return not oldest or int(oldest[0][0].partition("-")[0]) > now_ms() - BUS_KEPT_S * 1000
    return key == METERED or (DEAD.search(key) or ONE_A_SHARD.search(key)) is not None


def leaks(before: Content, after: Content) -> list[str]:
    found = [f"{count} more keys {key}" for key, count in (after.keys - before.keys).items()]
    found += [f"{count} more groups {group}" for group, count in (after.groups - before.groups).items()]
    found += [f"{count} entries wait in {group}" for group, count in after.waiting.items()]
    grown = (after.bytes - after.kept_bytes) - (before.bytes - before.kept_bytes)
    if grown > SPARE_BYTES:
        found.append(f"{grown} bytes more in use than before, what is kept on purpose apart")
    return found


async def ended_well(cluster: Cluster) -> list[str]:
    """What is wrong with the tasks that are still kept, once nothing runs any more.

    While it is read, keys expire, which looks like a fault, and the scheduler forgets who was ahead of whom a second after the
    last end: so what is found must be found again.
    """
    found: list[str] = []
    for attempt in range(TRIES):
        await asyncio.sleep(PAUSE_S if attempt else 0)
        faults = await asyncio.to_thread(_faults_of_tasks, cluster)
        found = faults if not found else [fault for fault in found if fault in faults]
        if not found:
            break
    return found


def _faults_of_tasks(cluster: Cluster) -> list[str]:
    found = []
    for shard in cluster.shards():
        whole = audit.read(cluster.url, shard)
        tasks = {id: task for id, task in whole.tasks.items() if task}  # empty: it has expired meanwhile
        dead = [letter for letter in whole.entries("dead") if letter["t"] in tasks]
        streams = whole.streams | {"dead": audit.StreamContent(dead, {})}
        kept = msgspec.structs.replace(whole, tasks=tasks, streams=streams, strangers=[])
        found += audit.faults_of_tasks(kept, (), cluster.config.limits) + audit.faults_of_drained(kept)
    return found


async def _reserved(cluster: Cluster) -> list[str]:
    """Tokens of tasks that have ended: the replies and the sweep of the quotas give them back."""
    counts = {name: await cluster.redis.hlen(quota(name, "reservations")) for name in cluster.config.policy.tenants}
    return [f"{name} has reserved tokens for {count} tasks" for name, count in counts.items() if count]


async def settled(cluster: Cluster, before: Content, timeout_s: float) -> tuple[Content, list[str]]:
    """The content once nothing leaks any more, or after `timeout_s`, and what then still does."""
    give_up_at_s = monotonic_s() + timeout_s
    while True:
        after = await content(cluster.redis)
        found = [*leaks(before, after), *await _reserved(cluster)]
        if not found or monotonic_s() > give_up_at_s:
            return after, found
        await asyncio.sleep(1)
