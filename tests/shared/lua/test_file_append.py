"""file_append.lua: parts of a file stand in the order in which they came, each once."""

import pytest

from shared import keys
from shared.bus.client import Bus
from shared.files import Files, append, make
from tests.shared.lua.test_file_make import FIELDS, ID
from tests.support.redis import assert_refused_whole
from tests.support.server import starving

RECORD, PARTS = keys.file(ID), keys.file_parts(ID)


async def growing(bus: Bus) -> None:
    await make(bus, ID, 3600, "", {**FIELDS, "bytes": 0, "lines": 0})


async def parts(bus: Bus) -> dict[str, int]:
    flat = await bus.commands.call("ZRANGE", PARTS, 0, -1, "WITHSCORES")
    return {key.decode(): int(place) for key, place in zip(flat[::2], flat[1::2], strict=True)}


async def test_parts_stand_at_the_places_of_their_first_bytes_and_are_counted(bus: Bus) -> None:
    await growing(bus)
    assert await append(bus, ID, "b/2", 10, 3) == "ok"
    assert await append(bus, ID, "b/1", 7, 2) == "ok"
    assert await parts(bus) == {"b/2": 0, "b/1": 10}
    file = await Files(bus, None, 1).get(ID)
    assert (file.bytes, file.lines) == (17, 5)


async def test_a_part_that_is_filed_twice_is_there_once(bus: Bus) -> None:
    await growing(bus)
    for key in ("b/1", "b/2", "b/1", "b/2"):
        assert await append(bus, ID, key, 10, 1) == "ok"
    assert await parts(bus) == {"b/1": 0, "b/2": 10}
    assert (await Files(bus, None, 1).get(ID)).bytes == 20


async def test_a_long_file_has_exact_places(bus: Bus) -> None:
    await growing(bus)
    for number in range(3):
        await append(bus, ID, f"b/{number}", 2**40 + 1, 0)
    assert list((await parts(bus)).values()) == [0, 2**40 + 1, 2**41 + 2]
    assert (await Files(bus, None, 1).get(ID)).bytes == 3 * (2**40 + 1)


async def test_an_empty_part_is_none(bus: Bus) -> None:
    await growing(bus)
    assert await append(bus, ID, "b/1", 0, 0) == "ok"
    assert await parts(bus) == {}


async def test_a_file_that_is_not_there_gets_no_part(bus: Bus) -> None:
    assert await append(bus, ID, "b/1", 10, 1) == "unknown"
    assert await bus.commands.call("EXISTS", RECORD, PARTS) == 0


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    await growing(bus)
    async with starving(bus):
        assert await append(bus, ID, "b/1", 10, 1) == "ok"


@pytest.mark.parametrize("key", [RECORD, PARTS])
async def test_a_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await growing(bus)
    await assert_refused_whole(bus, key, lambda: append(bus, ID, "b/1", 10, 1))
