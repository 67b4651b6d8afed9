"""batch_feed.lua: items are open before the file is read on, and each is fed once."""

import pytest

from services.scheduler.batches.scripts import Opened, feed
from shared import keys
from shared.batches import Batches, Fence, make
from shared.bus.client import Bus
from tests.scheduler.lua.test_batch_lease import held
from tests.shared.lua.test_batch_make import ASKED, ID
from tests.support.redis import assert_refused_whole, snapshot

ITEMS = [Opened(0, b"a"), Opened(1, b"b")]


@pytest.fixture
async def fence(bus: Bus) -> Fence:
    await make(bus, ID, ASKED, 0)
    return await held(bus)


async def opened(bus: Bus) -> dict[bytes, bytes]:
    flat = await bus.commands.call("HGETALL", keys.batch(ID, "open"))
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def test_items_are_open_and_the_offset_is_behind_them(bus: Bus, fence: Fence) -> None:
    assert await feed(bus, ID, fence, 0, 40, 3, ITEMS) == "ok"
    batch = await Batches(bus, 1).read(ID)
    assert (batch.offset, batch.lines, batch.fed) == (40, 3, 2)
    assert await opened(bus) == {b"0": b"a", b"1": b"b"}


async def test_a_repeat_is_the_same_and_what_does_not_join_is_refused(bus: Bus, fence: Fence) -> None:
    await feed(bus, ID, fence, 0, 40, 3, ITEMS)
    before = await snapshot(bus)
    assert await feed(bus, ID, fence, 0, 40, 3, ITEMS) == "ok"
    assert await feed(bus, ID, fence, 0, 30, 2, ITEMS[:1]) == "gap 40"
    assert await feed(bus, ID, fence, 50, 60, 4, ITEMS[:1]) == "gap 40"
    assert await snapshot(bus) == before


async def test_item_that_is_fed_once_more_counts_once(bus: Bus, fence: Fence) -> None:
    await feed(bus, ID, fence, 0, 40, 3, ITEMS)
    assert await feed(bus, ID, fence, 40, 40, 3, [Opened(1, b"c")]) == "ok"
    assert await opened(bus) == {b"0": b"a", b"1": b"c"}
    assert (await Batches(bus, 1).read(ID)).fed == 2


async def test_who_lost_the_lease_writes_nothing(bus: Bus, fence: Fence) -> None:
    before = await snapshot(bus)
    for wrong in (Fence(fence.epoch + 1, fence.nonce), Fence(fence.epoch, "n2")):
        assert await feed(bus, ID, wrong, 0, 40, 3, ITEMS) == "fenced"
    assert await snapshot(bus) == before


@pytest.mark.parametrize("what", ["state", "open"])
async def test_key_of_another_type_is_told(bus: Bus, fence: Fence, what: str) -> None:
    await assert_refused_whole(bus, keys.batch(ID, what), lambda: feed(bus, ID, fence, 0, 40, 3, ITEMS))
