import pytest

from shared.bus.client import Bus
from shared.bus.streams import ensure_group
from shared.errors import WrongKeyType
from tests.support import tasks
from tests.support.redis import assert_refused_whole, spoil
from tests.support.server import starving

STREAM, GROUP = "hr:requests", "front"


async def read(bus: Bus) -> list[bytes]:
    reply = await bus.commands.call("XREADGROUP", "GROUP", GROUP, "c", "STREAMS", STREAM, ">")
    return [entry for entry, _ in reply[0][1]] if reply else []


async def test_group_is_given_what_was_written_before_it_stood(bus: Bus) -> None:
    before = await bus.commands.call("XADD", STREAM, "*", "n", 1)
    await ensure_group(bus, STREAM, GROUP)
    assert await read(bus) == [before]


async def test_stream_is_made_with_its_group(bus: Bus) -> None:
    await ensure_group(bus, STREAM, GROUP)
    after = await bus.commands.call("XADD", STREAM, "*", "n", 1)
    assert await read(bus) == [after]


async def test_group_that_stands_is_left_where_it_is(bus: Bus) -> None:
    await bus.commands.call("XADD", STREAM, "*", "n", 1)
    await ensure_group(bus, STREAM, GROUP)
    assert len(await read(bus)) == 1
    await ensure_group(bus, STREAM, GROUP)
    assert await read(bus) == []


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        await ensure_group(bus, STREAM, GROUP)
        await ensure_group(bus, STREAM, GROUP)
    assert len(await tasks.groups(bus, STREAM)) == 1


async def test_wrong_type_is_told_and_nothing_is_written(bus: Bus) -> None:
    await assert_refused_whole(bus, STREAM, lambda: ensure_group(bus, STREAM, GROUP))
    await spoil(bus, STREAM)
    with pytest.raises(WrongKeyType):
        await ensure_group(bus, STREAM, GROUP)
