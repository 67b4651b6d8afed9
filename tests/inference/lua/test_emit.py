"""emit.lua: chunk numbers are dense, and only the holder of the fence writes."""

import pytest
from msgspec.structs import replace

from services.inference.scripts import emit
from shared.bus.client import Bus
from shared.messages import Chunks, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD, emission, emit_one


async def test_range_goes_to_bus_and_log_under_one_entry_id(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, session="s1")
    assert await emit_one(bus, owner, emission(hand, 1, 3)) == "ok"
    *_, (live_id, news) = await tasks.entries(bus, SHARD.bus(0))
    ((kept_id, event),) = await tasks.entries(bus, SHARD.log(hand.id))
    assert live_id == kept_id
    assert (news[b"t"], news[b"s"], news[b"e"]) == (hand.id.encode(), b"s1", event[b"e"])
    assert isinstance(decode_event(event[b"e"]), Chunks)
    assert (await tasks.fields(bus, hand.id))["last"] == "3"


async def test_journal_rides_in_the_log_only(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 1, journal=b"[1,2]"))
    *_, (_, news) = await tasks.entries(bus, SHARD.bus(0))
    ((_, event),) = await tasks.entries(bus, SHARD.log(hand.id))
    assert event[b"j"] == b"[1,2]"
    assert b"j" not in news


async def test_time_of_the_first_token_is_written_once(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 1))
    await bus.commands.call("HSET", SHARD.task(hand.id), "first_token_at_ms", 7)
    await emit_one(bus, owner, emission(hand, 2, 2))
    assert (await tasks.fields(bus, hand.id))["first_token_at_ms"] == "7"


async def test_repeat_is_ok_and_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 2))
    before = await snapshot(bus)
    assert await emit_one(bus, owner, emission(hand, 1, 2)) == "ok"
    assert await emit_one(bus, owner, emission(hand, 1, 1)) == "ok"
    assert await snapshot(bus) == before


@pytest.mark.parametrize(("first", "last"), [(4, 5), (2, 3), (1, 3)])
async def test_range_that_does_not_join_is_refused_with_what_was_written(bus: Bus, first: int, last: int) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 2))
    before = await snapshot(bus)
    assert await emit_one(bus, owner, emission(hand, first, last)) == "gap 2"
    assert await snapshot(bus) == before
    assert await emit_one(bus, owner, emission(hand, 3, 3)) == "ok"


async def test_rivals_of_other_nonce_or_epoch_are_fenced_and_write_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    before = await snapshot(bus)
    assert await emit_one(bus, replace(owner, nonce="other"), emission(hand, 1, 1)) == "fenced"
    for epoch in (hand.epoch - 1, hand.epoch + 1):
        assert await emit_one(bus, owner, emission(replace(hand, epoch=epoch), 1, 1)) == "fenced"
    assert await snapshot(bus) == before


async def test_tasks_that_are_not_running_are_fenced(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    unstarted, done = await tasks.handed(bus, owner), await tasks.ended(bus, owner)
    unknown = replace(done, id=tasks.new_id())
    page = [emission(hand, 1, 1) for hand in (unstarted, done, unknown)]
    assert await emit(bus, owner, page) == ["fenced", "fenced", "fenced"]
    assert await bus.commands.call("EXISTS", SHARD.log(unknown.id), SHARD.log(unstarted.id)) == 0


async def test_verdicts_of_one_call_are_independent_and_in_order(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    one, two, three = [await tasks.running(bus, owner) for _ in range(3)]
    page = [emission(one, 1, 1), emission(two, 2, 2), emission(replace(three, epoch=9), 1, 1), emission(one, 2, 3)]
    assert await emit(bus, owner, page) == ["ok", "gap 0", "fenced", "ok"]
    assert (await tasks.fields(bus, one.id))["last"] == "3"


@pytest.mark.keeps_keys
@pytest.mark.parametrize("kind", ["task", "log", "bus"])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, kind: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    key = {"task": SHARD.task(hand.id), "log": SHARD.log(hand.id), "bus": SHARD.bus(0)}[kind]
    await assert_refused_whole(bus, key, lambda: emit(bus, owner, [emission(hand, 1, 1)]))


@pytest.mark.keeps_keys
async def test_spoiled_log_does_not_disturb_the_neighbours(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.running(bus, owner) for _ in range(2)]
    await spoil(bus, SHARD.log(spoiled.id))
    page = [emission(spoiled, 1, 1), emission(good, 1, 1)]
    assert await emit(bus, owner, page) == [f"wrongtype {SHARD.log(spoiled.id)}", "ok"]
