"""dispatch.lua: waiting tasks to free slots, never more than were announced."""

import asyncio

import pytest
from msgspec.structs import replace

from services.inference.scripts import start
from services.scheduler.scripts import Dispatched, dispatch
from shared.bus.client import Bus
from shared.config import Limits
from shared.lifecycle import Lane
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD

SUSPECT_AT = tasks.LIMITS.crashes - 1
"""Crashes that make a task suspect: the next one is its last."""


async def depth(bus: Bus, worker: str) -> int:
    return int(await bus.commands.call("XLEN", SHARD.work(worker)))


async def test_task_is_handed_to_the_worker_with_a_raised_epoch(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    id = await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(1, 0, 3)
    ((_, entry),) = await tasks.entries(bus, SHARD.work(owner.worker))
    assert entry == {b"t": id.encode(), b"e": b"1", b"l": b"normal"}
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["epoch"]) == ("pending", "1")


async def test_second_run_finds_nothing_and_writes_nothing(bus: Bus) -> None:
    await tasks.worker(bus)
    await tasks.admitted(bus)
    await dispatch(bus, SHARD, tasks.CONFIG)
    before = await snapshot(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 0, 3)
    assert await snapshot(bus) == before


async def test_without_workers_everything_waits(bus: Bus) -> None:
    await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 1, 0)


async def test_credits_are_never_exceeded_by_rival_schedulers(bus: Bus) -> None:
    await tasks.worker(bus, "w1", slots=3)
    await tasks.worker(bus, "w2", slots=2)
    for _ in range(9):
        await tasks.admitted(bus)
    said = await asyncio.gather(*(dispatch(bus, SHARD, tasks.CONFIG, most) for most in (1, 2, 100, 100)))
    assert sum(one.handed_out for one in said) == 5
    assert said[-1] == Dispatched(0, 4, 0)
    assert (await depth(bus, "w1"), await depth(bus, "w2")) == (3, 2)


async def test_one_slot_freed_lets_one_task_follow(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    hand = await tasks.running(bus, owner)
    for _ in range(2):
        await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 2, 0)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(1, 1, 0)


async def test_freest_worker_is_served_first(bus: Bus) -> None:
    await tasks.worker(bus, "small", slots=1)
    await tasks.worker(bus, "large", slots=4)
    for _ in range(3):
        await tasks.admitted(bus)
    await dispatch(bus, SHARD, tasks.CONFIG)
    assert (await depth(bus, "small"), await depth(bus, "large")) == (0, 3)


async def test_urgent_lane_overtakes_and_within_a_lane_the_oldest_goes_first(bus: Bus) -> None:
    ids = [await tasks.admitted(bus, lane=lane) for lane in (Lane.BATCH, Lane.NORMAL, Lane.INTERACTIVE)]
    second = await tasks.admitted(bus, lane=Lane.INTERACTIVE)
    await bus.commands.call("ZADD", tasks.BACKLOGS[0], 1, second)  # it came first
    owner = await tasks.worker(bus, slots=9)
    await dispatch(bus, SHARD, tasks.CONFIG)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [second, ids[2], ids[1], ids[0]]


async def test_most_bounds_one_call(bus: Bus) -> None:
    await tasks.worker(bus, slots=9)
    for _ in range(3):
        await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG, 2) == Dispatched(2, 1, 7)


async def test_silent_worker_gets_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    seconds, _ = await bus.commands.call("TIME")
    old_ms = int(seconds) * 1000 - tasks.LIMITS.lease_ms - 1
    await bus.commands.call("HSET", SHARD.workers, owner.worker, f"{old_ms} 4 4 4 {{}}")
    await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 1, 0)


async def test_announcement_that_is_not_ours_is_passed_over(bus: Bus) -> None:
    await tasks.worker(bus)
    await bus.commands.call("HSET", SHARD.workers, "alien", "hello")
    await tasks.admitted(bus)
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1


async def suspect(bus: Bus, crashes: int = SUSPECT_AT) -> str:
    """A waiting task that so many workers died on."""
    id = await tasks.admitted(bus)
    await bus.commands.call("HSET", SHARD.task(id), "crashes", crashes)
    return id


async def test_suspects_go_to_different_workers_however_free_one_is(bus: Bus) -> None:
    """So the next death tells which of them kills workers."""
    large, small = await tasks.worker(bus, "large", slots=9), await tasks.worker(bus, "small", slots=1)
    first, second = await suspect(bus), await suspect(bus)
    for score, id in enumerate((first, second)):
        await bus.commands.call("ZADD", tasks.BACKLOGS[1], score, id)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(2, 0, 8)
    assert [hand.id for hand in await tasks.hands(bus, large)] == [first]
    assert [hand.id for hand in await tasks.hands(bus, small)] == [second]
    told = await bus.commands.call("HGETALL", SHARD.suspects)
    assert dict(zip(told[::2], told[1::2], strict=True)) == {
        b"large": f"{first} 1".encode(),
        b"small": f"{second} 1".encode(),
    }


async def test_suspect_without_a_worker_of_its_own_is_put_aside_and_stops_nobody(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=9)
    first, second, plain = await suspect(bus), await suspect(bus), await tasks.admitted(bus)
    for score, id in enumerate((first, second, plain)):
        await bus.commands.call("ZADD", tasks.BACKLOGS[1], score, id)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(2, 1, 7)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [first, plain]
    aside, due_ms = await bus.commands.call("ZRANGE", SHARD.later, 0, -1, "WITHSCORES")
    seconds, micros = await bus.commands.call("TIME")
    assert aside == second.encode()
    assert 0 < float(due_ms) - int(seconds) * 1000 - int(micros) // 1000 <= 1000
    assert (await tasks.fields(bus, second))["epoch"] == "0"


async def test_suspect_gets_the_worker_once_the_one_before_has_ended_or_was_taken_back(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=9)
    await suspect(bus)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    second = await suspect(bus)
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    assert await bus.commands.call("HGET", SHARD.suspects, owner.worker) == f"{second} 1".encode()
    await bus.commands.call("HINCRBY", SHARD.task(second), "epoch", 1)
    third = await suspect(bus)
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    assert await bus.commands.call("HGET", SHARD.suspects, owner.worker) == f"{third} 1".encode()


@pytest.mark.parametrize(
    ("limit", "crashes", "suspected"), [(3, 1, False), (3, 2, True), (2, 1, True), (5, 3, False), (1, 0, False)]
)
async def test_task_is_suspect_when_the_next_crash_is_its_last(
    bus: Bus, limit: int, crashes: int, suspected: bool
) -> None:
    await tasks.worker(bus)
    await suspect(bus, crashes)
    assert (await dispatch(bus, SHARD, replace(tasks.CONFIG, limits=Limits(crashes=limit)))).handed_out == 1
    assert await bus.commands.call("EXISTS", SHARD.suspects) == int(suspected)


@pytest.mark.keeps_keys
async def test_waiting_id_without_a_pending_task_is_dropped_and_takes_no_slot(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    gone, spoiled, good = [await tasks.admitted(bus) for _ in range(3)]
    await bus.commands.call("DEL", SHARD.task(gone))
    await spoil(bus, SHARD.task(spoiled))
    for score, id in enumerate((gone, spoiled, good)):
        await bus.commands.call("ZADD", tasks.BACKLOGS[1], score, id)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(1, 0, 0)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [good]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.workers, SHARD.suspects, SHARD.later, *tasks.ORDER, SHARD.work("w1")])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await tasks.worker(bus)
    for lane in Lane:
        await tasks.admitted(bus, lane=lane)
    await assert_refused_whole(bus, key, lambda: dispatch(bus, SHARD, tasks.CONFIG))
