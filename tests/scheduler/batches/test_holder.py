"""A scheduler feeds the batches whose lease it could take; what it leaves, another one takes."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.scheduler.batches import feeder, holder, scripts
from services.scheduler.batches.holder import Holder
from shared import keys
from shared.batch_view import view
from shared.batches import Batch, Batches, End, Status, file_id_of
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.config import Limits
from shared.errors import BusError
from shared.messages import Delivery, decode_delivery, encode
from tests.scheduler.batches.test_feeder import MANY_BATCHES
from tests.support import batches, tasks
from tests.support.batches import Engine, Fate, MortalBus, fed, line, made, nothing_left, tools
from tests.support.waiting import TIMEOUT_S, wait_until

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
    patient = replace(
        batches.CONFIG, limits=Limits(batch_window=8, lease_s=60)
    )  # no lease lapses, however slow this machine is
    holders = [Holder(tools(bus, tmp_path, patient)) for _ in range(2)]
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
    await wait_until(lambda: all(held.feeder.work for held in each._held.values()), "both are read")
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


async def test_batch_under_the_id_of_one_that_has_expired_begins_at_once(bus: Bus, tmp_path: Path) -> None:
    """Its index entry may still be there, to be looked at when no late reply can come any more."""
    former = await made(bus, tmp_path, LINES, key="report")
    await bus.commands.call("DEL", keys.batch(former.id, "state"))
    await bus.commands.call("ZADD", keys.BATCHES, now_ms() + holder.SWEPT_MS, former.id)
    batch = await made(bus, tmp_path, LINES, key="report")
    assert batch.id == former.id
    each = Holder(tools(bus, tmp_path))
    await each.look()
    assert set(each._held) == {batch.id}
    await each._let_go(batch.id)


async def test_entry_of_a_batch_that_was_never_made_is_dropped(bus: Bus, tmp_path: Path) -> None:
    await bus.commands.call("ZADD", keys.BATCHES, 1, "batch_" + "0" * 32)
    await Holder(tools(bus, tmp_path)).look()
    assert await bus.commands.call("EXISTS", keys.BATCHES) == 0


# -- turns


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pauses stands still; who has waited is looked at again at once."""
    monkeypatch.setattr(holder, "MOST_HELD", 2)
    monkeypatch.setattr(holder, "STILL_S", 0.001)
    monkeypatch.setattr(holder, "WAITS_S", (0, 0))
    monkeypatch.setattr(feeder, "IDLE_S", 0.05)


async def seen_after(each: Holder, want: set[str]) -> None:
    """Look until all of these have had a place."""
    seen: set[str] = set()

    async def all_had() -> bool:
        await each.look()
        assert len(each._held) <= holder.MOST_HELD
        seen.update(each._held)
        return want <= seen

    await wait_until(all_had, "each has had a place")


@pytest.mark.usefixtures("few_places")
async def test_batches_that_stand_still_take_turns_with_those_that_wait(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    """One tenant's, and those of others: nothing runs, and yet each is begun; and all end when something does."""
    some = [await made(bus, tmp_path, LINES[:3], tenant=tenant) for tenant in ("a", "a", "a", "b", "c", "d")]
    each = Holder(tools(bus, tmp_path))
    await seen_after(each, {batch.id for batch in some})
    most = sum(batches.CONFIG.limits.batch_window for _ in "abcd") + len(some)
    assert await waiting(bus) <= most
    running = asyncio.create_task(each.run())
    await ended(bus, engine, *some)
    await each.stop()
    await running
    assert len(engine.ran) == len(set(engine.ran)) == 18, "what was begun under one holder was begun again"
    for batch in some:
        assert sum((await Batches(bus, 1).read(batch.id)).ended.values()) == 3


@pytest.mark.usefixtures("few_places")
async def test_tasks_of_batches_that_gave_up_their_places_count_against_their_tenants_window(
    bus: Bus, tmp_path: Path
) -> None:
    """Else each batch would leave a window full of tasks behind, and many would fill the shard. One task it may have in any case."""
    some = [await made(bus, tmp_path, LINES) for _ in range(6)]
    each = Holder(tools(bus, tmp_path))
    await seen_after(each, {batch.id for batch in some})
    assert 0 < await waiting(bus) <= batches.CONFIG.limits.batch_window + len(some)
    for batch_id in list(each._held):
        await each._let_go(batch_id)


async def test_batch_that_moves_gives_up_its_place_after_its_turn_to_a_tenant_that_has_fewer(
    bus: Bus, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "MOST_HELD", 4)
    monkeypatch.setattr(holder, "STILL_S", 3600.0)
    monkeypatch.setattr(holder, "WAITS_S", (0, 0))
    each, some = Holder(tools(bus, tmp_path)), []
    for tenant in ("a", "a", "b", "c"):
        some.append(await made(bus, tmp_path, LINES, tenant=tenant))
        await each.look()
    assert set(each._held) == {batch.id for batch in some}
    late = await made(bus, tmp_path, LINES, tenant="d")
    await wait_until(lambda: all(held.feeder.turn_s for held in each._held.values()), "all are fed")
    await each.look()
    assert late.id not in each._held, "their turns are not over"
    monkeypatch.setattr(holder, "TURN_S", 0.0)
    await each.look()
    assert sorted(held.tenant for held in each._held.values()) == ["a", "b", "c", "d"]
    await each.look()
    assert late.id in each._held, "nobody has more than one by more than one"
    monkeypatch.setattr(holder, "TURN_S", 120.0)
    running = asyncio.create_task(each.run())
    await ended(bus, engine, *some, late)
    await each.stop()
    await running
    assert len(engine.ran) == len(set(engine.ran)) == 100


@pytest.mark.usefixtures("few_places")
async def test_tasks_that_have_ended_without_a_place_leave_their_tenants_window(
    bus: Bus, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what moves again goes on task by task, and keeps the place that the other would need to be gathered."""
    window = batches.CONFIG.limits.batch_window
    some = [await made(bus, tmp_path, LINES) for _ in range(2)]
    each = Holder(tools(bus, tmp_path))
    await each.look()
    first, second = sorted(some, key=lambda batch: batch.id not in each._held)
    held = each._held[first.id].feeder
    await wait_until(lambda: held.work is not None and len(held.work.numbers) == window, "its window is full")
    await seen_after(each, {second.id})
    monkeypatch.setattr(holder, "STILL_S", 3600.0)
    assert set(each._held) == {second.id}
    assert each.window(second.id) == 1

    async def ended_there() -> bool:
        await engine.serve()
        return bool(await bus.commands.call("XLEN", keys.reply(f"batch.{first.id}")) == window)

    await wait_until(ended_there, "the tasks of the first have ended")
    await each.look()
    assert each.window(second.id) == window
    await each._let_go(second.id)


async def waiting(bus: Bus) -> int:
    return int(await bus.commands.call("XLEN", tasks.SHARD.arrivals))


@pytest.mark.usefixtures("few_places")
async def test_batch_that_moves_or_whose_tenant_has_no_more_places_keeps_its_own(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "WAITS_S", (60, 60))
    some = [await made(bus, tmp_path, LINES, tenant=tenant) for tenant in ("a", "b")]
    each = Holder(tools(bus, tmp_path))
    await each.look()
    assert set(each._held) == {batch.id for batch in some}

    def still() -> bool:
        return all(held.feeder.still_s > 0 for held in each._held.values())

    await wait_until(still, "nothing moves")
    monkeypatch.setattr(holder, "STILL_S", 60.0)
    late = await made(bus, tmp_path, LINES, tenant="c")
    await each.look()
    assert set(each._held) == {batch.id for batch in some}, "they have moved a minute ago"
    monkeypatch.setattr(holder, "STILL_S", 0.001)
    await wait_until(still, "nothing moves")
    each._held[some[0].id].tenant = each._held[some[1].id].tenant = "c"
    assert each._giver("d") is not None
    each._held[some[0].id].tenant = "a"
    assert each._giver("b") is not None
    each._held[some[0].id].tenant, each._held[some[1].id].tenant = "a", "b"
    assert each._giver("a") == some[0].id, "nobody else has more than a"
    assert late.id not in each._held
    for batch in some:
        await each._let_go(batch.id)


async def test_batch_that_waits_is_seen_by_a_scheduler_with_a_place_though_a_full_one_comes_before_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "MOST_HELD", 2)
    at_ms = now_ms()

    async def time_ms(bus: Bus) -> int:
        return at_ms

    monkeypatch.setattr(Bus, "time_ms", time_ms)
    config = replace(batches.CONFIG, limits=Limits(batch_window=8, lease_s=60))
    full, free = Holder(tools(bus, tmp_path, config)), Holder(tools(bus, tmp_path, config))
    some = [await made(bus, tmp_path, LINES, tenant=tenant) for tenant in ("a", "b")]
    at_ms = now_ms()
    await full.look()
    assert set(full._held) == {batch.id for batch in some}
    late = await made(bus, tmp_path, LINES, tenant="c")
    for _ in range(400):
        at_ms += 250
        await full.look()
        at_ms += 250
        await free.look()
        if late.id in free._held:
            break
    assert set(free._held) == {late.id}
    for each in (full, free):
        for batch_id in list(each._held):
            await each._let_go(batch_id)


@pytest.mark.parametrize("days", [-20, 20])
async def test_clock_of_a_scheduler_may_be_wrong_without_harm(
    bus: Bus, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Ahead of Redis', it would end what has time; behind it, it would not find what is due. Output is kept from the end of the
    window, whoever writes it."""
    batch, at_ns = await made(bus, tmp_path, LINES), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: at_ns() + days * 24 * 3600 * 10**9)
    running = asyncio.create_task((each := Holder(tools(bus, tmp_path))).run())
    await ended(bus, engine, batch)
    await each.stop()
    await running
    assert (await Batches(bus, 1).read(batch.id)).ended[End.COMPLETED] == 20
    expires_at_ms = int(await bus.commands.call("HGET", keys.file(file_id_of(batch.id, "output")), "expires_at_ms"))
    behind_ms = expires_at_ms - batch.expires_at_ms - batches.CONFIG.limits.files_kept_s * 1000
    assert -1000 < behind_ms < 3_600_000, "it is kept from another moment"


async def test_leases_are_given_back_at_once_and_not_in_turn(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away each takes its patience: a scheduler with many batches would not stop in time."""
    some = [await made(bus, tmp_path, LINES) for _ in range(3)]
    running = asyncio.create_task((each := Holder(tools(bus, tmp_path))).run())
    await wait_until(lambda: set(each._held) == {batch.id for batch in some}, "all are held")
    together = asyncio.Barrier(3)

    async def lease(bus: Bus, batch_id: str, nonce: str, lease_ms: int) -> str:
        if not lease_ms:
            await together.wait()
        return await scripts.lease(bus, batch_id, nonce, lease_ms)

    monkeypatch.setattr(holder, "lease", lease)
    await each.stop()
    await asyncio.wait_for(running, TIMEOUT_S)
    owners = [await bus.commands.call("HGET", keys.batch(batch.id, "state"), "owner") for batch in some]
    assert owners == [None] * 3


async def test_batch_that_cannot_be_read_keeps_no_other_from_being_looked_at(bus: Bus, tmp_path: Path) -> None:
    foreign = [await made(bus, tmp_path, LINES) for _ in range(3)]
    batch = await made(bus, tmp_path, LINES)
    states = [keys.batch(each.id, "state") for each in foreign]
    await bus.commands.call("HSET", states[0], "status", "unheard of")
    await bus.commands.call("HSET", states[1], "status", "completed", "total", "many")
    await bus.commands.call("DEL", states[2])
    await bus.commands.call("SET", states[2], "no hash")
    each = Holder(tools(bus, tmp_path))
    await each.look()
    assert set(each._held) == {batch.id}
    assert each._periodic.fault is None
    assert await bus.commands.call("ZCARD", keys.BATCHES) == 4, "nothing is given up"
    await bus.commands.call("DEL", keys.batch(batch.id, "state"))
    await bus.commands.call("SET", keys.batch(batch.id, "state"), "no hash")
    each._held[batch.id].renewed_s = 0.0
    await each.look()
    assert each._held == {}


# -- webhooks


async def announced(bus: Bus) -> list[Delivery]:
    return [decode_delivery(fields[b"delivery"]) for _, fields in await tasks.entries(bus, keys.WEBHOOKS)]


async def seen_by_clients(bus: Bus, batch: Batch) -> bytes:
    return encode(view(await Batches(bus, 1).read(batch.id)))


async def test_end_is_told_once_with_the_batch_as_clients_see_it(bus: Bus, tmp_path: Path, engine: Engine) -> None:
    batch = await made(bus, tmp_path, LINES, webhook="orders")
    silent = await made(bus, tmp_path, LINES)
    each = Holder(tools(bus, tmp_path))
    running = asyncio.create_task(each.run())
    await ended(bus, engine, batch, silent)
    await wait_until(lambda: announced(bus), "its end is announced")
    await wait_until(lambda: not each._held, "nothing is held")
    await each.stop()
    await running
    await each.look()
    [delivery] = await announced(bus)
    assert (delivery.event, delivery.to, delivery.tenant) == ("batch.completed", "orders", "acme")
    assert bytes(delivery.data) == await seen_by_clients(bus, batch)
    assert delivery.at_ms == (await Batches(bus, 1).read(batch.id)).at_ms[Status.COMPLETED]


@pytest.mark.parametrize(
    ("lines", "cancelled", "event"),
    [
        ([b"no json"], False, "batch.failed"),
        ([], False, "batch.failed"),
        (LINES, True, "batch.cancelled"),
        (LINES, False, "batch.expired"),
    ],
)
async def test_every_end_is_told(
    bus: Bus, tmp_path: Path, engine: Engine, lines: list[bytes], cancelled: bool, event: str
) -> None:
    batch = await made(bus, tmp_path, lines, webhook="orders", window_s=1 if event == "batch.expired" else 3600)
    if event == "batch.expired":
        await bus.commands.call("HSET", keys.batch(batch.id, "state"), "expires_at_ms", 1)
    if cancelled:
        await Batches(bus, 1).cancel(batch.id)
    running = asyncio.create_task((each := Holder(tools(bus, tmp_path))).run())
    await wait_until(lambda: announced(bus), "its end is announced")
    await each.stop()
    await running
    [delivery] = await announced(bus)
    assert delivery.event == event
    assert bytes(delivery.data) == await seen_by_clients(bus, batch)


async def test_batch_does_not_expire_before_its_end_is_told(bus: Bus, tmp_path: Path, engine: Engine) -> None:
    """Its record may be kept for shorter than a scheduler that was killed is missed."""
    batch = await made(bus, tmp_path, LINES, webhook="orders")
    kit = tools(bus, tmp_path)
    await fed(bus, kit, batch.id, engine=engine)
    state = keys.batch(batch.id, "state")
    assert await bus.commands.call("PTTL", state) == -1
    await Holder(kit).look()
    assert len(await announced(bus)) == 1
    assert 0 < await bus.commands.call("PTTL", state) <= kit.batches.kept_ms


async def test_batch_that_is_made_again_when_it_has_expired_is_told_under_an_id_of_its_own(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    """Else a receiver that drops what it has seen would drop the report of tonight for that of yesterday."""
    for _ in range(2):
        batch = await made(bus, tmp_path, LINES[:1], webhook="orders", key="report")
        await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
        await bus.commands.call("ZADD", keys.BATCHES, 1, batch.id)
        await Holder(tools(bus, tmp_path)).look()
        await bus.commands.call("DEL", keys.batch(batch.id, "state"))
    one, other = await announced(bus)
    assert one.id != other.id


async def test_end_that_a_killed_scheduler_did_not_announce_is_announced_by_the_next(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    """Killed between the step that ends the batch and the announcement, then between that and noting it."""
    batch = await made(bus, tmp_path, LINES, webhook="orders")
    await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
    assert (await Batches(bus, 1).read(batch.id)).status is Status.COMPLETED
    assert await announced(bus) == []
    await Holder(tools(bus, tmp_path)).look()
    [first] = await announced(bus)
    await bus.commands.call("HSET", keys.batch(batch.id, "state"), "webhook", "orders")
    await bus.commands.call("ZADD", keys.BATCHES, 1, batch.id)
    await Holder(tools(bus, tmp_path)).look()
    assert await announced(bus) == [first, first]
    await bus.commands.call("ZADD", keys.BATCHES, 1, batch.id)
    await Holder(tools(bus, tmp_path)).look()
    assert len(await announced(bus)) == 2


@MANY_BATCHES
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_whatever_step_a_scheduler_dies_at_the_end_is_told_under_one_id(
    redis_url: str, tmp_path: Path, after: bool
) -> None:
    died, at = True, 0
    while died:
        at += 1
        async with MortalBus(redis_url, name="mortal") as mortal, Bus(redis_url, name="test") as bus:
            batch, engine = await made(bus, tmp_path, LINES[:1], webhook="orders"), Engine(bus)
            fate = mortal.fate = Fate(at, after=after)
            each = Holder(tools(mortal, tmp_path, fate=fate))
            fate.victim = asyncio.create_task(looking(each))
            await told_or_dead(bus, engine, fate.victim)
            await killed(each, fate.victim)
            died = fate.steps >= at
            following = asyncio.create_task(looking(other := Holder(tools(bus, tmp_path))))
            await bus.commands.call("HDEL", keys.batch(batch.id, "state"), "owner")  # its lease has lapsed
            await bus.commands.call("ZADD", keys.BATCHES, "XX", 1, batch.id)
            await told_or_dead(bus, engine, following)
            await killed(other, following)
            deliveries = await announced(bus)
            assert {delivery.event for delivery in deliveries} == {"batch.completed"}
            assert len({delivery.id for delivery in deliveries}) == 1
            assert len(deliveries) <= 2
            await bus.commands.call("FLUSHALL")
    assert at > 10


async def looking(each: Holder) -> None:
    while True:
        with contextlib.suppress(BusError):
            await each.look()
        await asyncio.sleep(0)


async def told_or_dead(bus: Bus, engine: Engine, running: asyncio.Task[None]) -> None:
    async def over() -> bool:
        await engine.serve()
        return running.done() or bool(await announced(bus))

    await wait_until(over, "its end is announced, or the scheduler is dead", timeout_s=30)


async def killed(each: Holder, running: asyncio.Task[None]) -> None:
    """Nothing is given back."""
    feeders = [held.running for held in each._held.values()]
    for task in (running, *feeders):
        task.cancel()
    await asyncio.gather(running, *feeders, return_exceptions=True)


async def test_end_that_cannot_be_announced_stays_to_be_told_and_keeps_no_other_batch(
    bus: Bus, tmp_path: Path, engine: Engine
) -> None:
    batch = await made(bus, tmp_path, LINES, webhook="orders")
    await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
    other = await made(bus, tmp_path, LINES)
    await bus.commands.call("SET", keys.WEBHOOKS, "no stream")
    await bus.commands.call("HSET", keys.batch(batch.id, "state"), *times_long_ago())
    each = Holder(tools(bus, tmp_path))
    await each.look()
    assert set(each._held) == {other.id}
    await each._let_go(other.id)
    await bus.commands.call("DEL", keys.WEBHOOKS)
    await bus.commands.call("ZADD", keys.BATCHES, 1, batch.id)
    await each.look()
    [delivery] = await announced(bus)
    assert delivery.to == "orders"
    assert await bus.commands.call("ZSCORE", keys.BATCHES, batch.id) is None
    for held in list(each._held):
        await each._let_go(held)
