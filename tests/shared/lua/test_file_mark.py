"""file_mark.lua: a record changes as long as it is there."""

from shared import keys
from shared.bus.client import Bus
from shared.files import Files, make, mark
from tests.shared.lua.test_file_make import FIELDS, ID
from tests.support.redis import assert_refused_whole


async def test_fields_get_their_values_and_a_repeat_changes_nothing(bus: Bus) -> None:
    await make(bus, ID, 3600, "", FIELDS)
    for _ in range(2):
        assert await mark(bus, ID, {"status": "uploaded", "details": "x"}) == "ok"
    file = await Files(bus, None, 1).get(ID)
    assert (file.status, file.details, file.tenant) == ("uploaded", "x", "acme")


async def test_a_file_that_is_gone_does_not_come_back(bus: Bus) -> None:
    assert await mark(bus, ID, {"status": "processed"}) == "unknown"
    assert await bus.commands.call("EXISTS", keys.file(ID)) == 0


async def test_a_wrong_type_is_named_and_nothing_is_written(bus: Bus) -> None:
    await assert_refused_whole(bus, keys.file(ID), lambda: mark(bus, ID, {"status": "processed"}))
