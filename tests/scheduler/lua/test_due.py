"""due.lua: what time itself does to tasks that wait or run."""

import asyncio

import pytest

from services.inference.scripts import beat
from services.scheduler.scripts import Due, due
from shared.bus.client import Bus
from shared.messages import Finished, decode_event
from shared.submit import submit
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import CONFIG, LIMITS, SHARD

NOTHING = Due(0, 0, 0, 0)


async def lapse(bus: Bus, index: str, id: str) -> None:
    assert await bus.commands.call("ZADD", index, "CH", 1, id) == 1


async def attached(bus: Bus) -> str:
    """A waiting task whose client must stay."""
    made = tasks.item(attached=True)
    assert list(await submit(bus, SHARD, CONFIG, [made])) == ["new"]
    await tasks.admit_all(bus)
    return made.id


async def later(bus: Bus) -> str:
    """A retry whose time has not come."""
    id = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], id)
    await bus.commands.call("ZADD", SHARD.later, 10**15, id)
    return id


async def test_nothing_due_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.running(bus, owner)
    await attached(bus)
    await later(bus)
    before = await snapshot(bus)
    assert await due(bus, SHARD, LIMITS) == NOTHING
    assert await snapshot(bus) == before


async def test_waiting_task_past_its_deadline_expires(bus: Bus) -> None:
    id = await tasks.admitted(bus, reply_to="orders")
    await lapse(bus, SHARD.expiry, id)
    assert await due(bus, SHARD, LIMITS) == Due(1, 0, 0, 0)
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["status"]) == ("expired", "504")
    finished = decode_event(hash["finished"].encode())
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert finished.error.code == "task_expired"
    assert await bus.commands.call("EXISTS", *tasks.BACKLOGS, SHARD.expiry) == 0
    assert len(await tasks.entries(bus, SHARD.outbox)) == 1


async def test_deadline_is_the_one_that_submit_was_given(bus: Bus) -> None:
    made = tasks.item(expires_in_s=0)
    await submit(bus, SHARD, CONFIG, [made])
    assert await due(bus, SHARD, LIMITS) == Due(1, 0, 0, 0)


async def test_task_whose_client_has_gone_is_cancelled(bus: Bus) -> None:
    id = await attached(bus)
    await lapse(bus, SHARD.attached, id)
    assert await due(bus, SHARD, LIMITS) == Due(0, 1, 0, 0)
    assert (await tasks.fields(bus, id))["state"] == "cancelled"
    assert await bus.commands.call("EXISTS", SHARD.attached) == 0


async def test_worker_of_a_running_task_is_told_to_stop(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    expiring, left = [await tasks.running(bus, owner) for _ in range(2)]
    await lapse(bus, SHARD.expiry, expiring.id)
    await lapse(bus, SHARD.attached, left.id)
    assert await due(bus, SHARD, LIMITS) == Due(0, 0, 2, 0)
    held = [(hand.id, hand.epoch) for hand in (expiring, left)]
    assert await beat(bus, owner, tasks.room(4), b"{}", held) == {expiring.id: "expired", left.id: "cancelled"}
    assert (await tasks.fields(bus, expiring.id))["state"] == "processing"


async def test_running_task_is_looked_at_again_in_a_while_and_told_once(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lapse(bus, SHARD.expiry, hand.id)
    await due(bus, SHARD, LIMITS)
    assert await due(bus, SHARD, LIMITS) == NOTHING
    await lapse(bus, SHARD.expiry, hand.id)
    assert await due(bus, SHARD, LIMITS) == Due(0, 0, 1, 0)
    told = [fields for _, fields in await tasks.entries(bus, SHARD.work(owner.worker)) if b"stop" in fields]
    assert len(told) == 1


async def test_what_was_asked_first_is_how_it_ends(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    for index in (SHARD.attached, SHARD.expiry):
        await lapse(bus, index, hand.id)
        await due(bus, SHARD, LIMITS)
    assert (await tasks.fields(bus, hand.id))["stop"] == "cancelled"


async def test_retry_that_is_due_arrives_again_and_waits_at_its_old_place(bus: Bus) -> None:
    id = await later(bus)
    await lapse(bus, SHARD.later, id)
    assert await due(bus, SHARD, LIMITS) == Due(0, 0, 0, 1)
    assert await tasks.admit_all(bus) == ["queued"]
    score = await bus.commands.call("ZSCORE", tasks.BACKLOGS[1], id)
    assert score.decode() == (await tasks.fields(bus, id))["created_at_ms"]
    assert await bus.commands.call("EXISTS", SHARD.later) == 0


async def test_retry_that_expires_at_the_same_time_only_expires(bus: Bus) -> None:
    id = await later(bus)
    await lapse(bus, SHARD.later, id)
    await lapse(bus, SHARD.expiry, id)
    assert await due(bus, SHARD, LIMITS) == Due(1, 0, 0, 0)
    assert await bus.commands.call("EXISTS", SHARD.later, *tasks.BACKLOGS) == 0


async def test_tasks_that_have_ended_or_gone_are_only_forgotten(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    for index in (SHARD.expiry, SHARD.attached, SHARD.later):
        for id in (hand.id, tasks.new_id()):
            await lapse(bus, index, id)
    before = await tasks.fields(bus, hand.id)
    assert await due(bus, SHARD, LIMITS) == NOTHING
    assert await tasks.fields(bus, hand.id) == before
    assert await bus.commands.call("EXISTS", SHARD.expiry, SHARD.attached, SHARD.later, *tasks.BACKLOGS) == 0


async def test_rivals_end_a_task_once(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    await lapse(bus, SHARD.expiry, id)
    answers = await asyncio.gather(due(bus, SHARD, LIMITS), due(bus, SHARD, LIMITS))
    assert sorted(answer.expired for answer in answers) == [0, 1]
    assert len(await tasks.entries(bus, SHARD.log(id))) == 1


async def test_a_call_is_bounded_and_the_next_one_goes_on(bus: Bus) -> None:
    for _ in range(3):
        await lapse(bus, SHARD.expiry, await tasks.admitted(bus))
    assert [(await due(bus, SHARD, LIMITS, most=2)).expired for _ in range(3)] == [2, 1, 0]


@pytest.mark.keeps_keys
async def test_task_with_a_spoiled_log_waits_and_the_others_end(bus: Bus) -> None:
    spoiled, good = [await tasks.admitted(bus) for _ in range(2)]
    await spoil(bus, SHARD.log(spoiled))
    for id in (spoiled, good):
        await lapse(bus, SHARD.expiry, id)
    assert (await due(bus, SHARD, LIMITS)).expired == 1
    assert [(await tasks.fields(bus, id))["state"] for id in (spoiled, good)] == ["pending", "expired"]
    assert await due(bus, SHARD, LIMITS) == NOTHING
    await bus.commands.call("DEL", SHARD.log(spoiled))
    await lapse(bus, SHARD.expiry, spoiled)
    assert (await due(bus, SHARD, LIMITS)).expired == 1


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.expiry, SHARD.attached, SHARD.later, SHARD.leases, SHARD.arrivals, *tasks.ORDER])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await lapse(bus, SHARD.expiry, await tasks.admitted(bus))
    await lapse(bus, SHARD.later, await later(bus))
    await assert_refused_whole(bus, key, lambda: due(bus, SHARD, LIMITS))


async def test_waiters_that_nobody_could_hear_are_left_alone(bus: Bus) -> None:
    id = await attached(bus)
    await lapse(bus, SHARD.attached, id)
    assert await due(bus, SHARD, LIMITS, waiters=False) == NOTHING
    assert await due(bus, SHARD, LIMITS) == Due(0, 1, 0, 0)
