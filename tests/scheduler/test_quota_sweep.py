"""Reservations that nobody has settled: what becomes of them follows from what has become of their tasks."""

import pytest

from services.scheduler.quota_sweep import PAGE, QuotaSweep
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.config import Config
from shared.keys import METERED, quota
from shared.messages import Task
from shared.policy import Live, Policy, Tenant
from shared.quota import KEPT_MS, LOOK_MS, Quotas
from tests.support import tasks

CONFIG = Config(pools=tasks.CONFIG.pools, live=Live(Policy(tenants={"acme": Tenant(tokens_per_min=100_000)})))
ASKED = Task(route="/v1/completions", model=tasks.MODEL, tenant="acme")


async def reserved(bus: Bus, task_id: str, tokens: int = 100) -> None:
    """And the time of the first look has come."""
    assert await Quotas(bus, CONFIG).take(ASKED, task_id, tokens)
    await bus.commands.call("ZADD", quota("acme", "looks"), now_ms() - 60_000, task_id)


async def held(bus: Bus) -> int:
    return sum(int(count) for count in await bus.commands.call("HVALS", quota("acme", "tokens")))


async def reservations(bus: Bus) -> list[str]:
    return sorted(id.decode() for id in await bus.commands.call("HKEYS", quota("acme", "reserved")))


async def test_a_task_that_never_came_gives_all_back(bus: Bus) -> None:
    """Its submitter died between the two steps."""
    await reserved(bus, tasks.new_id())
    await reserved(bus, "not an id of ours")
    await QuotaSweep(bus, CONFIG).look()
    assert (await held(bus), await reservations(bus)) == (0, [])


async def test_a_task_that_goes_on_keeps_its_reservation_and_is_looked_at_later(bus: Bus) -> None:
    waiting = await tasks.admitted(bus, tenant="acme", metered="1")
    await reserved(bus, waiting)
    for _ in range(2):
        await QuotaSweep(bus, CONFIG).look()
    assert (await held(bus), await reservations(bus)) == (100, [waiting])
    look_ms = float(await bus.commands.call("ZSCORE", quota("acme", "looks"), waiting))
    assert look_ms > now_ms() + LOOK_MS - 60_000


@pytest.mark.parametrize("used", [0, 30])
async def test_a_task_that_has_ended_is_settled_with_what_it_used(bus: Bus, used: int) -> None:
    task_id = await tasks.admitted(bus, tenant="acme", metered="1")
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), "state", "failed", "used", used)
    await reserved(bus, task_id)
    for _ in range(2):
        await QuotaSweep(bus, CONFIG).look()
    assert (await held(bus), await reservations(bus)) == (used, [])


async def test_before_its_time_nothing_is_looked_at(bus: Bus) -> None:
    assert await Quotas(bus, CONFIG).take(ASKED, "t1", 100)
    await QuotaSweep(bus, CONFIG).look()
    assert await reservations(bus) == ["t1"]


async def test_passes_go_on_until_all_are_looked_at(bus: Bus) -> None:
    for number in range(PAGE + 5):
        await reserved(bus, f"t{number}", 1)
    sweep = QuotaSweep(bus, CONFIG)
    await sweep.look()
    assert len(await reservations(bus)) == 5
    await sweep.look()
    assert await reservations(bus) == []


async def test_a_tenant_that_reserves_nothing_any_more_is_forgotten(bus: Bus) -> None:
    await reserved(bus, "t1")
    sweep = QuotaSweep(bus, CONFIG)
    for _ in range(2):
        await sweep.look()
    assert await bus.commands.call("ZRANGE", METERED, 0, -1) == [b"acme"]
    await bus.commands.call("ZADD", METERED, now_ms() - KEPT_MS - 1000, "acme")
    await sweep.look()
    assert await bus.commands.call("EXISTS", METERED) == 0
