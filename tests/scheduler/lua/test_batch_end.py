"""batch_end.lua: an item ends once, together with its count and the segment that has its line."""

import asyncio

import pytest
from msgspec.structs import replace

from services.scheduler.batches.scripts import Ended, Opened, Segment, end, feed
from shared import keys
from shared.batches import Batches, End, Fence, make
from shared.bus.client import Bus
from tests.scheduler.lua.test_batch_lease import held
from tests.shared.lua.test_batch_make import ASKED, ID
from tests.support.redis import assert_refused_whole, snapshot

SEGMENT = Segment("1-a", 70, 30, 2, 1, 12, 34, b'{"smol.0.0.0.1":5}')
ITEMS = [Ended(0, End.COMPLETED), Ended(1, End.FAILED), Ended(3, End.COMPLETED)]


@pytest.fixture
async def fence(bus: Bus) -> Fence:
    await make(bus, ID, ASKED, 0)
    fence = await held(bus)
    await feed(bus, ID, fence, 0, 40, 4, [Opened(number, b"x") for number in range(5)])
    return fence


async def test_items_end_with_their_counts_and_their_segment(bus: Bus, fence: Fence) -> None:
    assert await end(bus, ID, fence, SEGMENT, ITEMS) == "ok"
    batch = await Batches(bus, 1).read(ID)
    assert (batch.ended[End.COMPLETED], batch.ended[End.FAILED], batch.fed) == (2, 1, 5)
    assert (batch.output_lines, batch.error_lines, batch.tokens_in, batch.tokens_out) == (2, 1, 12, 34)
    assert await bus.commands.call("HKEYS", keys.batch(ID, "open")) == [b"2", b"4"]
    assert await bus.commands.call("LRANGE", keys.batch(ID, "unfiled"), 0, -1) == [b"output 1-a 70", b"errors 1-a 30"]
    assert await bus.commands.call("BITCOUNT", keys.batch(ID, "ended")) == 3
    assert await bus.commands.call("HGET", keys.batch(ID, "state"), "leaving") == SEGMENT.tasks


async def test_segment_without_errors_names_none(bus: Bus, fence: Fence) -> None:
    await end(bus, ID, fence, replace(SEGMENT, error_bytes=0, error_lines=0), ITEMS[:1])
    assert await bus.commands.call("LRANGE", keys.batch(ID, "unfiled"), 0, -1) == [b"output 1-a 70"]


async def test_a_repeat_is_the_same_and_another_end_of_an_item_is_refused(bus: Bus, fence: Fence) -> None:
    await end(bus, ID, fence, SEGMENT, ITEMS)
    before = await snapshot(bus)
    assert await end(bus, ID, fence, SEGMENT, ITEMS) == "ok"
    other = replace(SEGMENT, name="1-b")
    assert await end(bus, ID, fence, other, [Ended(2, End.COMPLETED), Ended(1, End.EXPIRED)]) == "twice 1"
    assert await snapshot(bus) == before


async def test_two_segments_with_the_same_item_at_once_are_one(bus: Bus, fence: Fence) -> None:
    names = [replace(SEGMENT, name=f"1-{n}") for n in range(5)]
    said = await asyncio.gather(*(end(bus, ID, fence, name, ITEMS) for name in names))
    assert sorted(said) == ["ok", *["twice 0"] * 4]
    assert (await Batches(bus, 1).read(ID)).ended[End.COMPLETED] == 2


async def test_who_lost_the_lease_writes_nothing(bus: Bus, fence: Fence) -> None:
    before = await snapshot(bus)
    for wrong in (Fence(fence.epoch + 1, fence.nonce), Fence(fence.epoch, "n2")):
        assert await end(bus, ID, wrong, SEGMENT, ITEMS) == "fenced"
    assert await snapshot(bus) == before


@pytest.mark.parametrize("what", ["state", "open", "unfiled"])
async def test_key_of_another_type_is_told(bus: Bus, fence: Fence, what: str) -> None:
    await assert_refused_whole(bus, keys.batch(ID, what), lambda: end(bus, ID, fence, SEGMENT, ITEMS))


async def test_bitmap_of_another_type_is_told(bus: Bus, fence: Fence) -> None:
    key = keys.batch(ID, "ended")
    await bus.commands.call("RPUSH", key, "not ours")
    before = await snapshot(bus)
    with pytest.raises(Exception, match="not Headrace's"):
        await end(bus, ID, fence, SEGMENT, ITEMS)
    assert await snapshot(bus) == before
