"""The worker's beat: what is announced, and when the scheduler hears of less room."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from services.inference.breaker import FAILED_TASKS
from services.inference.engine import Answer, Call, Chunk
from services.inference.engine_echo import EchoEngine
from services.inference.heartbeat import Heartbeat
from services.inference.scripts import NO_SLOTS, Owner, Slots, beat
from services.inference.worker import Worker
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.lifecycle import Lane
from shared.periodic import Periodic
from tests.support import tasks
from tests.support.tasks import CONFIG, MODEL, SHARD
from tests.support.waiting import wait_until


async def announced(bus: Bus, owner: Owner) -> Slots:
    value = await bus.commands.call("HGET", SHARD.workers, owner.worker)
    _, total, normal, batch, _ = value.split(b" ", 4)
    return Slots(int(total), int(normal), int(batch))


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await tasks.worker(bus)


@pytest.fixture
def worker(bus: Bus, owner: Owner) -> Worker:
    engine = EchoEngine(model=MODEL, tokens_per_s=0, first_token_ms=0, max_model_len=99, slots=8, faults=True)
    return Worker(bus, owner, engine, CONFIG)


@pytest.fixture
def heartbeat(bus: Bus, owner: Owner, worker: Worker) -> Heartbeat:
    return Heartbeat(bus, owner, worker._engine, worker, model=MODEL)


def break_it(worker: Worker) -> None:
    for task in range(FAILED_TASKS):
        worker.room.began(f"bad{task}", Lane.INTERACTIVE)
        worker.room.answered(f"bad{task}", 500)
        worker.room.left(f"bad{task}")


async def test_a_beat_announces_the_slots_of_each_lane(bus: Bus, owner: Owner, heartbeat: Heartbeat) -> None:
    await heartbeat.beat()
    assert await announced(bus, owner) == Slots(8, 8, 4)


async def test_a_look_that_finds_nothing_else_sends_nothing(bus: Bus, owner: Owner, heartbeat: Heartbeat) -> None:
    await heartbeat.beat()
    await bus.commands.call("HDEL", SHARD.workers, owner.worker)
    await heartbeat.look()
    assert await bus.commands.call("HEXISTS", SHARD.workers, owner.worker) == 0


async def test_an_answer_about_an_earlier_run_of_a_task_leaves_the_next_one_alone(
    bus: Bus, owner: Owner, worker: Worker, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task was lost and has come back, and runs again, before the answer of the beat that found it lost."""
    hand = await tasks.handed(bus, owner)
    worker._engine = Hanging()
    await worker.on_work([Entry(hand.entry, {b"t": hand.id.encode(), b"e": b"%d" % hand.epoch})])
    first = worker.runs[hand.id]

    async def late(*given: Any) -> dict[str, str]:
        await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
        await reap(bus, SHARD, owner.limits)
        stopped = await beat(*given)
        await dispatch(bus, SHARD, CONFIG)
        (back,) = await tasks.hands(bus, owner)
        await worker.on_work([Entry(back.entry, {b"t": back.id.encode(), b"e": b"%d" % back.epoch})])
        await wait_until(lambda: worker.runs.get(hand.id, first) is not first, "it runs again")
        return stopped

    monkeypatch.setattr("services.inference.heartbeat.beat", late)
    await heartbeat.beat()
    assert worker.runs[hand.id].parting is None
    await worker.drain(0)


class Hanging(EchoEngine):
    def __init__(self) -> None:
        super().__init__(model=MODEL, tokens_per_s=0, first_token_ms=0, max_model_len=99, slots=8, faults=True)

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        await asyncio.Event().wait()
        yield Answer(status=200, body=b"{}")


async def test_an_open_breaker_is_announced_at_once(
    bus: Bus, owner: Owner, worker: Worker, heartbeat: Heartbeat
) -> None:
    await heartbeat.beat()
    looking = Periodic("the room for tasks", 3600, heartbeat.look)
    worker.room.on_change = looking.wake
    running = asyncio.create_task(looking.run())
    await wait_until(lambda: looking.last_pass_s is not None, "it has looked")
    await bus.commands.call("DEL", SHARD.arrivals)
    break_it(worker)

    async def told() -> bool:
        return await announced(bus, owner) == NO_SLOTS

    await wait_until(told, "it is announced")
    assert await tasks.wakes(bus) == [b"slots"]
    await looking.stop()
    await running


async def test_a_worker_that_leaves_announces_no_slots(bus: Bus, owner: Owner, heartbeat: Heartbeat) -> None:
    await heartbeat.beat()
    heartbeat.leaving = True
    await heartbeat.beat()
    assert await announced(bus, owner) == NO_SLOTS
