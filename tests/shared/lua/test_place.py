"""place.lua: where a waiting task stands, when it starts, and why it waits; and that the script agrees with its model."""

import math
import random

import pytest
from msgspec.structs import replace

from shared.bus.client import Bus
from shared.lifecycle import Lane as Word
from shared.place import Outlook, Why, lane_etas, outlooks
from tests.support import tasks
from tests.support.eta import Asked, Lane, Shard, estimate
from tests.support.redis import assert_refused_whole, snapshot
from tests.support.server import starving
from tests.support.tasks import LIMITS, SHARD

ME = "me"


async def clock_ms(bus: Bus) -> int:
    seconds, microseconds = await bus.commands.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def lay_out(bus: Bus, shard: Shard, asked: Asked) -> str:
    """The keys of a shard in that state. The task that is asked for waits."""
    call = bus.commands.call
    now_ms, lane = await clock_ms(bus), list(Word)[asked.lane]
    limits = [shard.lanes[i].limit or shard.slots for i in (1, 2)]
    await call("HSET", SHARD.workers, "w1", f"{now_ms} {shard.slots} {limits[0]} {limits[1]} {{}}")
    for word, one in zip(Word, shard.lanes, strict=True):
        await call(
            "HSET",
            SHARD.fair,
            f"share:{word}",
            str(one.share),
            f"t:{word}",
            str(one.tag),
            f"pace:{word}",
            f"{one.pace!r} {now_ms + 60_000}",
        )
        await call("HSET", SHARD.waiting, f"l:{word}", one.waiting)
        if one.run_ms:
            await call("HSET", SHARD.fair, f"run_ms:{word}", str(one.run_ms))
        if one.waiting and word != lane:
            await call("ZADD", f"{SHARD.base}turns:{word}", 1, "anybody")
    await call("HSET", SHARD.means, ME, str(asked.tokens))
    turns = [name for n in range(asked.others) for name in (1 if n < asked.ahead else 3, f"other{n}")]
    await call("ZADD", f"{SHARD.base}turns:{lane}", 2, ME, *turns)
    if shard.running:
        await call("ZADD", SHARD.leases, *(part for n in range(shard.running) for part in (n, f"t{n}")))
    await call("HSET", SHARD.tenants, ME, f"{asked.weight!r} {asked.cap}", "*", f"{asked.their_weight!r} 0")
    if asked.held:
        await call("SADD", SHARD.running(ME), *range(asked.held))
    id = tasks.new_id()
    ranks = (id if n == asked.rank else f"t{n}" for n in range(asked.waiting))
    await call("ZADD", SHARD.backlog(lane, ME), *(part for n, name in enumerate(ranks) for part in (n, name)))
    await call(
        *("HSET", SHARD.task(id), "state", "pending", "lane", lane, "tenant", ME, "epoch", 0),
        *("created_at_ms", now_ms, "place", asked.rank, "deadline_ms", now_ms + 60_000),
    )
    return id


def any_state(seed: int) -> tuple[Shard, Asked]:
    dice = random.Random(seed)
    lane, waiting, others, slots = dice.randrange(3), dice.randint(1, 30), dice.randint(0, 9), dice.randint(1, 20)
    lanes = [
        Lane(
            share=dice.choice((0.1, 0.2, 0.7, 1)),
            waiting=dice.choice((0, 1, 5, 60, 400)),
            run_ms=dice.choice((1, 250, 4000)),
            pace=dice.choice((0, 0.5, 3.25, 40)),
            tag=dice.choice((0, 5000, 90_000)),
            limit=0 if i == 0 else dice.randint(1, slots),
        )
        for i in range(3)
    ]
    lanes[lane] = replace(lanes[lane], waiting=waiting + dice.choice((0, 3, 50)))
    asked = Asked(
        lane=lane, rank=dice.randrange(waiting), waiting=waiting, ahead=dice.randint(0, others), others=others,
        weight=dice.choice((0.5, 1, 3)), their_weight=dice.choice((0.5, 1, 3)), tokens=dice.choice((16, 256, 4000)), cap=dice.choice((0, 0, 2, 5)), held=dice.choice((0, 2)),
    )  # fmt: skip
    return Shard((lanes[0], lanes[1], lanes[2]), slots, dice.randint(0, slots)), asked


async def test_script_and_model_agree_whatever_the_state(bus: Bus) -> None:
    for seed in range(60):
        await bus.commands.call("FLUSHDB")
        shard, asked = any_state(seed)
        id = await lay_out(bus, shard, asked)
        (found,) = await outlooks(bus, SHARD, LIMITS, [id])
        wanted = estimate(shard, asked)
        assert found is not None
        assert abs(found.position - 1 - wanted.before) <= 1, seed  # the model's last digits
        assert math.isclose(found.eta_ms, wanted.wait_ms, rel_tol=1e-6, abs_tol=1), (seed, shard, asked)
        at_cap = asked.cap and asked.held >= asked.cap
        assert found.why == (Why.TENANT_RUNNING if at_cap else Why.SLOTS)


PLAIN = Shard((Lane(0.7), Lane(0.2, waiting=4, run_ms=1000), Lane(0.1)), slots=2, running=2)
FOURTH = Asked(lane=1, rank=3, waiting=4)


async def one(bus: Bus, id: str) -> Outlook | None:
    (found,) = await outlooks(bus, SHARD, LIMITS, [id])
    return found


async def test_the_fourth_in_line_of_two_slots_waits_for_two_runs(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    assert await one(bus, id) == Outlook(4, 2000, Why.SLOTS, 0)


async def test_nothing_is_changed_and_nothing_refused_when_memory_is_full(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    before = await snapshot(bus)
    async with starving(bus):
        assert await one(bus, id) == Outlook(4, 2000, Why.SLOTS, 0)
    assert await snapshot(bus) == before


async def test_a_task_that_does_not_wait_or_is_not_there_stands_nowhere(bus: Bus) -> None:
    id, gone, foreign = await lay_out(bus, PLAIN, FOURTH), tasks.new_id(), tasks.new_id()
    await bus.commands.call("HSET", SHARD.task(id), "state", "processing")
    await bus.commands.call("SET", SHARD.task(foreign), "not ours")
    assert await outlooks(bus, SHARD, LIMITS, [id, gone, foreign]) == [None, None, None]
    assert await outlooks(bus, SHARD, LIMITS, []) == []


async def test_without_a_live_worker_the_place_is_known_and_the_time_is_not(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    silent_ms = await clock_ms(bus) - LIMITS.lease_ms - 1000
    await bus.commands.call("HSET", SHARD.workers, "w1", f"{silent_ms} 2 2 2 {{}}")
    assert await one(bus, id) == Outlook(4, -1, Why.NO_WORKER, 0)


async def test_a_tenant_at_its_cap_waits_for_its_own(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, Asked(lane=1, rank=0, waiting=4, cap=1, held=1))
    assert await one(bus, id) == Outlook(1, 1000, Why.TENANT_RUNNING, 0)


@pytest.mark.parametrize(("owes", "why"), [(0, Why.LATER), (1, Why.QUOTA)])
async def test_what_may_not_start_yet_tells_when_it_may(bus: Bus, owes: int, why: Why) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    due_ms = await clock_ms(bus) + 3_600_000
    await bus.commands.call("ZREM", SHARD.backlog(Word.NORMAL, ME), id)
    await bus.commands.call("ZADD", SHARD.later, due_ms, id)
    if owes:
        await bus.commands.call("HSET", SHARD.task(id), "owes", owes)
    found = await one(bus, id)
    assert found is not None
    assert (found.position, found.why, found.due_ms) == (0, why, due_ms)
    assert 3_500_000 < found.eta_ms <= 3_600_000


async def test_a_retry_that_is_due_soon_waits_at_least_for_its_old_place(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    await bus.commands.call("ZREM", SHARD.backlog(Word.NORMAL, ME), id)
    await bus.commands.call("ZADD", SHARD.later, 1, id)
    found = await one(bus, id)
    assert found is not None
    assert (found.position, found.eta_ms, found.why) == (0, 2000, Why.LATER)


async def test_a_follower_waits_for_the_task_that_makes_its_answer(bus: Bus) -> None:
    leader, follower, flight = await lay_out(bus, PLAIN, FOURTH), tasks.new_id(), SHARD.flight("d")
    await bus.commands.call("COPY", SHARD.task(leader), SHARD.task(follower))
    await bus.commands.call("HSET", SHARD.task(follower), "follows", "d")
    assert await one(bus, follower) == Outlook(0, -1, Why.FOLLOWING, 0)
    await bus.commands.call("SET", flight, leader)
    assert await one(bus, follower) == Outlook(0, 2000, Why.FOLLOWING, 0)
    await bus.commands.call("SET", flight, follower)
    assert await one(bus, follower) == Outlook(0, -1, Why.FOLLOWING, 0)
    await bus.commands.call("SET", flight, leader)
    await bus.commands.call("HSET", SHARD.task(leader), "state", "processing")
    assert await one(bus, follower) == Outlook(0, -1, Why.FOLLOWING, 0)


async def test_what_a_worker_was_given_starts_at_once(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    await bus.commands.call("ZREM", SHARD.backlog(Word.NORMAL, ME), id)
    await bus.commands.call("SADD", SHARD.running(ME), id)
    assert await one(bus, id) == Outlook(0, 0, Why.HANDED_OUT, 0)


async def test_what_no_scheduler_has_seen_stands_at_its_coming_place(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    await bus.commands.call("ZREM", SHARD.backlog(Word.NORMAL, ME), id)
    assert await one(bus, id) == Outlook(4, 2000, Why.SLOTS, 0)


async def test_a_pace_is_forgotten(bus: Bus) -> None:
    """Interactive tasks came at the rate of all slots; an hour ago."""
    lanes = (Lane(0.7, run_ms=1000, pace=2), Lane(0.2, waiting=4, run_ms=1000), Lane(0.1))
    id = await lay_out(bus, Shard(lanes, slots=2, running=2), FOURTH)
    busy = await one(bus, id)
    await bus.commands.call("HSET", SHARD.fair, "pace:interactive", f"2.0 {await clock_ms(bus) - 3_600_000}")
    calm = await one(bus, id)
    assert busy is not None
    assert calm is not None
    assert (busy.eta_ms, calm.eta_ms) == (9000, 2000)


async def test_whoever_is_not_named_has_the_terms_of_everybody(bus: Bus) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    await bus.commands.call("DEL", SHARD.tenants)
    await bus.commands.call("HSET", SHARD.tenants, "*", "1 1")
    found = await one(bus, id)
    assert found is not None
    assert found.eta_ms == 3000


async def test_the_weights_of_a_few_tenants_stand_for_all(bus: Bus) -> None:
    lanes = (Lane(0.7), Lane(0.2, waiting=1000, run_ms=1000), Lane(0.1))
    id = await lay_out(bus, Shard(lanes, slots=1, running=1), Asked(lane=1, rank=1, waiting=2, others=20))
    turns = f"{SHARD.base}turns:normal"
    first = [name.decode() for name in await bus.commands.call("ZRANGE", turns, 0, 20) if name != b"me"]
    for name in first[:4]:
        await bus.commands.call("HSET", SHARD.tenants, name, "3 0")
    found = await one(bus, id)
    assert found is not None
    their = (7 - 4 + 4 * 3) / 7  # of the first 8, of which one is its own
    assert found.position == 1 + int(1 + 20 * their)


async def test_the_end_of_each_lane_is_told(bus: Bus) -> None:
    await lay_out(bus, PLAIN, FOURTH)
    assert await lane_etas(bus, SHARD, LIMITS) == {Word.INTERACTIVE: 500, Word.NORMAL: 2500, Word.BATCH: 2500}


@pytest.mark.parametrize("key", [SHARD.workers, SHARD.later])
async def test_a_key_of_another_type_is_told(bus: Bus, key: str) -> None:
    id = await lay_out(bus, PLAIN, FOURTH)
    await bus.commands.call("ZREM", SHARD.backlog(Word.NORMAL, ME), id)

    async def call() -> object:
        return await outlooks(bus, SHARD, LIMITS, [id])

    await assert_refused_whole(bus, key, call)
