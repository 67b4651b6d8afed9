"""Who is served when there is too little for all: tenants by weight in tokens, lanes by share, and never beyond a cap.

Nothing is measured by time. All tasks wait before the first one starts, because plugs hold every slot; what counts is how
many tokens each tenant was served as long as all of them had waiting tasks, and in which order tasks were started.
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pytest
import redis.asyncio

from shared.keys import REQUESTS, shard_keys
from shared.lifecycle import Lane, State
from tests.flow.test_task_life import MODEL, chat
from tests.support import records
from tests.support.deployment import Deployment, deployment
from tests.support.records import Record, contested, tokens_of
from tests.support.waiting import wait_until

# ruff: noqa: ASYNC240 - the file is a subject; a write to it takes no time

SHARD = shard_keys("smol", 0)
SLOTS = 4
WEIGHTS = {"gold": 3, "silver": 2, "bronze": 1}
RUNS = ("equal", "own", "mixed", "late")
"""Each run has tenants of its own, so none is charged for another one."""
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = {SLOTS}
[pools.smol.echo]
tokens_per_s = 4000
faults = true
[lanes.batch]
slots = 1.0
[tenants.capped]
running = 2
[tenants.rising]
weight = {{rising}}
"""
CONFIG += "".join(f'[tenants."{run}.{name}"]\nweight = {WEIGHTS[name]}\n' for run in RUNS for name in WEIGHTS)


@pytest.fixture(scope="module", params=[1, 3], ids=["1 scheduler", "3 schedulers"])
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("crowded")
    with deployment(folder, "--replicas", f"scheduler={request.param}", config=CONFIG.format(rising=1)) as running:
        yield running


@pytest.fixture
async def bus(crowded: Deployment) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(crowded.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


Ask = Mapping[str, Any]


def ask(tenant: str, words: int, lane: Lane = Lane.NORMAL) -> Ask:
    """A task that is answered with as many tokens as its prompt has."""
    return {"tenant": tenant, "lane": lane, "body": chat(" ".join(["word"] * words), stream=False)}


async def submit(bus: Any, asked: Sequence[Ask]) -> None:
    """Raises: AssertionError, unless all of them wait in the end."""
    before = await waiting(bus)
    async with bus.pipeline(transaction=False) as pipeline:
        for one in asked:
            pipeline.xadd(REQUESTS, {"task": json.dumps(one)})
        await pipeline.execute()

    async def admitted() -> bool:
        return await waiting(bus) == before + len(asked) and not await bus.xlen(SHARD.arrivals)

    await wait_until(admitted, f"{len(asked)} more tasks wait", timeout_s=60)


async def waiting(bus: Any) -> int:
    return sum(int(tasks or 0) for tasks in await bus.hmget(SHARD.waiting, *(f"l:{lane}" for lane in Lane)))


async def plug(bus: Any, lane: Lane = Lane.NORMAL) -> list[str]:
    """Hold every slot, with tasks that never end by themselves."""
    keys = [f"plug-{random.randbytes(8).hex()}" for _ in range(SLOTS)]
    for key in keys:
        asked = {"tenant": "plug", "lane": lane, "task_id": key, "body": chat("!hang", stream=False)}
        await bus.xadd(REQUESTS, {"task": json.dumps(asked)})

    async def held() -> bool:
        return await bus.scard(SHARD.running("plug")) == await bus.zcard(SHARD.leases) == SLOTS

    await wait_until(held, "the plugs hold every slot", timeout_s=60)
    return keys


async def pull(bus: Any, keys: Sequence[str]) -> None:
    """By one entry after another: slots get free while tasks wait."""
    async with bus.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.xadd(REQUESTS, {"cancel": key, "tenant": "plug"})
        await pipeline.execute()
