"""reap.lua: what silent workers held goes back, and they can change nothing afterwards."""

import asyncio

import pytest

from services.inference.scripts import Hand, Owner, beat, start
from services.scheduler.scripts import Reaped, dispatch, reap
from shared.bus.client import Bus
from shared.errors import WrongKeyType
from shared.lifecycle import LEASE_MS
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD

NOTHING = Reaped(0, 0, 0)


async def lose_lease(bus: Bus, hand: Hand) -> None:
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)


async def silence(bus: Bus, owner: Owner) -> None:
    """The worker's last beat was too long ago."""
    seconds, _ = await bus.commands.call("TIME")
    await bus.commands.call("HSET", SHARD.workers, owner.worker, f"{int(seconds) * 1000 - LEASE_MS - 1} 4 {{}}")


async def waiting(bus: Bus) -> list[bytes]:
    return list(await bus.commands.call("ZRANGE", SHARD.backlogs[1], 0, -1))


async def test_nothing_to_reap_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.running(bus, owner)
    await tasks.handed(bus, owner)
    before = await snapshot(bus)
    assert await reap(bus, SHARD) == NOTHING
    assert await snapshot(bus) == before


async def test_running_task_without_lease_waits_again_at_its_old_place(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    assert await reap(bus, SHARD) == Reaped(1, 0, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"], hash["crashes"], hash["attempts"]) == ("pending", "2", "1", "1")
    assert "owner" not in hash
    score = await bus.commands.call("ZSCORE", SHARD.backlogs[1], hand.id)
    assert score.decode() == hash["created_at_ms"]
    assert await bus.commands.call("ZCARD", SHARD.leases) == 0
    assert await tasks.wakes(bus) == [b"reap"]


async def test_second_run_and_rivals_take_a_task_back_once(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    first, second = await asyncio.gather(reap(bus, SHARD), reap(bus, SHARD))
    assert (first, second) == (Reaped(1, 0, 0), NOTHING)
    assert (await tasks.fields(bus, hand.id))["epoch"] == "2"


async def test_worker_that_wakes_up_changes_nothing_and_frees_its_slot(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    await reap(bus, SHARD)
    before = await tasks.fields(bus, hand.id)
    assert await beat(bus, owner, 4, b"{}", [(hand.id, hand.epoch)]) == [hand.id]
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1)) == "fenced"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert await waiting(bus) == [hand.id.encode()]
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_unstarted_tasks_of_a_silent_worker_go_to_another_one_uncharged(bus: Bus) -> None:
    lost = await tasks.worker(bus, "lost")
    hand = await tasks.handed(bus, lost)
    await silence(bus, lost)
    other = await tasks.worker(bus, "other")
    assert await reap(bus, SHARD) == Reaped(0, 1, 1)
    assert (await tasks.fields(bus, hand.id))["crashes"] == "0"
    assert (await dispatch(bus, SHARD)).handed_out == 1
    (again,) = await tasks.hands(bus, other)
    assert (again.id, again.epoch) == (hand.id, hand.epoch + 2)
    assert await start(bus, lost, [hand]) == ["stale"]


async def test_silent_worker_is_forgotten_with_its_stream(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await silence(bus, owner)
    assert await reap(bus, SHARD) == Reaped(0, 0, 1)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker), SHARD.workers) == 0
    assert await reap(bus, SHARD) == NOTHING


async def test_silent_worker_keeps_what_it_runs_until_the_lease_ends(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await silence(bus, owner)
    assert await reap(bus, SHARD) == NOTHING
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"
    await lose_lease(bus, hand)
    assert await reap(bus, SHARD) == Reaped(1, 0, 1)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker)) == 0


async def test_lease_of_a_task_that_has_ended_is_only_removed(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    await lose_lease(bus, hand)
    await reap(bus, SHARD)
    assert (await tasks.fields(bus, hand.id))["state"] == "completed"
    assert await waiting(bus) == []


async def test_one_call_is_bounded(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    for hand in [await tasks.running(bus, owner) for _ in range(3)]:
        await lose_lease(bus, hand)
    assert await reap(bus, SHARD, 2) == Reaped(2, 0, 0)
    assert await reap(bus, SHARD, 2) == Reaped(1, 0, 0)


@pytest.mark.keeps_keys
async def test_spoiled_task_is_passed_over(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.running(bus, owner) for _ in range(2)]
    for hand in (spoiled, good):
        await lose_lease(bus, hand)
    await spoil(bus, SHARD.task(spoiled.id))
    await silence(bus, owner)
    assert (await reap(bus, SHARD)).workers == 1
    assert await waiting(bus) == [good.id.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.leases, SHARD.workers, SHARD.arrivals, *SHARD.backlogs])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    await lose_lease(bus, await tasks.running(bus, owner))
    await tasks.handed(bus, owner)
    await silence(bus, owner)
    await assert_refused_whole(bus, key, lambda: reap(bus, SHARD))


@pytest.mark.keeps_keys
async def test_spoiled_stream_of_a_silent_worker_is_named_after_its_running_tasks_are_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    await silence(bus, owner)
    await spoil(bus, SHARD.work(owner.worker))
    with pytest.raises(WrongKeyType):
        await reap(bus, SHARD)
    assert await waiting(bus) == [hand.id.encode()]
