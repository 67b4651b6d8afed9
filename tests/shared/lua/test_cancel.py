"""cancel.lua: a waiting task ends at once, a running one is ended by its worker, an unknown one never begins."""

import asyncio

import pytest

from services.inference.scripts import beat, start
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.messages import Finished, decode_event
from shared.submit import submit
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import CONFIG, LIMITS, SHARD


async def cancel_one(bus: Bus, id: str) -> str:
    (verdict,) = await cancel(bus, SHARD, LIMITS, [id])
    return verdict


async def test_waiting_task_ends_with_event_reply_and_expiry(bus: Bus) -> None:
    id = await tasks.admitted(bus, reply_to="orders")
    assert await cancel_one(bus, id) == "cancelled"
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["status"]) == ("cancelled", "499")
    ((entry, fields),) = await tasks.entries(bus, SHARD.log(id))
    finished = decode_event(fields[b"e"])
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert (finished.state, finished.last, finished.error.code) == ("cancelled", 0, "task_cancelled")
    assert (await tasks.entries(bus, SHARD.bus(0)))[-1][0] == entry
    assert [fields[b"t"].decode() for _, fields in await tasks.entries(bus, SHARD.outbox)] == [id]
    assert 0 < await tasks.ttl_ms(bus, SHARD.task(id)) <= LIMITS.results_kept_s * 1000
    assert await bus.commands.call("EXISTS", *tasks.BACKLOGS, SHARD.expiry) == 0


async def test_task_that_has_not_been_admitted_is_passed_over_by_admit(bus: Bus) -> None:
    id = await tasks.submitted(bus)
    assert await cancel_one(bus, id) == "cancelled"
    assert await tasks.admit_all(bus) == ["cancelled"]
    assert await bus.commands.call("EXISTS", *tasks.BACKLOGS) == 0


async def test_task_that_was_handed_out_is_stale_for_its_worker(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await cancel_one(bus, hand.id) == "cancelled"
    assert await start(bus, owner, [hand]) == ["stale"]
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_retry_that_waits_for_its_time_ends(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.BACKLOGS[1], id)
    await bus.commands.call("ZADD", SHARD.later, 1, id)
    assert await cancel_one(bus, id) == "cancelled"
    assert await bus.commands.call("EXISTS", SHARD.later) == 0


async def test_worker_of_a_running_task_is_told_once_by_its_stream_and_again_by_each_beat(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await cancel_one(bus, hand.id) == "processing"
    assert await cancel_one(bus, hand.id) == "processing"
    told = [fields for _, fields in await tasks.entries(bus, SHARD.work(owner.worker)) if b"stop" in fields]
    assert told == [{b"t": hand.id.encode(), b"stop": b"cancelled"}]
    for _ in range(2):
        assert await beat(bus, owner, tasks.room(4), b"{}", [(hand.id, hand.epoch)]) == {hand.id: "cancelled"}
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"


async def test_running_task_whose_worker_is_gone_ends_cancelled_when_its_lease_is_lost(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await cancel_one(bus, hand.id)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, LIMITS)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash.get("crashes")) == ("cancelled", None)


async def test_worker_that_ends_a_cancelled_task_otherwise_was_quicker(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await cancel_one(bus, hand.id)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1)) == "ok"
    assert await cancel_one(bus, hand.id) == "completed"


async def test_task_that_has_ended_stays_as_it_ended(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    before = await snapshot(bus)
    assert await cancel_one(bus, hand.id) == "completed"
    assert await snapshot(bus) == before


async def test_unknown_task_is_noted_and_cancelled_when_it_comes(bus: Bus) -> None:
    id = tasks.new_id()
    assert [await cancel_one(bus, id), await cancel_one(bus, id)] == ["unknown", "unknown"]
    assert await tasks.ttl_ms(bus, SHARD.task(id)) > LIMITS.results_kept_s * 1000
    made = tasks.item(id, session="s", reply_to="orders")
    assert list(await submit(bus, SHARD, CONFIG, [made])) == ["cancelled"]
    hash = await tasks.fields(bus, id)
    assert (hash["state"], hash["lane"]) == ("cancelled", "normal")
    assert "tombstone" not in hash
    assert await bus.commands.call("EXISTS", SHARD.arrivals, SHARD.expiry) == 0
    assert len(await tasks.entries(bus, SHARD.outbox)) == 1
    assert list(await submit(bus, SHARD, CONFIG, [made])) == ["cancelled"]
    assert len(await tasks.entries(bus, SHARD.outbox)) == 1


async def test_second_cancel_and_a_rival_write_one_end(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    assert await asyncio.gather(*(cancel_one(bus, id) for _ in range(3))) == ["cancelled"] * 3
    assert len(await tasks.entries(bus, SHARD.log(id))) == 1


async def test_rival_dispatch_hands_out_or_finds_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    id = await tasks.admitted(bus)
    verdict, handed = await asyncio.gather(cancel_one(bus, id), dispatch(bus, SHARD, tasks.CONFIG))
    assert (verdict, handed.handed_out) == ("cancelled", 0)
    assert await tasks.hands(bus, owner) == []


async def test_verdicts_of_one_call_come_in_its_order(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    ids = [tasks.new_id(), hand.id, await tasks.admitted(bus)]
    assert list(await cancel(bus, SHARD, LIMITS, ids)) == ["unknown", "processing", "cancelled"]


@pytest.mark.keeps_keys
async def test_spoiled_task_is_named_and_the_others_are_cancelled(bus: Bus) -> None:
    spoiled, good = [await tasks.admitted(bus) for _ in range(2)]
    await spoil(bus, SHARD.task(spoiled))
    verdicts = await cancel(bus, SHARD, LIMITS, [spoiled, good])
    assert list(verdicts) == [f"wrongtype {SHARD.task(spoiled)}", "cancelled"]


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "key",
    [
        SHARD.leases,
        SHARD.expiry,
        SHARD.attached,
        SHARD.later,
        *tasks.ORDER,
        tasks.BACKLOGS[1],
        SHARD.outbox,
        SHARD.bus(0),
    ],
)
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    id = await tasks.admitted(bus, reply_to="orders")
    await assert_refused_whole(bus, key, lambda: cancel(bus, SHARD, LIMITS, [id]))


@pytest.mark.keeps_keys
async def test_log_of_another_type_is_named_and_nothing_is_written(bus: Bus) -> None:
    id = await tasks.admitted(bus)
    await assert_refused_whole(bus, SHARD.log(id), lambda: cancel(bus, SHARD, LIMITS, [id]))


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.tenant("default"), SHARD.session("s"), SHARD.bus(0), SHARD.outbox])
async def test_task_cancelled_before_it_came_is_made_whole_or_not_at_all(bus: Bus, key: str) -> None:
    """Found by reading: the types of the indexes were looked at for other tasks only."""
    id = tasks.new_id()
    await cancel_one(bus, id)
    made = tasks.item(id, session="s", reply_to="orders")
    await assert_refused_whole(bus, key, lambda: submit(bus, SHARD, CONFIG, [made]))
