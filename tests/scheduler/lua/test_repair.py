"""repair.lua: unfinished tasks that are nowhere come back, and nothing else is touched."""

import pytest

from services.inference.scripts import start
from services.scheduler.scripts import Look, dispatch, reap, repair
from shared.bus.client import Bus
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import LIMITS, SHARD


async def look(bus: Bus, id: str, before: str = "") -> str:
    (verdict,) = await repair(bus, SHARD, LIMITS, [Look(id, before)])
    return verdict


async def test_tasks_in_their_places_are_well_and_nothing_is_written(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    waiting, retried = [await tasks.admitted(bus) for _ in range(2)]
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], retried)
    await bus.commands.call("ZADD", SHARD.later, 10**15, retried)
    before = await snapshot(bus)
    for verdict_before in ("", "0", "1"):
        looks = [Look(id, verdict_before) for id in (hand.id, waiting, retried)]
        assert await repair(bus, SHARD, LIMITS, looks) == ["well"] * 3
    assert await snapshot(bus) == before


async def test_first_look_at_a_task_that_is_nowhere_only_tells_its_epoch(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], id)
    before = await snapshot(bus)
    assert [await look(bus, id), await look(bus, id, "7")] == ["0", "0"]
    assert await snapshot(bus) == before


async def test_waiting_task_that_is_nowhere_waits_again_at_its_old_place(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], id)
    assert await look(bus, id, "0") == "repaired"
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["epoch"]) == ("pending", "1")
    assert (await bus.commands.call("ZSCORE", tasks.BACKLOGS[1], id)).decode() == hash["created_at_ms"]
    assert await look(bus, id, "0") == "well"


async def test_task_that_is_still_in_a_workers_stream_is_stale_there_after_the_repair(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await look(bus, hand.id) == "1"
    assert await look(bus, hand.id, "1") == "repaired"
    assert await start(bus, owner, [hand]) == ["stale"]
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1


async def test_task_that_moved_between_the_looks_is_left_alone(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await look(bus, hand.id) == "1"
    await start(bus, owner, [hand])
    assert await look(bus, hand.id, "1") == "well"


async def test_arrival_that_was_repaired_is_not_admitted_twice(bus: Bus) -> None:
    id = await tasks.submitted(bus)
    assert await look(bus, id, "0") == "repaired"
    assert await tasks.admit_all(bus) == ["queued"]
    assert await bus.commands.call("ZCARD", tasks.BACKLOGS[1]) == 1


async def test_running_task_without_lease_is_taken_back_by_the_next_reap(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZREM", SHARD.leases, hand.id)
    assert await look(bus, hand.id, "1") == "repaired"
    assert (await reap(bus, SHARD, LIMITS)).running == 1
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"]) == ("pending", "2")


async def test_tasks_that_have_ended_or_gone_leave_the_index(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    ended, gone = (await tasks.ended(bus, owner)).id, tasks.new_id()
    before = await tasks.fields(bus, ended)
    for id in (ended, gone):
        await bus.commands.call("ZADD", SHARD.expiry, 1, id)
    assert [await look(bus, ended), await look(bus, ended, "1"), await look(bus, gone)] == ["1", "repaired", "repaired"]
    assert await tasks.fields(bus, ended) == before
    assert await bus.commands.call("EXISTS", SHARD.expiry) == 0


@pytest.mark.keeps_keys
async def test_spoiled_task_leaves_the_index_and_the_others_are_repaired(bus: Bus) -> None:
    spoiled, good = [await tasks.admitted(bus) for _ in range(2)]
    await spoil(bus, SHARD.task(spoiled))
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], good)
    assert await repair(bus, SHARD, LIMITS, [Look(spoiled, "0"), Look(good, "0")]) == ["repaired", "repaired"]
    assert await bus.commands.call("ZRANGE", SHARD.expiry, 0, -1) == [good.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.expiry, SHARD.leases, SHARD.later, *tasks.ORDER])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    id = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], id)
    await assert_refused_whole(bus, key, lambda: repair(bus, SHARD, LIMITS, [Look(id, "0")]))
