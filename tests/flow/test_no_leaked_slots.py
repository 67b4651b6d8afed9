"""Workers die a thousand times, at any moment of any task; afterwards not one slot, place or count is held by the dead."""

import itertools
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from msgspec import Struct, field
from redis.asyncio import Redis

from services.inference.scripts import Hand, Owner, Running, Slots, beat, emit, finish, retire, start
from services.scheduler.scripts import dispatch, due, reap
from shared.bus.client import Bus
from shared.config import Config, Limits
from shared.ids import new_nonce
from shared.keys import REQUESTS
from shared.lifecycle import Lane, State
from tests.flow.test_nothing_lost import worker_process
from tests.flow.test_task_life import MODEL, chat
from tests.support import audit, tasks
from tests.support.deployment import Deployment, deployment
from tests.support.tasks import SHARD
from tests.support.waiting import wait_until

DEATHS, WORKERS, WAITING = 1000, 4, 20
SLOTS = Slots(4, 3, 2)
LIMITS = Limits(crashes=5, results_kept_s=600, log_kept_s=600)
CONFIG = Config(pools=tasks.CONFIG.pools, limits=LIMITS)
TENANTS = {"plain": "1.0 0", "heavy": "3.0 0", "capped": "1.0 2"}
"""With weight, and the most tasks that run at once."""


class Mortal(Struct):
    """A worker that will die; it keeps what it was given, as its process would."""

    owner: Owner
    handed: list[Hand] = field(default_factory=list)
    running: dict[str, tuple[Hand, Running, int]] = field(default_factory=dict)
    """By id: how it was handed and started, and the number of its last chunk."""


class World(Struct):
    bus: Bus
    chance: random.Random
    workers: list[Mortal] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=itertools.count)

    async def come(self) -> None:
        """Tasks and workers, as many as it takes."""
        counts = await self.bus.commands.call("HMGET", SHARD.waiting, *(f"l:{lane}" for lane in Lane))
        for _ in range(WAITING - sum(int(count or 0) for count in counts)):
            lane, tenant = self.chance.choice(list(Lane)), self.chance.choice(list(TENANTS))
            self.ids.append(await tasks.submitted(self.bus, lane=lane, tenant=tenant))
        while len(self.workers) < WORKERS:
            owner = Owner(SHARD, f"w{next(self.names)}", new_nonce(), LIMITS)
            await beat(self.bus, owner, SLOTS, b"{}", [])
            self.workers.append(Mortal(owner))

    async def hand_out(self) -> None:
        await due(self.bus, SHARD, LIMITS)
        await tasks.admit_all(self.bus)
        await dispatch(self.bus, SHARD, CONFIG)
        for worker in self.workers:
            worker.handed += await tasks.hands(self.bus, worker.owner)

    async def work(self, worker: Mortal, *, all_of_it: bool = False) -> None:
        """Start, emit and finish some of what it has, and leave the rest at any moment of its life."""

        def some() -> bool:
            return all_of_it or self.chance.random() < 0.6

        begun = [hand for hand in worker.handed if some()]
        worker.handed = [hand for hand in worker.handed if hand not in begun]
        for hand, verdict in zip(begun, await start(self.bus, worker.owner, begun), strict=True):
            assert isinstance(verdict, Running), verdict
            worker.running[hand.id] = hand, verdict, verdict.published
        said = [one for one in worker.running.values() if some()]
        emissions = [tasks.emission(hand, last + 1, last + 2, attempt=run.attempt) for hand, run, last in said]
        assert set(await emit(self.bus, worker.owner, emissions)) <= {"ok"}
        for hand, run, last in said:
            worker.running[hand.id] = hand, run, last + 2
        done = [one for one in worker.running.values() if some()]
        assert set(await self.finish(worker, done)) <= {"ok"}
        for hand, _, _ in done:
            del worker.running[hand.id]

    async def finish(self, worker: Mortal, done: list[tuple[Hand, Running, int]]) -> list[str]:
        endings = [tasks.ending(hand, last + 1, last, attempt=run.attempt) for hand, run, last in done]
        return list(await finish(self.bus, worker.owner, endings))

    async def kill(self, worker: Mortal) -> None:
        """It is silent for longer than a lease. Then it is reaped; and it wakes up again, too late."""
        self.workers.remove(worker)
        await self.bus.commands.call("HSET", SHARD.workers, worker.owner.worker, "1 4 3 2 {}")
        for id in worker.running:
            assert await self.bus.commands.call("ZADD", SHARD.leases, "XX", "CH", 1, id) == 1
        await reap(self.bus, SHARD, LIMITS)
        if self.chance.random() < 0.3 and worker.running:
            assert set(await self.finish(worker, list(worker.running.values()))) == {"fenced"}

    async def drain(self) -> None:
        """Nobody dies any more. What was put aside for a moment comes at once."""
        while await self.bus.commands.call("EXISTS", SHARD.expiry):
            for id in await self.bus.commands.call("ZRANGE", SHARD.later, 0, -1):
                await self.bus.commands.call("ZADD", SHARD.later, "XX", 1, id)
            await self.hand_out()
            for worker in self.workers:
                await self.work(worker, all_of_it=True)
        assert (
            await self.bus.commands.call("EXISTS", SHARD.waiting) == 0
        )  # before the counts are forgotten with the shares
        for worker in self.workers:
            await retire(self.bus, worker.owner, running=False)
        await due(self.bus, SHARD, LIMITS)
        await tasks.admit_all(self.bus)


@pytest.mark.keeps_keys  # the weights of tenants stay
async def test_a_thousand_deaths_at_any_moment_of_a_task_leave_no_slot_held(bus: Bus, redis_url: str) -> None:
    await bus.commands.call("HSET", SHARD.tenants, *itertools.chain(*TENANTS.items()))
    world, deaths = World(bus, random.Random(4)), 0
    while deaths < DEATHS:
        await world.come()
        await world.hand_out()
        for worker in list(world.workers):
            await world.work(worker)
        for worker in world.chance.sample(world.workers, world.chance.randint(1, WORKERS)):
            await world.kill(worker)
            deaths += 1
    await world.come()
    await world.drain()

    content = audit.read(redis_url, SHARD)
    assert audit.faults_of_tasks(content, world.ids, LIMITS) == []
    assert audit.faults_of_drained(content) == []
    assert await held_keys(bus) == []
    states = {task["state"] for task in content.tasks.values()}
    assert states == {State.COMPLETED, State.FAILED}  # those that died with five workers are given up
    await assert_fresh_worker_gets_all_its_slots(bus)


async def held_keys(bus: Bus) -> list[bytes]:
    """Of all that counts what waits or is handed out."""
    names = [SHARD.held, SHARD.waiting, SHARD.suspects, SHARD.leases, SHARD.workers, *SHARD.turns]
    names += [SHARD.running(tenant) for tenant in TENANTS]
    names += [SHARD.backlog(lane, tenant) for lane in Lane for tenant in TENANTS]
    return [name.encode() for name in names if await bus.commands.call("EXISTS", name)]


async def assert_fresh_worker_gets_all_its_slots(bus: Bus) -> None:
    """As many as each lane may have: batch first, so that it takes no more than its own."""
    owner = Owner(SHARD, "fresh", new_nonce(), LIMITS)
    await beat(bus, owner, Slots(8, 6, 4), b"{}", [])
    for lane, handed_out in ((Lane.BATCH, 4), (Lane.NORMAL, 2), (Lane.INTERACTIVE, 2)):
        for _ in range(5):
            await tasks.admitted(bus, lane=lane)
        assert (await dispatch(bus, SHARD, CONFIG)).handed_out == handed_out


# -- real processes

KILLS, REPLICAS, REAL_SLOTS = 20, 5, 4
FILE = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = {REAL_SLOTS}
[pools.smol.echo]
tokens_per_s = 200
faults = true
[limits]
lease_s = 2.0
crashes = 100
[lanes.batch]
slots = 0.75
[tenants.capped]
running = 2
"""


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("mortal")
    with deployment(
        folder, "--replicas", f"inference={REPLICAS}", config=FILE, environ={"HEADRACE_DRAIN_S": "0.5"}
    ) as running:
        yield running


@pytest.fixture
async def redis(mortal: Deployment) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(mortal.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


async def add(redis: Any, count: int, text: str = " ".join(["word"] * 20)) -> None:
    """Tasks of all lanes and tenants in turn, every other one streamed."""
    lanes, tenants, streams = (
        itertools.cycle(Lane),
        itertools.cycle([*TENANTS, "other"]),
        itertools.cycle([True, False]),
    )
    async with redis.pipeline(transaction=False) as pipeline:
        for lane, tenant, stream in itertools.islice(zip(lanes, tenants, streams, strict=False), count):
            task = {"lane": lane, "tenant": tenant, "body": chat(text, stream=stream)}
            pipeline.xadd(REQUESTS, {"task": json.dumps(task)})
        await pipeline.execute()


async def busy_worker(redis: Any, dead: set[str]) -> str:
    found: list[str] = []

    async def some_is_busy() -> bool:
        for worker in await redis.hkeys(SHARD.workers):
            if worker not in dead and await redis.xlen(SHARD.work(worker)):
                found.append(worker)
        return bool(found)

    await wait_until(some_is_busy, "a worker that lives has tasks", timeout_s=60)
    return random.Random(len(dead)).choice(found)


@pytest.mark.timeout(400)
async def test_workers_killed_under_load_leave_no_slot_held(mortal: Deployment, redis: Any) -> None:
    dead: set[str] = set()
    for _ in range(KILLS):
        await add(redis, 40)
        worker = await busy_worker(redis, dead)
        os.kill(await worker_process(redis, worker), signal.SIGKILL)
        dead.add(worker)

    async def idle() -> bool:
        entries = [await redis.xlen(stream) for stream in (REQUESTS, SHARD.arrivals)]
        return entries == [0, 0] and not await redis.exists(SHARD.expiry, SHARD.waiting, SHARD.means)

    async def all_live() -> bool:
        """The dead are announced until their leases are over."""
        announced = await redis.hkeys(SHARD.workers)
        return len(announced) == REPLICAS and dead.isdisjoint(announced)

    await wait_until(all_live, "all workers are back", timeout_s=90)
    await wait_until(idle, "nothing waits, and the scheduler has seen it", timeout_s=120)
    content = audit.read(mortal.redis, SHARD)
    assert audit.faults_of_drained(content) == []
    assert len(content.tasks) == KILLS * 40
    assert {task["state"] for task in content.tasks.values()} == {State.COMPLETED}
    assert any(int(task.get("crashes", 0)) for task in content.tasks.values())
    await add_hanging(redis, REPLICAS * REAL_SLOTS)

    async def all_hold() -> bool:
        return bool(await redis.zcard(SHARD.leases) == REPLICAS * REAL_SLOTS)

    await wait_until(all_hold, "each of their slots runs a task", timeout_s=60)


async def add_hanging(redis: Any, count: int) -> None:
    task = {"lane": Lane.INTERACTIVE, "tenant": "other", "body": chat("!hang", stream=False)}
    for _ in range(count):
        await redis.xadd(REQUESTS, {"task": json.dumps(task)})
