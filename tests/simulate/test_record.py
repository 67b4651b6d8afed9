"""What a deployment has done becomes a trace that can be replayed."""

from shared.bus.client import Bus
from shared.lifecycle import Lane
from tests.simulate.record import recorded
from tests.support.tasks import SHARD, ended, fields, running, submitted, worker


async def test_tasks_that_have_made_something_become_rows(bus: Bus, redis_url: str) -> None:
    hand = await ended(bus, await worker(bus), chunks=2)
    await bus.commands.call("HSET", SHARD.task(hand.id), "tokens_in", 30, "tokens_out", 100, "used", 70)
    (row,) = await recorded(redis_url, SHARD)
    assert row.arrival_s == 0
    assert (row.tenant, row.lane) == ((await fields(bus, hand.id))["tenant"], Lane.NORMAL)
    assert (row.tokens_in, row.tokens_out, row.max_tokens, row.expires_in_s) == (30, 40, 100, 600)


async def test_tasks_that_wait_or_run_are_left_out(bus: Bus, redis_url: str) -> None:
    await running(bus, await worker(bus))
    await submitted(bus)
    assert await recorded(redis_url, SHARD) == []
