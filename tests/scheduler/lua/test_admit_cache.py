"""admit.lua with what others have asked: an answer that is kept is given at once, one that is being made is waited for."""

import pytest
from msgspec import Raw

from services.scheduler.scripts import Arrival, Look, admit, due, reap, repair
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.lifecycle import Lane, State
from shared.messages import INLINE_RESULT_BYTES, NULL
from tests.support import cached, tasks
from tests.support.cached import DIGEST, FLIGHT, FOLLOWERS, KEPT, OTHER, RESULT, USAGE, take_in
from tests.support.redis import snapshot
from tests.support.tasks import LIMITS, SHARD


async def kept(bus: Bus, *, result: bytes = RESULT, chunks: int = 0, **how: object) -> str:
    """A task whose answer is kept."""
    owner = await tasks.worker(bus)
    id = await take_in(bus, expect="miss", **how)
    await cached.complete(bus, owner, id, result=result, chunks=chunks)
    return id


# -- an answer that is kept


async def test_first_of_its_kind_runs_and_its_answer_is_kept_for_its_time(bus: Bus) -> None:
    id = await take_in(bus, expect="miss", ttl_ms=30_000)
    assert await cached.leader(bus) == id
    assert 0 < await tasks.ttl_ms(bus, FLIGHT) <= 600_000
    await cached.complete(bus, await tasks.worker(bus), id)
    assert await bus.commands.call("GET", KEPT) == id.encode()
    assert 0 < await tasks.ttl_ms(bus, KEPT) <= 30_000
    assert await cached.leader(bus) == ""


async def test_the_same_again_gets_the_answer_at_once_and_takes_no_slot(bus: Bus) -> None:
    first = await kept(bus)
    before = await bus.commands.call("ZCARD", SHARD.expiry)
    again = await take_in(bus, expect="hit")
    fields = await tasks.fields(bus, again)
    assert (fields["state"], fields["status"], fields["result"], fields["used"]) == (
        "completed",
        "200",
        RESULT.decode(),
        "0",
    )
    assert (fields["served_from"], fields["cache_use"]) == (first, "hit")
    end = await cached.end_of(bus, again)
    assert (end.attempt, end.last, end.streamed, end.cache, end.finish_reason) == (0, 0, False, "hit", "stop")
    assert (bytes(end.result), bytes(end.usage)) == (RESULT, USAGE)
    assert await bus.commands.call("ZCARD", SHARD.expiry) == before
    assert await bus.commands.call("EXISTS", SHARD.waiting, *SHARD.turns, FLIGHT, FOLLOWERS) == 0
    assert [entry[1][b"e"] for entry in await tasks.entries(bus, SHARD.log(again))] == [fields["finished"].encode()]


async def test_hit_of_a_streamed_answer_brings_it_whole(bus: Bus) -> None:
    await kept(bus, chunks=3)
    end = await cached.end_of(bus, await take_in(bus, expect="hit"))
    assert (end.streamed, end.last, bytes(end.result), bytes(end.usage)) == (False, 0, RESULT, USAGE)


@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize(("more", "inline"), [(0, True), (1, False)])
async def test_large_answers_are_left_in_the_hash(bus: Bus, chunks: int, more: int, inline: bool) -> None:
    result = b'"' + b"x" * (INLINE_RESULT_BYTES - 2 + more) + b'"'
    await kept(bus, result=result, chunks=chunks)
    again = await take_in(bus, expect="hit")
    assert (await tasks.fields(bus, again))["result"] == result.decode()
    assert (await cached.end_of(bus, again)).result == (Raw(result) if inline else NULL)


async def test_hit_tells_the_session_and_the_outbox_and_counts_as_one_end(bus: Bus) -> None:
    await kept(bus)
    again = await take_in(bus, expect="hit", session="page", reply_to="orders", attached=True)
    assert [fields[b"t"] for _, fields in await tasks.entries(bus, SHARD.outbox)] == [again.encode()]
    told = [fields[b"e"] for _, fields in await tasks.entries(bus, SHARD.bus(0)) if fields[b"t"] == again.encode()]
    assert [b'"pending.v1"' in event or b'"finished.v1"' in event for event in told] == [True, True]
    assert await bus.commands.call("EXISTS", SHARD.attached, SHARD.expiry) == 0


async def test_a_hit_does_not_prolong_the_answers_life(bus: Bus) -> None:
    first = await kept(bus)
    await bus.commands.call("PEXPIRE", KEPT, 20_000)
    await take_in(bus, expect="hit")
    assert await bus.commands.call("GET", KEPT) == first.encode()
    assert await tasks.ttl_ms(bus, KEPT) <= 20_000


@pytest.mark.parametrize("lost", ["result", "hash", "kept"])
async def test_without_the_answer_it_runs(bus: Bus, lost: str) -> None:
    first = await kept(bus)
    if lost == "result":
        await bus.commands.call("HDEL", SHARD.task(first), "result")
    else:
        await bus.commands.call("DEL", SHARD.task(first) if lost == "hash" else KEPT)
    again = await take_in(bus, expect="miss")
    await cached.complete(bus, await tasks.worker(bus), again)
    assert await bus.commands.call("GET", KEPT) == again.encode()


async def test_refresh_runs_and_its_answer_replaces_the_kept_one(bus: Bus) -> None:
    await kept(bus)
    fresh = await take_in(bus, expect="refresh", wish="refresh")
    assert await take_in(bus, expect="hit"), "the old answer serves until then"
    await cached.complete(bus, await tasks.worker(bus), fresh, result=b'"new"')
    assert (await tasks.fields(bus, await take_in(bus, expect="hit")))["result"] == '"new"'


async def test_another_digest_is_another_answer(bus: Bus) -> None:
    """Tenants are part of the digest: this is what keeps them apart."""
    await kept(bus)
    await take_in(bus, expect="miss", digest=OTHER)


async def test_tasks_without_a_digest_are_queued_as_ever(bus: Bus) -> None:
    await kept(bus)
    before = set(await bus.commands.call("KEYS", "*"))
    await tasks.admitted(bus)
    assert {key for key in await bus.commands.call("KEYS", "*") if key not in before and b"cache" in key} == set()


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_only_a_completed_answer_is_kept(bus: Bus, state: State) -> None:
    owner, id = await tasks.worker(bus), await take_in(bus, expect="miss")
    await cached.end(bus, owner, await cached.run(bus, owner, id), state=state)
    assert await bus.commands.call("EXISTS", KEPT, FLIGHT) == 0
    await take_in(bus, expect="miss")


# -- one that is being made


@pytest.mark.parametrize("running", [False, True])
async def test_the_same_again_waits_for_the_one_in_flight(bus: Bus, running: bool) -> None:
    first = await take_in(bus, expect="miss")
    if running:
        await cached.run(bus, await tasks.worker(bus), first)
    again = await take_in(bus, expect="followed")
    assert await cached.followers(bus) == [again]
    assert (await tasks.fields(bus, again))["follows"] == DIGEST
    assert await bus.commands.call("ZSCORE", SHARD.backlog(Lane.NORMAL, "default"), again) is None
    assert await bus.commands.call("ZSCORE", SHARD.expiry, again) is not None


async def test_a_repeat_of_any_verdict_answers_the_same_and_writes_nothing(bus: Bus) -> None:
    ids = [await cached.asked(bus) for _ in range(3)]
    fresh = await cached.asked(bus, digest=OTHER, wish="refresh")
    page = [Arrival(id, f"1-{n}".encode()) for n, id in enumerate([*ids, fresh], 1)]
    await cached.entries_in(bus)
    verdicts = await admit(bus, SHARD, LIMITS, page)
    assert verdicts == ["miss", "followed", "followed", "refresh"]
    before = await snapshot(bus)
    assert await admit(bus, SHARD, LIMITS, page) == verdicts
    assert await snapshot(bus) == before


async def test_followers_are_answered_with_the_leaders_end(bus: Bus) -> None:
    owner, first = await tasks.worker(bus), await take_in(bus, expect="miss")
    ids = [await take_in(bus, expect="followed") for _ in range(3)]
    await cached.complete(bus, owner, first)
    assert await cached.lead_entries(bus) == [(DIGEST, first)]
    assert await cached.arrive(bus) == []
    for id in ids:
        fields = await tasks.fields(bus, id)
        assert (fields["state"], fields["cache_use"], fields["served_from"]) == ("completed", "followed", first)
        assert (await cached.end_of(bus, id)).cache == "followed"
    assert await bus.commands.call("EXISTS", FLIGHT, FOLLOWERS, SHARD.waiting, SHARD.expiry) == 0


async def test_one_of_a_higher_lane_runs_itself_and_leads_those_that_come(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    slow = await take_in(bus, expect="miss", lane=Lane.BATCH)
    waits = await take_in(bus, expect="followed", lane=Lane.BATCH)
    quick = await take_in(bus, expect="miss", lane=Lane.INTERACTIVE)
    assert await cached.leader(bus) == quick
    joins = await take_in(bus, expect="followed", lane=Lane.INTERACTIVE)
    await cached.arrive(bus)
    await bus.commands.call("ZREM", SHARD.backlog(Lane.BATCH, "default"), slow)  # it waits for long
    await cached.complete(bus, owner, quick)
    await cached.arrive(bus)
    assert await cached.states(bus, [slow, waits, quick, joins]) == ["pending", "completed", "completed", "completed"]


async def test_one_that_was_overtaken_answers_all_if_it_is_first(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    slow = await take_in(bus, expect="miss", lane=Lane.BATCH)
    hand = await cached.run(bus, owner, slow)
    quick = await take_in(bus, expect="miss", lane=Lane.INTERACTIVE)
    joins = await take_in(bus, expect="followed", lane=Lane.NORMAL)
    await cached.end(bus, owner, hand)
    await cached.arrive(bus)
    assert await cached.states(bus, [quick, joins]) == ["pending", "completed"]
    assert await cached.leader(bus) == quick


async def test_leader_in_its_line_stays_there_when_its_arrival_comes_twice(bus: Bus) -> None:
    """It was overtaken meanwhile: to follow now would give it two places."""
    slow = await take_in(bus, expect="miss", lane=Lane.BATCH)
    await take_in(bus, expect="miss", lane=Lane.INTERACTIVE)
    assert await admit(bus, SHARD, LIMITS, [Arrival(slow, b"1-1")]) == ["miss"]
    assert await cached.followers(bus) == []


async def test_leader_that_is_taken_back_goes_on_leading(bus: Bus) -> None:
    owner, first = await tasks.worker(bus), await take_in(bus, expect="miss")
    again = await take_in(bus, expect="followed")
    await cached.run(bus, owner, first)
    await bus.commands.call("ZADD", SHARD.leases, 1, first)
    await reap(bus, SHARD, LIMITS)
    await cached.arrive(bus)
    assert await cached.leader(bus) == first
    await cached.complete(bus, owner, first)
    await cached.arrive(bus)
    assert await cached.states(bus, [first, again]) == ["completed", "completed"]


async def test_one_that_has_run_is_not_looked_up_again(bus: Bus) -> None:
    """Its first chunks may be out: the answer of another one would not go on from them."""
    owner, first = await tasks.worker(bus), await take_in(bus, expect="miss")
    await bus.commands.call("HSET", SHARD.task(first), "attempts", 1)
    backlog = SHARD.backlog(Lane.NORMAL, "default")
    await bus.commands.call("ZREM", backlog, first)
    other = await cached.asked(bus)
    await bus.commands.call("DEL", FLIGHT)
    assert await cached.arrive(bus) == ["miss"]
    await cached.complete(bus, owner, other)
    assert await admit(bus, SHARD, LIMITS, [Arrival(first, b"1-1")]) == ["queued"]


async def test_flight_of_a_leader_that_is_gone_is_taken_over(bus: Bus) -> None:
    first = await take_in(bus, expect="miss")
    await bus.commands.call("DEL", SHARD.task(first))
    second = await take_in(bus, expect="miss")
    assert await cached.leader(bus) == second


# -- an end before the leader's


async def test_follower_that_is_cancelled_leaves_the_others_alone(bus: Bus) -> None:
    first = await take_in(bus, expect="miss")
    ids = [await take_in(bus, expect="followed") for _ in range(3)]
    assert await cancel(bus, SHARD, LIMITS, [ids[1]]) == ["cancelled"]
    assert await cached.followers(bus) == [ids[0], ids[2]]
    assert await cached.lead_entries(bus) == []
    assert await cached.leader(bus) == first


async def test_follower_keeps_its_own_deadline(bus: Bus) -> None:
    await take_in(bus, expect="miss")
    id = await take_in(bus, expect="followed", expires_in_s=60)
    await bus.commands.call("ZADD", SHARD.expiry, 1, id)
    assert (await due(bus, SHARD, LIMITS)).expired == 1
    assert await cached.states(bus, [id]) == ["expired"]
    assert await bus.commands.call("EXISTS", FOLLOWERS) == 0


# -- lost data


async def look(bus: Bus, id: str, before: str = "") -> str:
    (verdict,) = await repair(bus, SHARD, LIMITS, [Look(id, before)])
    return verdict


async def test_follower_of_one_that_has_not_ended_is_well(bus: Bus) -> None:
    await take_in(bus, expect="miss")
    id = await take_in(bus, expect="followed")
    assert [await look(bus, id), await look(bus, id, "0")] == ["well", "well"]


@pytest.mark.parametrize("lost", [FLIGHT, FOLLOWERS, "leader"])
async def test_followers_that_lost_their_leader_come_in_again_and_one_leads(bus: Bus, lost: str) -> None:
    first = await take_in(bus, expect="miss")
    ids = [await take_in(bus, expect="followed") for _ in range(2)]
    await bus.commands.call("ZREM", SHARD.backlog(Lane.NORMAL, "default"), first)
    await bus.commands.call("DEL", SHARD.task(first) if lost == "leader" else lost)
    if lost == FOLLOWERS:
        await bus.commands.call("DEL", SHARD.task(first), FLIGHT)
    assert [await look(bus, id) for id in ids] == ["0", "0"]
    assert [await look(bus, id, "0") for id in ids] == ["repaired", "repaired"]
    assert await cached.arrive(bus) == ["miss", "followed"]
    assert await cached.leader(bus) == ids[0]
    assert await cached.followers(bus) == [ids[1]]
    assert [await look(bus, id, "0") for id in ids] == ["well", "well"]


# -- keys of another type


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [FLIGHT, KEPT, FOLLOWERS])
async def test_task_is_put_off_while_a_key_of_its_flight_holds_another_type(bus: Bus, key: str) -> None:
    id = await cached.asked(bus)
    await cached.entries_in(bus)
    await bus.commands.call("DEL", key)
    await bus.commands.call("LPUSH", key, "not ours")
    assert await admit(bus, SHARD, LIMITS, [Arrival(id, b"1-1")]) == [f"wrongtype {key}"]
    assert await bus.commands.call("ZSCORE", SHARD.later, id) is not None


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [FLIGHT, KEPT, FOLLOWERS])
async def test_end_is_refused_whole_while_a_key_holds_another_type(bus: Bus, key: str) -> None:
    id = await take_in(bus, expect="miss")
    await cached.assert_refused_by(bus, key, lambda: cancel(bus, SHARD, LIMITS, [id]))


@pytest.mark.parametrize("size", [4, INLINE_RESULT_BYTES + 1])
async def test_an_answer_that_is_not_json_is_given_from_the_hash_alone(bus: Bus, size: int) -> None:
    id, owner = await take_in(bus, expect="miss"), await tasks.worker(bus)
    await cached.complete(bus, owner, id, result=b"R" * size, content_type="audio/wav")
    again = await take_in(bus, expect="hit")
    finished = await cached.end_of(bus, again)
    assert (finished.content_type, finished.result, finished.cache) == ("audio/wav", NULL, "hit")
    assert (await tasks.fields(bus, again))["result"] == "R" * size


@pytest.mark.parametrize("chunks", [0, 2])
async def test_a_response_bears_the_id_of_the_task_that_it_answers(bus: Bus, chunks: int) -> None:
    id, owner = await take_in(bus, expect="miss"), await tasks.worker(bus)
    made = f'{{"id":"resp_{id}","said":"%1 resp_{id}"}}'
    await cached.complete(bus, owner, id, result=made.encode(), chunks=chunks)
    again = await take_in(bus, expect="hit")
    ours = made.replace(f'"resp_{id}"', f'"resp_{again}"')
    assert (
        (await tasks.fields(bus, again))["result"] == bytes((await cached.end_of(bus, again)).result).decode() == ours
    )
