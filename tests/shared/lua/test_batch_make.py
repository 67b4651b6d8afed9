"""batch_make.lua: an id stands for one batch, and its deadline is Redis' own time."""

from shared import keys
from shared.batches import Asked, Batches, End, Status, make, new_id
from shared.bus.client import Bus
from tests.support.redis import assert_refused_whole, snapshot

ASKED = Asked(tenant="acme", key="k", endpoint="/v1/completions", input_file_id="file-1", window="2h", window_s=7200)
ID = new_id("acme", "order-17")


async def test_batch_begins_with_what_was_asked_and_a_deadline(bus: Bus) -> None:
    assert await make(bus, ID, ASKED, 12) == "new"
    batch = await Batches(bus, 1).read(ID)
    assert (batch.status, batch.total, batch.fed, batch.offset) == (Status.VALIDATING, 12, 0, 0)
    assert (batch.tenant, batch.key, batch.endpoint, batch.input_file_id) == ("acme", "k", "/v1/completions", "file-1")
    assert batch.expires_at_ms - batch.created_at_ms == 7200 * 1000
    assert batch.ended == dict.fromkeys(End, 0)


async def test_a_repeat_finds_it_and_another_wish_under_its_id_is_a_conflict(bus: Bus) -> None:
    await make(bus, ID, ASKED, 12)
    before = await snapshot(bus)
    other = Asked(
        tenant="acme", key="k", endpoint="/v1/completions", input_file_id="file-2", window="2h", window_s=7200
    )
    assert await make(bus, ID, ASKED, 12) == "known"
    assert await make(bus, ID, other, 12) == "conflict"
    assert await snapshot(bus) == before


async def test_key_of_another_type_is_told(bus: Bus) -> None:
    await assert_refused_whole(bus, keys.batch(ID, "state"), lambda: make(bus, ID, ASKED, 0))
