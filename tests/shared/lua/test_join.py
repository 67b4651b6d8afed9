import pytest

from shared.bus.client import Bus
from shared.bus.streams import join
from shared.keys import reader_group
from tests.support import tasks
from tests.support.redis import assert_refused_whole
from tests.support.server import starving
from tests.support.tasks import SHARD

BUS, OTHER, GROUP = SHARD.bus(0), SHARD.bus(1), reader_group("r1")
LEASE_MS = 5000


async def joined(bus: Bus, processed: bytes = b"") -> bytes:
    (place,) = await join(bus, SHARD.readers, [BUS], GROUP, LEASE_MS, [processed])
    return place


async def write(bus: Bus, id: str = "*", stream: str = BUS) -> bytes:
    return bytes(await bus.commands.call("XADD", stream, id, "t", "x"))


async def read(bus: Bus) -> list[bytes]:
    reply = await bus.commands.call("XREADGROUP", "GROUP", GROUP, "reader", "NOACK", "STREAMS", BUS, ">")
    return [entry for entry, _ in reply[0][1]] if reply else []


async def test_new_reader_begins_at_the_end(bus: Bus) -> None:
    last = await write(bus)
    assert await joined(bus) == last
    after = await write(bus)
    assert await read(bus) == [after]


async def test_reader_of_a_stream_that_is_not_there_gets_all_of_it(bus: Bus) -> None:
    assert await joined(bus) == b"0-0"
    first = await write(bus)
    assert await read(bus) == [first]


async def test_reader_is_set_back_to_what_it_has_processed(bus: Bus) -> None:
    seen = await write(bus)
    await joined(bus)
    lost = await write(bus)
    assert await read(bus) == [lost]
    assert await joined(bus, seen) == seen
    assert await read(bus) == [lost]


@pytest.mark.parametrize("processed", [b"2000-7", b"1000-8", b"1000-10"])
async def test_reader_that_has_seen_more_than_there_is_goes_on_at_the_end(bus: Bus, processed: bytes) -> None:
    """A failover has lost the newest entries. A clock behind the old one gives ids below what was seen."""
    await write(bus, "1000-7")
    assert await joined(bus, processed) == b"1000-7"
    written = await write(bus, "1000-8")
    assert await read(bus) == [written]


async def test_reader_goes_on_after_the_stream_was_lost(bus: Bus) -> None:
    assert await joined(bus, b"9999999999999-0") == b"0-0"
    written = await write(bus)
    assert await read(bus) == [written]


async def test_numbers_within_an_id_are_compared_as_numbers(bus: Bus) -> None:
    await write(bus, "1000-10")
    assert await joined(bus, b"1000-9") == b"1000-9"
    assert await joined(bus, b"999-11") == b"999-11"


async def test_each_stream_has_a_place_of_its_own(bus: Bus) -> None:
    last, other = await write(bus), await write(bus, stream=OTHER)
    places = await join(bus, SHARD.readers, [BUS, OTHER], GROUP, LEASE_MS, [b"", b"1-1"])
    assert places == [last, b"1-1"]
    assert other != b"1-1"


async def test_reader_is_leased_by_the_clock_of_redis_and_renewed_without_moving_its_groups(bus: Bus) -> None:
    place = await joined(bus)
    await bus.commands.call("ZADD", SHARD.readers, 1, GROUP)
    await write(bus)
    assert await join(bus, SHARD.readers, [], GROUP, LEASE_MS, []) == []
    end_ms = float(await bus.commands.call("ZSCORE", SHARD.readers, GROUP))
    seconds, microseconds = map(int, await bus.commands.call("TIME"))
    assert 0 <= seconds * 1000 + microseconds / 1000 - (end_ms - LEASE_MS) < 1000
    ((_, _, _, _, _, _, _, stands, *_),) = await tasks.groups(bus, BUS)
    assert stands == place


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        await joined(bus)
        await joined(bus)
        await join(bus, SHARD.readers, [], GROUP, LEASE_MS, [])


@pytest.mark.parametrize("key", [SHARD.readers, BUS, OTHER])
async def test_wrong_type_is_told_and_nothing_is_written(bus: Bus, key: str) -> None:
    await assert_refused_whole(bus, key, lambda: join(bus, SHARD.readers, [BUS, OTHER], GROUP, LEASE_MS, [b"", b""]))
