"""beat.lua: a worker registers, stays alive, and learns which tasks it must stop, and why."""

import pytest
from msgspec.structs import replace

from services.inference.scripts import beat
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.keys import WORKERS
from tests.support import tasks
from tests.support.redis import assert_refused_whole, spoil
from tests.support.tasks import SHARD


async def announced(bus: Bus, worker: str) -> list[str]:
    """Age of the beat (ms), slots, announcement."""
    said = (await bus.commands.call("HGET", SHARD.workers, worker)).decode()
    beat_ms, slots, _, _, announcement = said.split(" ", 4)
    seconds, micros = await bus.commands.call("TIME")
    return [str(int(seconds) * 1000 + int(micros) // 1000 - int(beat_ms)), slots, announcement]


async def lease_left_ms(bus: Bus, id: str) -> float:
    seconds, micros = await bus.commands.call("TIME")
    return float(await bus.commands.call("ZSCORE", SHARD.leases, id)) - int(seconds) * 1000 - int(micros) // 1000


async def test_first_beat_registers_the_worker_with_its_stream_and_wakes_the_scheduler(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=3)
    age_ms, slots, announcement = await announced(bus, owner.worker)
    assert int(age_ms) < tasks.LIMITS.lease_ms
    assert (slots, announcement) == ("3", "{}")
    assert [group[1] for group in await tasks.groups(bus, SHARD.work(owner.worker))] == [WORKERS.encode()]
    assert await tasks.wakes(bus) == [b"slots"]


async def test_repeat_wakes_nobody_but_other_slots_do(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=3)
    await beat(bus, owner, tasks.room(3), b'{"running":1}', [])
    assert await tasks.wakes(bus) == [b"slots"]
    assert (await announced(bus, owner.worker))[2] == '{"running":1}'
    await beat(bus, owner, tasks.room(4), b"{}", [])
    assert await tasks.wakes(bus) == [b"slots", b"slots"]


async def test_lease_of_a_held_task_is_renewed(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    assert await beat(bus, owner, tasks.room(4), b"{}", [(hand.id, hand.epoch)]) == {}
    assert 0 < await lease_left_ms(bus, hand.id) <= tasks.LIMITS.lease_ms


async def test_rivals_of_other_nonce_or_epoch_renew_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    rival = replace(owner, nonce="other")
    assert await beat(bus, rival, tasks.room(4), b"{}", [(hand.id, hand.epoch)]) == {hand.id: "fenced"}
    assert await beat(bus, owner, tasks.room(4), b"{}", [(hand.id, hand.epoch + 1)]) == {hand.id: "fenced"}
    assert await bus.commands.call("ZSCORE", SHARD.leases, hand.id) == b"1"


async def test_tasks_that_ended_or_are_unknown_are_answered_as_fenced(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    done, busy, unknown = await tasks.ended(bus, owner), await tasks.running(bus, owner), tasks.new_id()
    asked = [(done.id, done.epoch), (busy.id, busy.epoch), (unknown, 1)]
    assert await beat(bus, owner, tasks.room(4), b"{}", asked) == {done.id: "fenced", unknown: "fenced"}


async def test_many_tasks_go_in_pages(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    ids = [tasks.new_id() for _ in range(MAX_ITEMS)]
    asked = [*((id, 1) for id in ids), (hand.id, hand.epoch)]
    assert await beat(bus, owner, tasks.room(4), b"{}", asked) == dict.fromkeys(ids, "fenced")


@pytest.mark.parametrize("word", ["cancelled", "expired"])
async def test_task_that_was_asked_to_stop_is_told_why_and_held_until_its_worker_ends_it(bus: Bus, word: str) -> None:
    owner = await tasks.worker(bus)
    stopped, other = [await tasks.running(bus, owner) for _ in range(2)]
    await bus.commands.call("HSET", SHARD.task(stopped.id), "stop", word)
    await bus.commands.call("ZADD", SHARD.leases, 1, stopped.id)
    held = [(stopped.id, stopped.epoch), (other.id, other.epoch)]
    for _ in range(2):  # until it has ended, every beat says so: the first answer may be lost
        assert await beat(bus, owner, tasks.room(4), b"{}", held) == {stopped.id: word}
    assert await lease_left_ms(bus, stopped.id) > 0


async def test_stop_is_not_told_to_a_worker_that_has_lost_the_task(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("HSET", SHARD.task(hand.id), "stop", "cancelled")
    rival = replace(owner, nonce="other")
    assert await beat(bus, rival, tasks.room(4), b"{}", [(hand.id, hand.epoch)]) == {hand.id: "fenced"}


async def test_lease_is_as_long_as_configured(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    brief = replace(owner, limits=replace(tasks.LIMITS, lease_s=1.0))
    await beat(bus, brief, tasks.room(4), b"{}", [(hand.id, hand.epoch)])
    assert await lease_left_ms(bus, hand.id) <= 1000


async def test_worker_that_was_reaped_registers_again_with_an_empty_stream(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await bus.commands.call("HSET", SHARD.workers, owner.worker, "1 4 {}")
    assert (await reap(bus, SHARD, tasks.LIMITS)).workers == 1
    await beat(bus, owner, tasks.room(4), b"{}", [])
    await tasks.admitted(bus)
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    assert len(await tasks.hands(bus, owner)) == 1


@pytest.mark.parametrize("key", [SHARD.workers, SHARD.leases, SHARD.work("w1"), SHARD.arrivals])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await assert_refused_whole(bus, key, lambda: beat(bus, owner, tasks.room(5), b"{}", [(hand.id, hand.epoch)]))


async def test_spoiled_task_is_fenced_and_the_leases_of_the_others_are_renewed(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.running(bus, owner) for _ in range(2)]
    await bus.commands.call("ZADD", SHARD.leases, 1, good.id)
    await spoil(bus, SHARD.task(spoiled.id))
    held = [(spoiled.id, spoiled.epoch), (good.id, good.epoch)]
    assert await beat(bus, owner, tasks.room(4), b"{}", held) == {spoiled.id: "fenced"}
    assert await lease_left_ms(bus, good.id) > 0
