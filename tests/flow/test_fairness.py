"""Who is served when there is too little for all: tenants by weight in tokens, lanes by share, and never beyond a cap.

Nothing is measured by time. All tasks wait before the first one starts, because plugs hold every slot; what counts is how
many tokens each tenant was served as long as all of them had waiting tasks, and in which order tasks were started.
"""

import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest
import redis.asyncio

from shared.ids import new_nonce
from shared.keys import REQUESTS, shard_keys
from shared.lifecycle import Lane, State
from tests.flow.test_task_life import MODEL, chat
from tests.support import records
from tests.support.deployment import Deployment, deployment, rewrite
from tests.support.records import Record, contested, most_at_once, tokens_of
from tests.support.waiting import wait_until

SHARD = shard_keys("smol", 0)
SLOTS = 4
WEIGHTS = {"gold": 3, "silver": 2, "bronze": 1}
RUNS = ("equal", "own", "mixed", "odd", "late")
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
weight = 10.0
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
    """A task that is answered with as many tokens as its prompt has: a word is a token, however long it is."""
    word = ODD_WORD if tenant == "odd.gold" else "word"
    return {"tenant": tenant, "lane": lane, "body": chat(" ".join([word] * words), stream=False)}


def plug(tenant: str, plugs: str) -> Ask:
    """A task that holds its slot until somebody pulls it; `plugs` names a session of them."""
    return {"tenant": tenant, "lane": Lane.NORMAL, "body": chat("!hang", stream=False), "session": plugs}


async def add(bus: Any, asked: Sequence[Ask]) -> None:
    async with bus.pipeline(transaction=False) as pipeline:
        for one in asked:
            pipeline.xadd(REQUESTS, {"task": json.dumps(one)})
        await pipeline.execute()


async def line_up(bus: Any, *asked: Ask) -> None:
    """Behind all that waits, while nothing can start. Raises: AssertionError, unless all of them wait in the end."""
    before = await waiting(bus)
    await add(bus, asked)

    async def admitted() -> bool:
        return await waiting(bus) == before + len(asked) and not await bus.xlen(SHARD.arrivals)

    await wait_until(admitted, f"{len(asked)} more tasks wait", timeout_s=60)


async def waiting(bus: Any) -> int:
    return sum(int(tasks or 0) for tasks in await bus.hmget(SHARD.waiting, *(f"l:{lane}" for lane in Lane)))


async def plugged(bus: Any, plugs: str) -> None:
    """Raises: AssertionError, unless every slot is held by one of them in the end."""

    async def held() -> bool:
        ids = await bus.zrange(SHARD.session(plugs), 0, -1)
        return len(ids) == SLOTS and None not in await bus.zmscore(SHARD.leases, ids)

    await wait_until(held, f"{plugs} hold every slot", timeout_s=60)


async def pull(bus: Any, plugs: str) -> None:
    async with bus.pipeline(transaction=False) as pipeline:
        for id in await bus.zrange(SHARD.session(plugs), 0, -1):
            pipeline.xadd(REQUESTS, {"cancel": id})
        await pipeline.execute()


async def hold(bus: Any) -> str:
    """All slots, of an idle deployment."""
    plugs = f"plugs-{new_nonce()}"
    await add(bus, [plug("nobody", plugs)] * SLOTS)
    await plugged(bus, plugs)
    return plugs


async def all_ended(bus: Any) -> None:
    async def none_left() -> bool:
        return not await bus.exists(SHARD.expiry)

    await wait_until(none_left, "all tasks have ended", timeout_s=60)


async def now_ms(bus: Any) -> int:
    """By the clock of the records."""
    seconds, microseconds = await bus.time()
    return int(seconds * 1000 + microseconds // 1000)


def read(crowded: Deployment, *tenants: str) -> list[Record]:
    return records.read(crowded.redis, SHARD, tenants)


def assert_shares(served: Sequence[Record], weights: Mapping[str, float]) -> None:
    """Each part of the tokens is within 10 % of the one that its weight says."""
    used = tokens_of(served)
    all_used, all_weights = sum(used.values()), sum(weights.values())
    parts = {name: used[name] / all_used * all_weights / weight for name, weight in weights.items()}
    assert all(0.9 <= part <= 1.1 for part in parts.values()), (parts, used)


def shuffled(asked: Sequence[Ask]) -> list[Ask]:
    """In a random order, which is the same in every run."""
    return random.Random(len(asked)).sample(asked, len(asked))


SIZES: dict[str, Mapping[str, Sequence[int]]] = {
    "equal": {"gold": [40] * 210, "silver": [40] * 140, "bronze": [40] * 70},
    "own": {"gold": [300] * 70, "silver": [40] * 350, "bronze": [5] * 1400},
    "mixed": {name: [5, 40, 300] * (28 * weight) for name, weight in WEIGHTS.items()},
    "odd": {"gold": [40] * 210, "silver": [40] * 140, "bronze": [40] * 70},
}
"""Words of the tasks of each tenant, as many as it takes to have all of them wait for long."""
ODD_WORD = "antidisestablishmentarianism"
"""A prompt of them is taken for one of seven times as many tokens: only what is settled at the end is right."""


@pytest.mark.parametrize("run", SIZES)
async def test_tenants_get_tokens_by_weight_whatever_the_sizes_of_their_tasks(
    crowded: Deployment, bus: Any, run: str
) -> None:
    plugs = await hold(bus)
    asked = [ask(f"{run}.{name}", words) for name, sizes in SIZES[run].items() for words in sizes]
    await line_up(bus, *shuffled(asked))
    await pull(bus, plugs)
    await all_ended(bus)
    weights = {f"{run}.{name}": weight for name, weight in WEIGHTS.items()}
    served = read(crowded, *weights)
    assert {one.state for one in served} == {State.COMPLETED}
    assert len(contested(served)) >= len(served) / 2
    assert_shares(contested(served), weights)


async def test_a_tenant_that_comes_late_is_served_at_once_and_has_saved_nothing_up(
    crowded: Deployment, bus: Any
) -> None:
    gold, silver, bronze = names = [f"late.{name}" for name in WEIGHTS]
    plugs = await hold(bus)
    await line_up(bus, *[ask(gold, 40)] * 90, *[ask(silver, 40)] * 60)
    await line_up(bus, *[plug(gold, "pause"), plug(silver, "pause")] * (SLOTS // 2))
    await line_up(bus, *[ask(gold, 40)] * 210, *[ask(silver, 40)] * 140)
    await pull(bus, plugs)
    await plugged(bus, "pause")
    await line_up(bus, *[ask(bronze, 40)] * 60)
    came_ms = await now_ms(bus)
    await pull(bus, "pause")
    await all_ended(bus)

    served = read(crowded, *names)
    assert_shares(
        [one for one in contested(read(crowded, gold, silver)) if one.started_ms < came_ms], {gold: 3, silver: 2}
    )
    assert_shares(contested(served, came_ms), {gold: 3, silver: 2, bronze: 1})
    started = [one.tenant for one in served if one.started_ms >= came_ms]
    assert bronze in started[: 2 * SLOTS]


async def test_a_weight_that_is_changed_holds_for_what_waits_already(crowded: Deployment, bus: Any) -> None:
    plugs = await hold(bus)
    await line_up(bus, *[ask("steady", 40)] * 60, *[ask("rising", 40)] * 60)
    await line_up(bus, *[plug("steady", "change"), plug("rising", "change")] * (SLOTS // 2))
    await line_up(bus, *[ask("steady", 40)] * 80, *[ask("rising", 40)] * 180)
    await pull(bus, plugs)
    await plugged(bus, "change")
    rewrite(crowded, CONFIG.format(rising=3))
    for scheduler in crowded.processes()["scheduler"]:
        os.kill(scheduler, signal.SIGHUP)

    async def changed() -> bool:
        return bool(await bus.hget(SHARD.tenants, "rising") == "3.0 0")

    await wait_until(changed, "the weight is written", timeout_s=30)
    changed_ms = await now_ms(bus)
    await pull(bus, "change")
    await all_ended(bus)

    served = read(crowded, "steady", "rising")
    before = [one for one in contested(served) if one.started_ms < changed_ms]
    assert_shares(before, {"steady": 1, "rising": 1})
    assert_shares(contested(served, changed_ms), {"steady": 1, "rising": 3})


async def test_no_more_tasks_of_a_tenant_run_at_once_than_it_may(crowded: Deployment, bus: Any) -> None:
    plugs = await hold(bus)
    await line_up(bus, *[ask("capped", 20)] * 150, *[ask("free", 20)] * 150)
    await pull(bus, plugs)
    await all_ended(bus)
    assert most_at_once(read(crowded, "capped")) == 2
    assert most_at_once(read(crowded, "capped", "free")) == SLOTS


async def test_an_interactive_task_overtakes_any_batch_backlog_within_the_next_slots(
    crowded: Deployment, bus: Any
) -> None:
    """Before it only starts what was handed out when it came, and what a pass under way handed out beside it."""
    plugs = await hold(bus)
    await line_up(bus, *[ask("bulk", 80, Lane.BATCH)] * 300)
    await pull(bus, plugs)
    for left in range(280, 80, -20):

        async def some_have_run(left: int = left) -> bool:
            return bool(await bus.zcard(SHARD.expiry) <= left)

        await wait_until(some_have_run, f"{left} tasks are left", timeout_s=60)
        await add(bus, [ask("person", 5, Lane.INTERACTIVE)])
    await all_ended(bus)
    bulk = read(crowded, "bulk")
    people = read(crowded, "person")
    assert len(people) == 10
    assert people[0].created_ms < bulk[-1].started_ms
    overtaken = [sum(one.created_ms < batch.started_ms < one.started_ms for batch in bulk) for one in people]
    assert max(overtaken) <= 3 * SLOTS, overtaken


async def test_batch_goes_on_by_its_share_under_a_flood_of_interactive_tasks(crowded: Deployment, bus: Any) -> None:
    plugs = await hold(bus)
    await line_up(bus, *[ask("crowd", 80, Lane.INTERACTIVE)] * 500, *[ask("nightly", 80, Lane.BATCH)] * 60)
    await pull(bus, plugs)
    await all_ended(bus)
    served = read(crowded, "crowd", "nightly")
    assert {one.tenant for one in served[:50]} == {"crowd"}  # a burst goes first
    slow_ms = read(crowded, "nightly")[0].started_ms
    assert_shares(contested(served, slow_ms), {"crowd": 7, "nightly": 1})
