"""All scripts together, in random order, by rivals that die, wake up and repeat themselves: the promises hold."""

import random
from collections import Counter

import pytest

from services.inference.scripts import Hand, Owner, Running, beat, retire, start
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.lifecycle import Lane
from shared.messages import Chunks, Finished, Reset, decode_event
from tests.support import tasks
from tests.support.tasks import SHARD, emission, emit_one, ending, finish_one

SLOTS = 3


class Worker:
    """Does what a worker may do, and some of what it may not: it repeats itself, and goes on after it was given up."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.seen: list[Hand] = []
        self.written: dict[Hand, tuple[int, int]] = {}
        """Attempt and number of chunks of what it takes to be running here."""


class World:
    def __init__(self, bus: Bus, seed: int) -> None:
        self.bus, self.chance = bus, random.Random(seed)
        self.ids: list[str] = []
        self.workers: list[Worker] = []

    async def step(self) -> None:
        acts = [self.submit, self.schedule, self.schedule, self.take, self.take, self.emit, self.emit, self.finish]
        await self.chance.choice([*acts, self.lose_lease, self.silence, self.retire, self.revive])()
        for worker in self.workers:
            depth = await self.bus.commands.call("XLEN", SHARD.work(worker.owner.worker))
            assert depth <= SLOTS, "credits were exceeded"

    async def submit(self) -> None:
        self.ids.append(await tasks.submitted(self.bus, lane=self.chance.choice(list(Lane)), reply_to="orders"))

    async def schedule(self) -> None:
        await tasks.admit_all(self.bus)
        await reap(self.bus, SHARD)
        await dispatch(self.bus, SHARD, self.chance.choice([1, 100]))

    async def take(self) -> None:
        worker = self.chance.choice(self.workers)
        if await self.bus.commands.call("EXISTS", SHARD.work(worker.owner.worker)):
            worker.seen += await tasks.hands(self.bus, worker.owner)
        for hand in worker.seen:
            (verdict,) = await start(self.bus, worker.owner, [hand])
            if isinstance(verdict, Running):
                known = worker.written.get(hand)
                if known is None or known[0] != verdict.attempt:
                    worker.written[hand] = (verdict.attempt, 0)

    async def emit(self) -> None:
        for worker in self.workers:
            for hand, (attempt, n) in list(worker.written.items()):
                one = emission(hand, n + 1, n + 2, attempt=attempt)
                verdict = await emit_one(self.bus, worker.owner, one)
                if self.chance.random() < 0.3:
                    assert await emit_one(self.bus, worker.owner, one) == verdict
                if verdict == "ok":
                    worker.written[hand] = (attempt, n + 2)

    async def finish(self) -> None:
        worker = self.chance.choice(self.workers)
        for hand, (attempt, n) in list(worker.written.items()):
            one = ending(hand, n + 1, n + self.chance.choice([0, 1]), attempt=attempt)
            verdict = await finish_one(self.bus, worker.owner, one)
            assert verdict in ("ok", "fenced")
            if self.chance.random() < 0.5:
                assert await finish_one(self.bus, worker.owner, one) == verdict
            if self.chance.random() < 0.8:
                del worker.written[hand]

    async def lose_lease(self) -> None:
        for id in await self.bus.commands.call("ZRANGE", SHARD.leases, 0, 0):
            await self.bus.commands.call("ZADD", SHARD.leases, 1, id)

    async def silence(self) -> None:
        worker = self.chance.choice(self.workers)
        if await self.bus.commands.call("HEXISTS", SHARD.workers, worker.owner.worker):
            await self.bus.commands.call("HSET", SHARD.workers, worker.owner.worker, f"1 {SLOTS} {{}}")

    async def retire(self) -> None:
        worker = self.chance.choice(self.workers)
        await retire(self.bus, worker.owner, running=self.chance.random() < 0.5)

    async def revive(self) -> None:
        """A beat, or a new worker with the name of one that was given up."""
        worker = self.chance.choice(self.workers)
        if self.chance.random() < 0.3 and not await self.bus.commands.call(
            "HEXISTS", SHARD.workers, worker.owner.worker
        ):
            self.workers.append(Worker(await tasks.worker(self.bus, f"w{len(self.workers)}", slots=SLOTS)))
            return
        held = [(hand.id, hand.epoch) for hand in worker.written]
        lost = await beat(self.bus, worker.owner, SLOTS, b"{}", held)
        worker.written = {hand: done for hand, done in worker.written.items() if hand.id not in lost}

    async def settle(self) -> None:
        """The old workers are gone; a new one does what is left."""
        for worker in self.workers:
            await self.bus.commands.call("HDEL", SHARD.workers, worker.owner.worker)
            await self.bus.commands.call("HSET", SHARD.workers, worker.owner.worker, f"1 {SLOTS} {{}}")
        for id in await self.bus.commands.call("ZRANGE", SHARD.leases, 0, -1):
            await self.bus.commands.call("ZADD", SHARD.leases, 1, id)
        last = Worker(await tasks.worker(self.bus, "last", slots=100))
        self.workers = [last]
        await self.schedule()
        for _ in range(len(self.ids) + 2):
            await self.schedule()
            await self.take()
            await self.finish()


async def check(world: World) -> None:
    """Each task has one end and a dense log; nothing waits, nothing is leased, nothing is handed out."""
    bus = world.bus
    replies = Counter(entry[b"t"].decode() for _, entry in await tasks.entries(bus, SHARD.outbox))
    for id in world.ids:
        assert (await tasks.fields(bus, id))["state"] == "completed"
        assert replies[id] == 1
        events = [decode_event(entry[b"e"]) for _, entry in await tasks.entries(bus, SHARD.log(id))]
        assert [type(event) for event in events].count(Finished) == 1
        assert isinstance(events[-1], Finished)
        attempt, last = 0, 0
        for event in events[:-1]:
            if isinstance(event, Reset):
                attempt, last = event.attempt, 0
            else:
                assert isinstance(event, Chunks)
                assert (event.first, event.attempt) == (last + 1, attempt if last else event.attempt)
                attempt, last = event.attempt, event.last
        assert events[-1].last == last
    assert [await bus.commands.call("ZCARD", key) for key in (*SHARD.backlogs, SHARD.leases)] == [0, 0, 0, 0]
    work = await bus.commands.call("KEYS", SHARD.work("*").replace("{", "\\{"))
    assert [await bus.commands.call("XLEN", key) for key in work] == [0] * len(work)


@pytest.mark.parametrize("seed", range(12))
async def test_promises_hold_in_any_order(bus: Bus, seed: int) -> None:
    world = World(bus, seed)
    world.workers = [Worker(await tasks.worker(bus, f"w{n}", slots=SLOTS)) for n in range(2)]
    for _ in range(120):
        await world.step()
    await world.settle()
    await check(world)
