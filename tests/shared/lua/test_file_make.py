"""file_make.lua: a file appears once, together with its content."""

import pytest

from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.clock import now_ms
from shared.errors import WrongKeyType
from shared.files import Files, make
from tests.support.redis import assert_refused_whole, spoil
from tests.support.server import starving

ID = f"file-{'0' * 32}"
RECORD, PARTS = keys.file(ID), keys.file_parts(ID)
FIELDS: dict[str, Arg] = {
    "tenant": "acme",
    "purpose": "batch",
    "filename": "in.jsonl",
    "status": "processed",
    "details": "",
    "bytes": 5,
    "lines": 2,
}


async def test_it_is_there_with_its_part_and_its_times(bus: Bus) -> None:
    assert await make(bus, ID, 3600, "files/x", FIELDS) == "new"
    file = await Files(bus, None, 1).get(ID)
    assert (file.tenant, file.purpose, file.filename, file.bytes, file.lines) == ("acme", "batch", "in.jsonl", 5, 2)
    assert abs(file.created_at_ms - now_ms()) < 60_000
    assert file.expires_at_ms == file.created_at_ms + 3600_000
    assert await bus.commands.call("ZRANGE", PARTS, 0, -1, "WITHSCORES") == [b"files/x", b"0"]


async def test_a_file_that_is_to_grow_has_no_part(bus: Bus) -> None:
    assert await make(bus, ID, 3600, "", {**FIELDS, "bytes": 0}) == "new"
    assert await bus.commands.call("EXISTS", PARTS) == 0


async def test_a_repeat_changes_nothing(bus: Bus) -> None:
    await make(bus, ID, 3600, "files/x", FIELDS)
    before = await bus.commands.call("HGETALL", RECORD)
    assert await make(bus, ID, 7200, "files/y", {**FIELDS, "tenant": "other"}) == "known"
    assert await bus.commands.call("HGETALL", RECORD) == before
    assert await bus.commands.call("ZCARD", PARTS) == 1


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        assert await make(bus, ID, 3600, "files/x", FIELDS) == "new"


@pytest.mark.parametrize("key", [RECORD, PARTS])
async def test_a_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await assert_refused_whole(bus, key, lambda: make(bus, ID, 3600, "files/x", FIELDS))
    await spoil(bus, key)
    with pytest.raises(WrongKeyType, match="file-"):
        await make(bus, ID, 3600, "files/x", FIELDS)
