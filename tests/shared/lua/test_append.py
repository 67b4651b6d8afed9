import pytest

from shared.bus.client import Bus
from shared.bus.streams import MOST_FIELDS, append
from shared.errors import MemoryFull, WrongKeyType
from tests.support import tasks
from tests.support.redis import spoil
from tests.support.server import starving

STREAM = "hr:reply:orders"


async def test_entry_is_added_with_its_fields_in_their_order(bus: Bus) -> None:
    id = await append(bus, STREAM, {"b": "1", b"\xff": b"\x00", "a": 2})
    assert await bus.commands.call("XRANGE", STREAM, "-", "+") == [[id, [b"b", b"1", b"\xff", b"\x00", b"a", b"2"]]]


async def test_stream_is_kept_short_when_asked(bus: Bus) -> None:
    for n in range(500):
        await append(bus, STREAM, {"n": n}, most_kept=100)
    length = await bus.commands.call("XLEN", STREAM)
    assert 100 <= length < 300  # Redis trims whole nodes of 100 entries
    last = (await tasks.entries(bus, STREAM))[-1]
    assert last[1] == {b"n": b"499"}


async def test_stream_is_never_trimmed_otherwise(bus: Bus) -> None:
    for n in range(300):
        await append(bus, STREAM, {"n": n})
    assert await bus.commands.call("XLEN", STREAM) == 300


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        with pytest.raises(MemoryFull):
            await bus.commands.call("XADD", STREAM, "*", "n", 1)
        await append(bus, STREAM, {"n": 2})
    assert [fields for _, fields in await tasks.entries(bus, STREAM)] == [{b"n": b"2"}]


async def test_wrong_type_is_told(bus: Bus) -> None:
    await spoil(bus, STREAM)
    with pytest.raises(WrongKeyType):
        await append(bus, STREAM, {"n": 1})


async def test_more_fields_than_lua_can_pass_on_are_cut_off(bus: Bus) -> None:
    """A hostile entry of the door is copied into a dead letter: it must not come again for ever."""
    await append(bus, STREAM, {f"f{n}": n for n in range(20_000)})
    ((_, fields),) = await tasks.entries(bus, STREAM)
    assert len(fields) == MOST_FIELDS
