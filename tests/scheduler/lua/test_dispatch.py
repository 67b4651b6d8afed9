"""dispatch.lua: waiting tasks to free slots, never more than were announced."""

import asyncio

import pytest

from services.scheduler.scripts import Dispatched, dispatch
from shared.bus.client import Bus
from shared.lifecycle import LEASE_MS, Lane
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD


async def depth(bus: Bus, worker: str) -> int:
    return int(await bus.commands.call("XLEN", SHARD.work(worker)))


async def test_task_is_handed_to_the_worker_with_a_raised_epoch(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    id = await tasks.admitted(bus)
    assert await dispatch(bus, SHARD) == Dispatched(1, 0, 3)
    ((_, entry),) = await tasks.entries(bus, SHARD.work(owner.worker))
    assert entry == {b"t": id.encode(), b"e": b"1"}
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["epoch"]) == ("pending", "1")


async def test_second_run_finds_nothing_and_writes_nothing(bus: Bus) -> None:
    await tasks.worker(bus)
    await tasks.admitted(bus)
    await dispatch(bus, SHARD)
    before = await snapshot(bus)
    assert await dispatch(bus, SHARD) == Dispatched(0, 0, 3)
    assert await snapshot(bus) == before


async def test_without_workers_everything_waits(bus: Bus) -> None:
    await tasks.admitted(bus)
    assert await dispatch(bus, SHARD) == Dispatched(0, 1, 0)


async def test_credits_are_never_exceeded_by_rival_schedulers(bus: Bus) -> None:
    await tasks.worker(bus, "w1", slots=3)
    await tasks.worker(bus, "w2", slots=2)
    for _ in range(9):
        await tasks.admitted(bus)
    said = await asyncio.gather(*(dispatch(bus, SHARD, most) for most in (1, 2, 100, 100)))
    assert sum(one.handed_out for one in said) == 5
    assert said[-1] == Dispatched(0, 4, 0)
    assert (await depth(bus, "w1"), await depth(bus, "w2")) == (3, 2)


async def test_one_slot_freed_lets_one_task_follow(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    hand = await tasks.running(bus, owner)
    for _ in range(2):
        await tasks.admitted(bus)
    assert await dispatch(bus, SHARD) == Dispatched(0, 2, 0)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    assert await dispatch(bus, SHARD) == Dispatched(1, 1, 0)


async def test_freest_worker_is_served_first(bus: Bus) -> None:
    await tasks.worker(bus, "small", slots=1)
    await tasks.worker(bus, "large", slots=4)
    for _ in range(3):
        await tasks.admitted(bus)
    await dispatch(bus, SHARD)
    assert (await depth(bus, "small"), await depth(bus, "large")) == (0, 3)


async def test_urgent_lane_overtakes_and_within_a_lane_the_oldest_goes_first(bus: Bus) -> None:
    ids = [await tasks.admitted(bus, lane=lane) for lane in (Lane.BATCH, Lane.NORMAL, Lane.INTERACTIVE)]
    second = await tasks.admitted(bus, lane=Lane.INTERACTIVE)
    await bus.commands.call("ZADD", SHARD.backlogs[0], 1, second)  # it came first
    owner = await tasks.worker(bus, slots=9)
    await dispatch(bus, SHARD)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [second, ids[2], ids[1], ids[0]]


async def test_most_bounds_one_call(bus: Bus) -> None:
    await tasks.worker(bus, slots=9)
    for _ in range(3):
        await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, 2) == Dispatched(2, 1, 7)


async def test_silent_worker_gets_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    seconds, _ = await bus.commands.call("TIME")
    old_ms = int(seconds) * 1000 - LEASE_MS - 1
    await bus.commands.call("HSET", SHARD.workers, owner.worker, f"{old_ms} 4 {{}}")
    await tasks.admitted(bus)
    assert await dispatch(bus, SHARD) == Dispatched(0, 1, 0)


async def test_announcement_that_is_not_ours_is_passed_over(bus: Bus) -> None:
    await tasks.worker(bus)
    await bus.commands.call("HSET", SHARD.workers, "alien", "hello")
    await tasks.admitted(bus)
    assert (await dispatch(bus, SHARD)).handed_out == 1


@pytest.mark.keeps_keys
async def test_waiting_id_without_a_pending_task_is_dropped_and_takes_no_slot(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    gone, spoiled, good = [await tasks.admitted(bus) for _ in range(3)]
    await bus.commands.call("DEL", SHARD.task(gone))
    await spoil(bus, SHARD.task(spoiled))
    for score, id in enumerate((gone, spoiled, good)):
        await bus.commands.call("ZADD", SHARD.backlogs[1], score, id)
    assert await dispatch(bus, SHARD) == Dispatched(1, 0, 0)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [good]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.workers, *SHARD.backlogs, SHARD.work("w1")])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await tasks.worker(bus)
    for lane in Lane:
        await tasks.admitted(bus, lane=lane)
    await assert_refused_whole(bus, key, lambda: dispatch(bus, SHARD))
