"""A scheduler feeds the batches whose lease it could take; what it leaves, another one takes."""

import asyncio
from pathlib import Path

import pytest

from services.scheduler.batches import feeder, holder
from services.scheduler.batches.holder import Holder
from shared import keys
from shared.batches import Batch, Batches, Status
from shared.bus.client import Bus
from tests.support import batches
from tests.support.batches import Engine, line, made, nothing_left, tools
from tests.support.waiting import wait_until

LINES = [line(n) for n in range(20)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "IDLE_S", 0.0)


@pytest.fixture
async def engine(bus: Bus) -> Engine:
    return Engine(bus)


async def ended(bus: Bus, engine: Engine, *some: Batch) -> None:
    async def over() -> bool:
        await engine.serve()
        return all([(await Batches(bus, 1).read(batch.id)).status is Status.COMPLETED for batch in some])

    await wait_until(over, "all batches are completed", timeout_s=30)


async def test_it_feeds_what_comes_and_gives_back_what_it_holds_when_it_stops(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    one, other = Holder(tools(bus, tmp_path)), Holder(tools(bus, tmp_path))
    running = asyncio.create_task(one.run())
    batch = await made(bus, tmp_path, LINES)
    state = keys.batch(batch.id, "state")

    async def held() -> bool:
        return bool(await bus.commands.call("HEXISTS", state, "owner"))

    await wait_until(held, "the batch is held")
    await one.stop()
    await running
    assert not await held()
    assert one.fault is None

    following = asyncio.create_task(other.run())
    await ended(bus, engine, batch)
    await other.stop()
    await following
    assert await bus.commands.call("HGET", state, "epoch") == b"2"
    await nothing_left(bus, tmp_path, batch)


async def test_batch_of_a_holder_that_was_killed_is_taken_when_its_lease_lapses(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    batch = await made(bus, tmp_path, LINES)
    killed = Holder(tools(bus, tmp_path))
    await killed.look()
    for held in killed._held.values():
        held.running.cancel()
    following = asyncio.create_task((other := Holder(tools(bus, tmp_path))).run())
    await ended(bus, engine, batch)
    await other.stop()
    await following


async def test_two_holders_share_many_batches_and_each_is_fed_once(bus: Bus, tmp_path: Path, engine: Engine) -> None:
    some = [await made(bus, tmp_path, LINES) for _ in range(6)]
    holders = [Holder(tools(bus, tmp_path)) for _ in range(2)]
    running = [asyncio.create_task(each.run()) for each in holders]
    await ended(bus, engine, *some)
    for each in holders:
        await each.stop()
    await asyncio.gather(*running)
    assert len(engine.ran) == len(set(engine.ran)) == 120
    for batch in some:
        assert await bus.commands.call("HGET", keys.batch(batch.id, "state"), "epoch") == b"1"


async def test_batches_of_a_tenant_share_its_window(bus: Bus, tmp_path: Path) -> None:
    some = [await made(bus, tmp_path, LINES) for _ in range(2)]
    each = Holder(tools(bus, tmp_path))
    await each.look()
    assert set(each._held) == {batch.id for batch in some}
    await wait_until(lambda: all(held.feeder.batch for held in each._held.values()), "both are read")
    assert {each.window(batch.id) for batch in some} == {batches.CONFIG.limits.batch_window // 2}
    for batch in some:
        await each._let_go(batch.id)


async def test_tenant_with_many_batches_leaves_places_to_others(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "MOST_HELD", 4)
    for _ in range(7):
        await made(bus, tmp_path, LINES)
    late = await made(bus, tmp_path, LINES, tenant="other")
    each = Holder(tools(bus, tmp_path))
    for _ in range(3):
        await each.look()
    assert [held.tenant for held in each._held.values()] == ["acme", "acme", "other"]
    assert late.id in each._held
    for batch_id in list(each._held):
        await each._let_go(batch_id)


async def test_what_ended_is_forgotten_after_a_while_with_replies_that_came_late(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    batch = await made(bus, tmp_path, LINES)
    each = Holder(tools(bus, tmp_path))
    running = asyncio.create_task(each.run())
    await ended(bus, engine, batch)
    await wait_until(lambda: not each._held, "nothing is held")
    await each.stop()
    await running
    stream = keys.reply(f"batch.{batch.id}")
    await bus.commands.call("XADD", stream, "*", "reply", "late")
    assert await bus.commands.call("ZSCORE", keys.BATCHES, batch.id) is not None
    await bus.commands.call("ZADD", keys.BATCHES, 1, batch.id)
    await bus.commands.call("HSET", keys.batch(batch.id, "state"), *times_long_ago())
    await each.look()
    assert await bus.commands.call("EXISTS", stream, keys.BATCHES) == 0


def times_long_ago() -> list[str]:
    return [part for status in Status for part in (f"{status}_at_ms", "1")]


async def test_entry_of_a_batch_that_was_never_made_is_dropped(bus: Bus, tmp_path: Path) -> None:
    await bus.commands.call("ZADD", keys.BATCHES, 1, "batch_" + "0" * 32)
    await Holder(tools(bus, tmp_path)).look()
    assert await bus.commands.call("EXISTS", keys.BATCHES) == 0
