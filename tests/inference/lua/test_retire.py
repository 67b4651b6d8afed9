"""retire.lua: a worker that stops leaves nothing behind and loses nothing."""

import pytest
from msgspec.structs import replace

from services.inference.scripts import Retired, retire, start
from services.scheduler.scripts import dispatch
from shared.bus.client import Bus
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD


async def waiting(bus: Bus) -> list[bytes]:
    return list(await bus.commands.call("ZRANGE", SHARD.backlogs[1], 0, -1))


async def test_idle_worker_is_forgotten(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    assert await retire(bus, owner, running=False) == Retired(0, 0)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker), SHARD.workers) == 0
    assert await retire(bus, owner, running=True) == Retired(0, 0)


async def test_unstarted_task_waits_again_at_its_old_place_uncharged(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await retire(bus, owner, running=False) == Retired(1, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"]) == ("pending", "2")
    assert "crashes" not in hash
    assert (await bus.commands.call("ZSCORE", SHARD.backlogs[1], hand.id)).decode() == hash["created_at_ms"]
    assert await tasks.wakes(bus) == [b"retire"]


async def test_running_task_stays_until_the_second_call_hands_it_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await retire(bus, owner, running=False) == Retired(0, 1)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1)) == "ok"
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"]) == ("pending", "2")
    assert "owner" not in hash
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.work(owner.worker)) == 0
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 2, 1)) == "fenced"
    assert await waiting(bus) == [hand.id.encode()]


async def test_task_that_ends_between_the_calls_is_not_handed_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await retire(bus, owner, running=False)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    assert await retire(bus, owner, running=True) == Retired(0, 0)
    assert await waiting(bus) == []
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker)) == 0


async def test_second_run_hands_back_nothing_more(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.handed(bus, owner)
    await retire(bus, owner, running=True)
    before = await snapshot(bus)
    assert await retire(bus, owner, running=True) == Retired(0, 0)
    assert await snapshot(bus) == before


async def test_rival_nonce_does_not_take_back_what_this_worker_runs(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await retire(bus, replace(owner, nonce="other"), running=True)
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"
    assert await bus.commands.call("ZCARD", SHARD.leases) == 1


async def test_other_worker_gets_the_task_and_the_old_entry_is_stale(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    await retire(bus, owner, running=True)
    other = await tasks.worker(bus, "w2")
    assert (await dispatch(bus, SHARD)).handed_out == 1
    (again,) = await tasks.hands(bus, other)
    assert await start(bus, owner, [hand]) == ["stale"]
    (run,) = await start(bus, other, [again])
    assert not isinstance(run, str)


@pytest.mark.keeps_keys
async def test_spoiled_task_is_dropped_and_the_others_go_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.handed(bus, owner) for _ in range(2)]
    await spoil(bus, SHARD.task(spoiled.id))
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    assert await waiting(bus) == [good.id.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.work("w1"), SHARD.workers, SHARD.leases, SHARD.arrivals, *SHARD.backlogs])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    await tasks.running(bus, owner)
    await assert_refused_whole(bus, key, lambda: retire(bus, owner, running=True))
