"""What a run has done, read from Redis when all of it has ended: who was served, when, and how many tokens each task used.

Times are those of Redis itself, so records of all processes can be put in one order.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from msgspec import Struct
from redis import Redis

from shared.keys import ShardKeys
from shared.lifecycle import State

PAGE = 500
"""Tasks of one pipeline."""
NAMES = ("tenant", "lane", "state", "created_at_ms", "started_at_ms", "finished_at_ms", "result")


class Record(Struct, frozen=True):
    tenant: str
    lane: str
    state: str
    created_ms: int
    started_ms: int
    """Of its last attempt; 0: it never ran."""
    ended_ms: int
    """0: it has not."""
    tokens: int
    """Prompt and answer, as the engine has counted them; 0: it has no answer."""


class _Usage(Struct, frozen=True):
    total_tokens: int = 0


class _Result(Struct, frozen=True):
    usage: _Usage = _Usage()


def read(url: str, shard: ShardKeys, tenants: Collection[str]) -> list[Record]:
    """Of these tenants, in the order in which they were started."""
    found: list[Record] = []
    with Redis.from_url(url, decode_responses=True, protocol=2, socket_timeout=60) as redis:
        names = list(redis.scan_iter(shard.task("*"), count=1000))
        for first in range(0, len(names), PAGE):
            with redis.pipeline(transaction=False) as pipeline:
                for name in names[first : first + PAGE]:
                    pipeline.hmget(name, NAMES)
                found += [_record(fields) for fields in pipeline.execute() if fields[0] in tenants]
    return sorted(found, key=lambda record: record.started_ms)


def _record(fields: list[Any]) -> Record:
    tenant, lane, state, created, started, ended, result = fields
    tokens = msgspec.json.decode(result, type=_Result).usage.total_tokens if state == State.COMPLETED else 0
    return Record(tenant, lane, state, int(created), int(started or 0), int(ended or 0), tokens)


def contested(records: Iterable[Record], since_ms: int = 0) -> list[Record]:
    """Of two tenants or more: what was started while each of them had waiting tasks."""
    by_tenant: dict[str, list[Record]] = {}
    for record in records:
        by_tenant.setdefault(record.tenant, []).append(record)
    begin_ms = max(since_ms, *(min(one.created_ms for one in own) for own in by_tenant.values()))
    end_ms = min(max(one.started_ms for one in own) for own in by_tenant.values())
    return [one for own in by_tenant.values() for one in own if begin_ms <= one.started_ms <= end_ms]


def tokens_of(records: Iterable[Record]) -> Counter[str]:
    """Sum by tenant."""
    used: Counter[str] = Counter()
    for record in records:
        used[record.tenant] += record.tokens
    return used


def most_at_once(records: Iterable[Record]) -> int:
    """Tasks that ran at the same time. One that starts in the millisecond in which another ended ran after it."""
    steps = sorted(step for one in records for step in ((one.started_ms, 1), (one.ended_ms, -1)))
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most
