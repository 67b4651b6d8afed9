"""batch_lease.lua: one holder at a time; who takes it fences the one before."""

from services.scheduler.batches.scripts import lease
from shared import keys
from shared.batches import Fence, make
from shared.bus.client import Bus
from tests.shared.lua.test_batch_make import ASKED, ID
from tests.support.redis import assert_refused_whole, snapshot

LEASE_MS = 60_000
STATE = keys.batch(ID, "state")


async def held(bus: Bus, nonce: str = "n1") -> Fence:
    word, _, epoch = (await lease(bus, ID, nonce, LEASE_MS)).partition(" ")
    assert word == "held"
    return Fence(int(epoch), nonce)


async def test_first_who_asks_holds_it_and_renews_it(bus: Bus) -> None:
    await make(bus, ID, ASKED, 0)
    assert await lease(bus, ID, "n1", LEASE_MS) == "held 1"
    until = int(await bus.commands.call("HGET", STATE, "lease_until_ms"))
    await bus.commands.call("HSET", STATE, "lease_until_ms", until - 50_000)
    assert await lease(bus, ID, "n1", LEASE_MS) == "held 1"
    assert int(await bus.commands.call("HGET", STATE, "lease_until_ms")) >= until
    before = await snapshot(bus)
    assert await lease(bus, ID, "n2", LEASE_MS) == "taken"
    assert await snapshot(bus) == before


async def test_lease_that_lapsed_is_taken_with_another_epoch(bus: Bus) -> None:
    await make(bus, ID, ASKED, 0)
    await held(bus)
    await bus.commands.call("HSET", STATE, "lease_until_ms", 1)
    assert await lease(bus, ID, "n2", LEASE_MS) == "held 2"
    assert await lease(bus, ID, "n1", LEASE_MS) == "taken"


async def test_lease_that_was_given_back_is_free_at_once(bus: Bus) -> None:
    await make(bus, ID, ASKED, 0)
    await held(bus)
    assert await lease(bus, ID, "n2", 0) == "given", "to give back what one does not hold changes nothing"
    assert await lease(bus, ID, "n2", LEASE_MS) == "taken"
    assert [await lease(bus, ID, "n1", 0), await lease(bus, ID, "n1", 0)] == ["given", "given"]
    assert await lease(bus, ID, "n2", LEASE_MS) == "held 2"


async def test_batch_that_has_ended_or_never_was_has_no_holder(bus: Bus) -> None:
    assert await lease(bus, ID, "n1", LEASE_MS) == "unknown"
    await make(bus, ID, ASKED, 0)
    for status in ("completed", "failed", "cancelled", "expired"):
        await bus.commands.call("HSET", STATE, "status", status)
        assert await lease(bus, ID, "n1", LEASE_MS) == "ended"


async def test_key_of_another_type_is_told(bus: Bus) -> None:
    await assert_refused_whole(bus, STATE, lambda: lease(bus, ID, "n1", LEASE_MS))
