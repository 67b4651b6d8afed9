"""follow.lua: those that waited for another one's answer get it, or one of them makes it."""

from collections.abc import Awaitable, Callable

import pytest

from services.inference.scripts import Owner
from services.scheduler.scripts import Followed, due, follow
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.lifecycle import Lane, State
from tests.support import cached, tasks
from tests.support.cached import DIGEST, FLIGHT, FOLLOWERS, KEPT, take_in
from tests.support.redis import snapshot, spoil
from tests.support.tasks import LIMITS, SHARD


async def led(bus: Bus, followers: int, **how: object) -> tuple[str, list[str]]:
    """A leader that waits, and its followers."""
    first = await take_in(bus, expect="miss", **how)
    for _ in range(followers):
        await cached.asked(bus, **how)  # type: ignore[arg-type]
    assert await cached.arrive(bus) == ["followed"] * followers
    return first, await cached.followers(bus)


async def on(bus: Bus, ended: str, most: int = 100) -> Followed:
    return await follow(bus, SHARD, LIMITS, DIGEST, ended, most)


# -- the leader has completed


async def test_followers_are_answered_in_pages(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 250)
    await cached.complete(bus, owner, first)
    done = [await on(bus, first) for _ in range(3)]
    assert [(page.answered, page.promoted) for page in done] == [(100, 0), (100, 0), (50, 0)]
    assert [page.more for page in done] == [1, 1, 0]
    assert set(await cached.states(bus, ids)) == {"completed"}
    assert await bus.commands.call("EXISTS", FOLLOWERS) == 0


async def test_page_is_bounded_in_bytes_too(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, _ = await led(bus, 5)
    await cached.complete(bus, owner, first, result=b'"' + b"x" * 600_000 + b'"')
    assert [(await on(bus, first)).answered for _ in range(4)] == [2, 2, 1, 0]


async def test_a_repeat_finds_nothing_to_do(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, _ = await led(bus, 2)
    await cached.complete(bus, owner, first)
    assert await on(bus, first) == Followed(2, 0, 0)
    before = await snapshot(bus)
    assert await on(bus, first) == Followed(0, 0, 0)
    assert await snapshot(bus) == before


async def test_they_are_answered_although_the_kept_answer_has_expired(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, _ = await led(bus, 2)
    await cached.complete(bus, owner, first)
    await bus.commands.call("DEL", KEPT)
    assert await on(bus, first) == Followed(2, 0, 0)


async def test_answers_are_not_called_out_again_for_each_of_them(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, _ = await led(bus, 5)
    await cached.complete(bus, owner, first)
    await on(bus, first, most=2)
    assert await cached.lead_entries(bus) == [(DIGEST, first)]


async def test_who_asks_anew_after_the_end_is_not_given_the_old_answer(bus: Bus) -> None:
    """A refresh came while the pages were under way, and another one follows it."""
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 2)
    await cached.complete(bus, owner, first)
    await bus.commands.call(
        "HSET", SHARD.task(first), "finished_at_ms", int((await tasks.fields(bus, first))["finished_at_ms"]) - 1
    )
    for id in ids:
        await bus.commands.call("HSET", SHARD.task(id), "created_at_ms", 1)
    page = await cached.entries_in(bus)
    fresh, joins = [await cached.asked(bus, wish="refresh") for _ in range(2)]
    assert await cached.arrive(bus) == ["refresh", "followed"]
    ((_, fields),) = [entry for entry in page if b"lead" in entry[1]]
    assert await cached.follow_on(bus, fields) == Followed(2, 0, 0)
    assert await cached.states(bus, [*ids, fresh, joins]) == ["completed", "completed", "pending", "pending"]
    await cached.complete(bus, owner, fresh, result=b'"new"')
    await cached.arrive(bus)
    assert (await tasks.fields(bus, joins))["result"] == '"new"'


@pytest.mark.parametrize("field", ["result", "finished"])
async def test_without_the_answer_the_first_follower_leads(bus: Bus, field: str) -> None:
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 2)
    await cached.complete(bus, owner, first)
    await bus.commands.call("HDEL", SHARD.task(first), field)
    assert await on(bus, first) == Followed(0, 1, 0)
    assert await cached.leader(bus) == ids[0]


# -- it has not

Ending = Callable[[Bus, Owner, str], Awaitable[None]]


async def fails(bus: Bus, owner: Owner, id: str) -> None:
    await cached.end(bus, owner, await cached.run(bus, owner, id), state=State.FAILED)


async def is_cancelled_waiting(bus: Bus, owner: Owner, id: str) -> None:
    assert await cancel(bus, SHARD, LIMITS, [id]) == ["cancelled"]


async def is_cancelled_running(bus: Bus, owner: Owner, id: str) -> None:
    hand = await cached.run(bus, owner, id)
    assert await cancel(bus, SHARD, LIMITS, [id]) == ["processing"]
    await cached.end(bus, owner, hand, state=State.CANCELLED)
    await bus.commands.call("XTRIM", SHARD.work(owner.worker), "MAXLEN", 0)  # the word to stop


async def expires(bus: Bus, owner: Owner, id: str) -> None:
    await bus.commands.call("ZADD", SHARD.expiry, 1, id)
    assert (await due(bus, SHARD, LIMITS)).expired == 1


async def expires_as_its_flight_has(bus: Bus, owner: Owner, id: str) -> None:
    await bus.commands.call("DEL", FLIGHT)
    await expires(bus, owner, id)


ENDS = [fails, is_cancelled_waiting, is_cancelled_running, expires, expires_as_its_flight_has]


@pytest.mark.parametrize("ends", ENDS)
async def test_if_the_leader_does_not_complete_the_first_follower_leads_the_others(bus: Bus, ends: Ending) -> None:
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 3)
    await ends(bus, owner, first)
    assert await cached.lead_entries(bus) == [(DIGEST, first)]
    assert await cached.arrive(bus) == ["miss"]
    assert await cached.leader(bus) == ids[0]
    assert await cached.followers(bus) == ids[1:]
    assert "follows" not in await tasks.fields(bus, ids[0])
    await cached.complete(bus, owner, ids[0])
    await cached.arrive(bus)
    assert set(await cached.states(bus, ids)) == {"completed"}
    assert [(await tasks.fields(bus, id))["served_from"] for id in ids[1:]] == [ids[0]] * 2
    assert await bus.commands.call("EXISTS", FOLLOWERS, FLIGHT, SHARD.waiting, SHARD.expiry) == 0


async def test_a_chain_of_failures_ends_with_the_last_follower(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 3)
    for id in [first, *ids]:
        await fails(bus, owner, id)
        await cached.arrive(bus)
    assert set(await cached.states(bus, ids)) == {"failed"}
    assert await bus.commands.call("EXISTS", FOLLOWERS, FLIGHT, SHARD.waiting, SHARD.expiry) == 0


async def test_the_most_urgent_follower_leads_and_of_these_the_oldest(bus: Bus) -> None:
    first = await take_in(bus, expect="miss", lane=Lane.INTERACTIVE)
    lanes = [Lane.BATCH, Lane.NORMAL, Lane.INTERACTIVE, Lane.INTERACTIVE]
    ids = [await take_in(bus, expect="followed", lane=lane) for lane in lanes]
    assert set((await cached.followers(bus))[:2]) == set(ids[2:])
    oldest = (await cached.followers(bus))[0]
    await cancel(bus, SHARD, LIMITS, [first])
    assert await cached.arrive(bus) == ["miss"]
    assert await cached.leader(bus) == oldest


async def test_promoted_follower_is_in_its_line_and_can_be_handed_out(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, (id,) = await led(bus, 1, tenant="acme", lane=Lane.BATCH)
    await cancel(bus, SHARD, LIMITS, [first])
    await cached.arrive(bus)
    assert await bus.commands.call("ZSCORE", SHARD.backlog(Lane.BATCH, "acme"), id) is not None
    await cached.complete(bus, owner, id)


async def test_nobody_is_promoted_while_another_one_leads(bus: Bus) -> None:
    """The leader was overtaken by one of a higher lane: the followers wait for that one."""
    slow, ids = await led(bus, 2, lane=Lane.BATCH)
    quick = await take_in(bus, expect="miss", lane=Lane.INTERACTIVE)
    await cancel(bus, SHARD, LIMITS, [slow])
    assert await cached.lead_entries(bus) == []
    assert await on(bus, slow) == Followed(0, 0, 0)
    await cancel(bus, SHARD, LIMITS, [quick])
    assert await cached.arrive(bus) == ["miss"]
    assert await cached.leader(bus) == ids[0]


@pytest.mark.parametrize("running", [False, True])
async def test_nothing_is_done_for_one_that_has_not_ended(bus: Bus, running: bool) -> None:
    first, _ = await led(bus, 2)
    if running:
        await cached.run(bus, await tasks.worker(bus), first)
    before = await snapshot(bus)
    assert await on(bus, first) == Followed(0, 0, 0)
    assert await snapshot(bus) == before


async def test_leader_whose_hash_is_gone_is_replaced(bus: Bus) -> None:
    first, ids = await led(bus, 2)
    await bus.commands.call("DEL", SHARD.task(first))
    assert await on(bus, first) == Followed(0, 1, 0)
    assert await cached.leader(bus) == ids[0]


async def test_followers_that_are_gone_are_passed_over(bus: Bus) -> None:
    first, ids = await led(bus, 5)
    await bus.commands.call("DEL", *(SHARD.task(id) for id in ids[:3]))
    await cancel(bus, SHARD, LIMITS, [first])
    assert await on(bus, first, most=2) == Followed(0, 0, 1)
    assert await on(bus, first, most=2) == Followed(0, 1, 0)
    assert (await cached.leader(bus), await cached.followers(bus)) == (ids[3], ids[4:])
    await bus.commands.call("ZREM", SHARD.expiry, *ids[:3])


@pytest.mark.keeps_keys
@pytest.mark.parametrize("completes", [False, True])
async def test_follower_that_cannot_end_here_comes_in_again_and_stops_nobody(bus: Bus, completes: bool) -> None:
    owner = await tasks.worker(bus)
    first, ids = await led(bus, 3)
    await spoil(bus, SHARD.log(ids[0]))
    await (cached.complete if completes else fails)(bus, owner, first)
    done = await on(bus, first)
    assert (done.answered, done.promoted) == ((2, 0) if completes else (0, 1))
    assert ids[0] not in await cached.followers(bus)
    arrived = [fields.get(b"t") for _, fields in await tasks.entries(bus, SHARD.arrivals)]
    assert ids[0].encode() in arrived


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [FLIGHT, FOLLOWERS, SHARD.arrivals, SHARD.expiry])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    first, _ = await led(bus, 2)
    await cached.complete(bus, owner, first)
    await cached.assert_refused_by(bus, key, lambda: on(bus, first))
