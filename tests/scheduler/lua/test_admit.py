"""admit.lua: from `in` into the waiting order, exactly once."""

import pytest

from services.scheduler.scripts import Arrival, Dispatched, admit, dispatch, due, reap
from shared.bus.client import Bus
from shared.keys import SCHEDULER
from shared.lifecycle import Lane
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD


@pytest.mark.parametrize("lane", list(Lane))
async def test_new_task_is_queued_in_its_lane_by_its_time(bus: Bus, lane: Lane) -> None:
    id = await tasks.submitted(bus, lane=lane)
    assert await tasks.admit_all(bus) == ["queued"]
    created_at_ms = (await tasks.fields(bus, id))["created_at_ms"]
    backlog = tasks.BACKLOGS[lane.priority]
    assert await bus.commands.call("ZRANGE", backlog, 0, -1, "WITHSCORES") == [id.encode(), created_at_ms.encode()]


async def test_arrival_is_cleared_and_nothing_stays_pending(bus: Bus) -> None:
    await tasks.admitted(bus)
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0
    assert (await bus.commands.call("XPENDING", SHARD.arrivals, SCHEDULER))[0] == 0


async def test_repeat_answers_the_same_and_writes_nothing(bus: Bus) -> None:
    await tasks.submitted(bus)
    page = await tasks.arrivals(bus)
    assert await admit(bus, SHARD, tasks.LIMITS, page) == ["queued"]
    before = await snapshot(bus)
    assert await admit(bus, SHARD, tasks.LIMITS, page) == ["queued"]
    assert await snapshot(bus) == before


async def test_every_kind_of_arrival_has_its_verdict(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.admit_all(bus)
    given, done = await tasks.handed(bus, owner), await tasks.ended(bus, owner)
    busy = await tasks.running(bus, owner)
    ids = [given.id, done.id, busy.id, tasks.new_id(), ""]
    page = [Arrival(id, f"1-{n}".encode()) for n, id in enumerate(ids, 1)]
    assert await admit(bus, SHARD, tasks.LIMITS, page) == ["handed out", "completed", "processing", "missing", "wake"]
    assert [await bus.commands.call("ZCARD", key) for key in tasks.BACKLOGS] == [0, 0, 0]


async def test_late_repeat_does_not_queue_what_was_handed_out_meanwhile(bus: Bus) -> None:
    await tasks.worker(bus)
    await tasks.submitted(bus)
    page = [arrival for arrival in await tasks.arrivals(bus) if arrival.id]
    await admit(bus, SHARD, tasks.LIMITS, page)
    await dispatch(bus, SHARD, tasks.CONFIG)
    assert await admit(bus, SHARD, tasks.LIMITS, page) == ["handed out"]
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 0, 3)


async def test_late_repeat_does_not_move_a_task_that_was_taken_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, tasks.LIMITS)
    before = await bus.commands.call("ZRANGE", tasks.BACKLOGS[1], 0, -1, "WITHSCORES")
    assert await admit(bus, SHARD, tasks.LIMITS, [Arrival(hand.id, b"1-1")]) == ["queued"]
    assert await bus.commands.call("ZRANGE", tasks.BACKLOGS[1], 0, -1, "WITHSCORES") == before


@pytest.mark.keeps_keys
async def test_spoiled_task_is_named_cleared_and_stops_nobody(bus: Bus) -> None:
    ids = [await tasks.submitted(bus) for _ in range(3)]
    await spoil(bus, SHARD.task(ids[1]))
    assert await tasks.admit_all(bus) == ["queued", f"wrongtype {SHARD.task(ids[1])}", "queued"]
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0


@pytest.mark.keeps_keys
async def test_task_whose_backlog_holds_another_type_is_named_and_put_off(bus: Bus) -> None:
    """Left in `in`, its entry kept finish from waking the scheduler for as long as it lay there."""
    id = await tasks.submitted(bus)
    await spoil(bus, tasks.BACKLOGS[1])
    assert await tasks.admit_all(bus) == [f"wrongtype {tasks.BACKLOGS[1]}"]
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0
    await bus.commands.call("DEL", tasks.BACKLOGS[1])
    await bus.commands.call("ZADD", SHARD.later, 1, id)
    assert (await due(bus, SHARD, tasks.LIMITS)).back == 1
    assert await tasks.admit_all(bus) == ["queued"]


@pytest.mark.keeps_keys
async def test_wrong_type_of_in_is_named_and_nothing_is_written(bus: Bus) -> None:
    id = await tasks.submitted(bus)
    await assert_refused_whole(bus, SHARD.arrivals, lambda: admit(bus, SHARD, tasks.LIMITS, [Arrival(id, b"1-1")]))
