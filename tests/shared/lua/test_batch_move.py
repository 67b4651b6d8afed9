"""batch_move.lua: from one status to the next; only the holder ends a batch, and only when nothing of it is open."""

import pytest
from msgspec.structs import replace

from shared import keys
from shared.batches import Fence, Status, make, move
from shared.bus.client import Bus
from shared.errors import BatchNotFound
from tests.scheduler.lua.test_batch_lease import held
from tests.shared.lua.test_batch_make import ASKED, ID
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot

KEPT_MS = 60_000


async def status(bus: Bus) -> str:
    return str(await bus.commands.call("HGET", keys.batch(ID, "state"), "status"), "ascii")


@pytest.fixture
async def fence(bus: Bus) -> Fence:
    await make(bus, ID, ASKED, 0)
    return await held(bus)


async def begun(bus: Bus, fence: Fence) -> None:
    assert await move(bus, ID, fence, [Status.VALIDATING], Status.IN_PROGRESS, fields={"total": 3}) == "ok"


async def test_holder_moves_it_on_and_a_repeat_is_the_same(bus: Bus, fence: Fence) -> None:
    await begun(bus, fence)
    before = await snapshot(bus)
    await begun(bus, fence)
    assert await snapshot(bus) == before
    found = await bus.commands.call("HMGET", keys.batch(ID, "state"), "status", "total", "in_progress_at_ms")
    assert found[:2] == [b"in_progress", b"3"]
    assert int(found[2]) > 0


async def test_status_that_may_not_be_left_stays(bus: Bus, fence: Fence) -> None:
    await begun(bus, fence)
    before = await snapshot(bus)
    assert await move(bus, ID, fence, [Status.VALIDATING], Status.FAILED, kept_ms=KEPT_MS) == "is in_progress"
    assert await snapshot(bus) == before


async def test_client_may_cancel_without_a_fence_and_nobody_else_moves_without_his(bus: Bus, fence: Fence) -> None:
    await begun(bus, fence)
    assert await move(bus, ID, None, [Status.VALIDATING, Status.IN_PROGRESS], Status.CANCELLING) == "ok"
    before = await snapshot(bus)
    for wrong in (Fence(fence.epoch - 1, fence.nonce), Fence(fence.epoch, "other")):
        assert await move(bus, ID, wrong, [Status.CANCELLING], Status.CANCELLED, kept_ms=KEPT_MS) == "fenced"
    assert await snapshot(bus) == before


@pytest.mark.parametrize(("what", "command"), [("open", ("HSET", "1", "x")), ("unfiled", ("RPUSH", "output s 1"))])
async def test_batch_does_not_end_before_its_items_and_segments(
    bus: Bus, fence: Fence, what: str, command: tuple[str, ...]
) -> None:
    await begun(bus, fence)
    await bus.commands.call(command[0], keys.batch(ID, what), *command[1:])
    assert await move(bus, ID, fence, [Status.IN_PROGRESS], Status.COMPLETED, kept_ms=KEPT_MS) == "is in_progress"
    assert await status(bus) == "in_progress"


async def test_end_leaves_the_record_for_a_while_and_nothing_else(bus: Bus, fence: Fence) -> None:
    await begun(bus, fence)
    await bus.commands.call("SETBIT", keys.batch(ID, "ended"), 1, 1)
    await bus.commands.call("HSET", keys.batch(ID, "state"), "twice", "x")
    assert await move(bus, ID, fence, [Status.IN_PROGRESS], Status.COMPLETED, kept_ms=KEPT_MS) == "ok"
    assert await bus.commands.call("KEYS", keys.batch(ID, "*")) == [keys.batch(ID, "state").encode()]
    assert 0 < await tasks.ttl_ms(bus, keys.batch(ID, "state")) <= KEPT_MS
    assert await bus.commands.call("HEXISTS", keys.batch(ID, "state"), "twice") == 0
    assert await move(bus, ID, None, [Status.IN_PROGRESS], Status.CANCELLING) == "is completed"


async def test_end_that_is_still_to_be_told_does_not_expire(bus: Bus) -> None:
    await make(bus, ID, replace(ASKED, webhook="orders"), 0)
    fence = await held(bus)
    await begun(bus, fence)
    assert await move(bus, ID, fence, [Status.IN_PROGRESS], Status.COMPLETED, kept_ms=KEPT_MS) == "ok"
    assert await bus.commands.call("PTTL", keys.batch(ID, "state")) == -1


async def test_unknown_batch_is_told(bus: Bus) -> None:
    with pytest.raises(BatchNotFound):
        await move(bus, ID, None, [Status.IN_PROGRESS], Status.CANCELLING)


@pytest.mark.parametrize("what", ["state", "open", "unfiled"])
async def test_key_of_another_type_is_told(bus: Bus, fence: Fence, what: str) -> None:
    await assert_refused_whole(
        bus, keys.batch(ID, what), lambda: move(bus, ID, fence, [Status.VALIDATING], Status.IN_PROGRESS)
    )
