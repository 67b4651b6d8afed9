"""Arrivals that wait for their tenant's rates."""

import pytest
from msgspec.structs import replace

from services.scheduler.intake import Intake
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.config import Config
from shared.keys import quota
from shared.lifecycle import Lane
from shared.policy import Live, Policy, Tenant
from tests.support import tasks
from tests.support.tasks import CONFIG, SHARD


def limited(tokens_per_min: int) -> Config:
    policy = Policy(tenants={"acme": Tenant(tokens_per_min=tokens_per_min)})
    return replace(CONFIG, live=Live(policy))


async def arrive(bus: Bus, config: Config) -> None:
    arrivals = await tasks.arrivals(bus)
    entries = [Entry(arrival.entry, {b"t": arrival.id.encode()}) for arrival in arrivals]
    await Intake(bus, SHARD, config).on_arrivals(entries)


async def owing(bus: Bus) -> str:
    return await tasks.submitted(bus, tenant="acme", owes="1", tokens_in=100, tokens_out=100)


async def waits(bus: Bus, id: str) -> list[bool]:
    """In the waiting order; for its time."""
    backlog = SHARD.backlog(Lane.NORMAL, "acme")
    scores = [await bus.commands.call("ZSCORE", key, id) for key in (backlog, SHARD.later)]
    return [score is not None for score in scores]


async def test_task_that_waits_for_its_quota_is_admitted_once_there_is_room_and_settled_at_its_end(bus: Bus) -> None:
    id = await owing(bus)
    await arrive(bus, limited(1000))
    assert await waits(bus, id) == [True, False]
    hash = await tasks.fields(bus, id)
    assert (hash.get("owes"), hash["metered"]) == (None, "1")


async def test_task_over_its_tenants_rate_is_put_off_until_there_is_room(bus: Bus) -> None:
    first, second = await owing(bus), await owing(bus)
    await arrive(bus, limited(300))
    assert sorted([await waits(bus, first), await waits(bus, second)]) == [[False, True], [True, False]]
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0


async def test_task_that_a_reload_made_larger_than_its_limit_is_put_off_and_stops_nobody(bus: Bus) -> None:
    """It was accepted when the limit was higher: its entry came again for ever, and with it all others of the read."""
    large, other = await owing(bus), await tasks.submitted(bus, tenant="other")
    await arrive(bus, limited(150))
    assert await waits(bus, large) == [False, True]
    assert await bus.commands.call("ZCARD", SHARD.backlog(Lane.NORMAL, "other")) == 1
    assert await bus.commands.call("HGET", SHARD.task(other), "state") == b"pending"


@pytest.mark.keeps_keys
async def test_quota_key_of_another_type_puts_off_its_tenants_task_and_stops_nobody(bus: Bus) -> None:
    await bus.commands.call("SET", quota("acme", "tokens"), "foreign")
    broken, other = await owing(bus), await tasks.submitted(bus, tenant="other")
    await arrive(bus, limited(1000))
    assert await waits(bus, broken) == [False, True]
    assert await bus.commands.call("HGET", SHARD.task(other), "state") == b"pending"
    assert await bus.commands.call("ZCARD", SHARD.backlog(Lane.NORMAL, "other")) == 1


async def test_task_that_expired_while_it_owed_is_cleared(bus: Bus) -> None:
    id = await owing(bus)
    arrivals = await tasks.arrivals(bus)
    await bus.commands.call("DEL", SHARD.task(id))
    entries = [Entry(arrival.entry, {b"t": id.encode()}) for arrival in arrivals]
    await Intake(bus, SHARD, limited(1000)).on_arrivals(entries)
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0


@pytest.mark.parametrize("fields", [("t", b"\xff"), ("lead", b"\xff", "of", b"\xff"), ("x", "y")])
async def test_an_entry_that_is_not_ours_is_cleared_and_stops_nobody(bus: Bus, fields: tuple[bytes | str, ...]) -> None:
    """It would come again for ever, and with it all others of the read."""
    await bus.commands.call("XADD", SHARD.arrivals, "*", *fields)
    id = await tasks.submitted(bus)
    entries = [Entry(entry, found) for entry, found in await tasks.entries(bus, SHARD.arrivals)]
    await Intake(bus, SHARD, CONFIG).on_arrivals(entries)
    assert await bus.commands.call("ZCARD", SHARD.backlog(Lane.NORMAL, "default")) == 1
    assert await bus.commands.call("HGET", SHARD.task(id), "state") == b"pending"
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0


@pytest.mark.parametrize(("field", "value"), [("spec", b"\xff"), ("spec", b"{"), ("tokens_in", b"many")])
async def test_a_task_that_cannot_be_read_is_not_asked_for_its_quota_and_stops_nobody(
    bus: Bus, field: str, value: bytes
) -> None:
    broken, other = await owing(bus), await tasks.submitted(bus, tenant="other")
    await bus.commands.call("HSET", SHARD.task(broken), field, value)
    await arrive(bus, limited(1000))
    assert await waits(bus, broken) == [True, False]
    assert await bus.commands.call("HGET", SHARD.task(other), "state") == b"pending"
    assert await bus.commands.call("ZCARD", SHARD.backlog(Lane.NORMAL, "other")) == 1
