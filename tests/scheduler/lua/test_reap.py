"""reap.lua: what silent workers held goes back, and they can change nothing afterwards."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from services.inference.scripts import Hand, Owner, beat, start
from services.scheduler.scripts import Reaped, dispatch, reap
from shared.bus.client import Bus
from shared.errors import WrongKeyType
from shared.messages import Finished, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD

NOTHING = Reaped(0, 0, 0, 0)


async def lose_lease(bus: Bus, hand: Hand) -> None:
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)


async def silence(bus: Bus, owner: Owner) -> None:
    """The worker's last beat was too long ago."""
    seconds, _ = await bus.commands.call("TIME")
    await bus.commands.call(
        "HSET", SHARD.workers, owner.worker, f"{int(seconds) * 1000 - tasks.LIMITS.lease_ms - 1} 4 {{}}"
    )


async def waiting(bus: Bus) -> list[bytes]:
    return list(await bus.commands.call("ZRANGE", tasks.BACKLOGS[1], 0, -1))


async def test_nothing_to_reap_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.running(bus, owner)
    await tasks.handed(bus, owner)
    before = await snapshot(bus)
    assert await reap(bus, SHARD, tasks.LIMITS) == NOTHING
    assert await snapshot(bus) == before


async def test_running_task_without_lease_waits_again_at_its_old_place(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(1, 0, 0, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"], hash["crashes"], hash["attempts"]) == ("pending", "2", "1", "1")
    assert "owner" not in hash
    assert "worker" not in hash
    (attempt,) = [json.loads(line) for line in hash["history"].splitlines()]
    assert (attempt["attempt"], attempt["worker"], attempt["why"], attempt["last"]) == (1, owner.worker, "lost", 0)
    assert int(hash["started_at_ms"]) == attempt["started_at_ms"] <= attempt["ended_at_ms"]
    score = await bus.commands.call("ZSCORE", tasks.BACKLOGS[1], hand.id)
    assert score.decode() == hash["created_at_ms"]
    assert await bus.commands.call("ZCARD", SHARD.leases) == 0
    assert await tasks.wakes(bus) == [b"reap"]


async def test_second_run_and_rivals_take_a_task_back_once(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    first, second = await asyncio.gather(reap(bus, SHARD, tasks.LIMITS), reap(bus, SHARD, tasks.LIMITS))
    assert (first, second) == (Reaped(1, 0, 0, 0), NOTHING)
    assert (await tasks.fields(bus, hand.id))["epoch"] == "2"


async def lose_workers(bus: Bus, times: int) -> Hand:
    """A task that has lost its worker `times` times, and whose lease is lost once more."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    for _ in range(times):
        await lose_lease(bus, hand)
        assert (await reap(bus, SHARD, tasks.LIMITS)).running == 1
        assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
        (hand,) = await tasks.hands(bus, owner)
        await start(bus, owner, [hand])
    await lose_lease(bus, hand)
    return hand


async def test_task_whose_workers_die_is_tried_again_up_to_the_limit(bus: Bus) -> None:
    hand = await lose_workers(bus, tasks.LIMITS.crashes - 2)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(1, 0, 0, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["crashes"]) == ("pending", str(tasks.LIMITS.crashes - 1))
    assert await bus.commands.call("EXISTS", SHARD.dead) == 0


async def test_task_that_kills_too_many_workers_is_quarantined_as_a_dead_letter(bus: Bus) -> None:
    hand = await lose_workers(bus, tasks.LIMITS.crashes - 1)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(1, 0, 0, 1)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["crashes"]) == ("failed", "500", str(tasks.LIMITS.crashes))
    assert json.loads(hash["result"])["error"]["code"] == "task_quarantined"
    assert [json.loads(line)["attempt"] for line in hash["history"].splitlines()] == [1, 2, 3]
    ((_, letter),) = await tasks.entries(bus, SHARD.dead)
    assert {name.decode(): value.decode() for name, value in letter.items()} == {
        "k": "task", "t": hand.id, "code": "task_quarantined", "reason": json.loads(hash["result"])["error"]["message"],
        "history": hash["history"], "spec": hash["spec"], "body": hash["body"],
    }  # fmt: skip
    end = decode_event(hash["finished"].encode())
    assert isinstance(end, Finished)
    assert (end.attempt, end.state, end.error and end.error.code) == (3, "failed", "task_quarantined")
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": hand.id.encode()}]
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.expiry, *tasks.BACKLOGS) == 0
    assert await reap(bus, SHARD, tasks.LIMITS) == NOTHING
    assert len(await tasks.entries(bus, SHARD.dead)) == 1


@pytest.mark.parametrize(("word", "status"), [("cancelled", "499"), ("expired", "504")])
async def test_lost_task_that_was_asked_to_stop_ends_instead_of_running_again(bus: Bus, word: str, status: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
    await bus.commands.call("HSET", SHARD.task(hand.id), "stop", word)
    await lose_lease(bus, hand)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(1, 0, 0, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"]) == (word, status)
    *_, (_, event) = await tasks.entries(bus, SHARD.log(hand.id))
    assert event[b"e"].decode() == hash["finished"]
    assert await waiting(bus) == []
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.expiry, SHARD.dead) == 0


async def test_lease_is_as_long_as_configured(bus: Bus) -> None:
    brief = replace(tasks.LIMITS, lease_s=1.0)
    owner = await tasks.worker(bus)
    seconds, _ = await bus.commands.call("TIME")
    await bus.commands.call("HSET", SHARD.workers, owner.worker, f"{int(seconds) * 1000 - brief.lease_ms - 1} 4 {{}}")
    assert await reap(bus, SHARD, tasks.LIMITS) == NOTHING
    assert await reap(bus, SHARD, brief) == Reaped(0, 0, 1, 0)


async def test_worker_that_wakes_up_changes_nothing_and_frees_its_slot(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    await reap(bus, SHARD, tasks.LIMITS)
    before = await tasks.fields(bus, hand.id)
    assert await beat(bus, owner, tasks.room(4), b"{}", [(hand.id, hand.epoch)]) == {hand.id: "fenced"}
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1)) == "fenced"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert await waiting(bus) == [hand.id.encode()]
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_unstarted_tasks_of_a_silent_worker_go_to_another_one_uncharged(bus: Bus) -> None:
    lost = await tasks.worker(bus, "lost")
    hand = await tasks.handed(bus, lost)
    await silence(bus, lost)
    other = await tasks.worker(bus, "other")
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(0, 1, 1, 0)
    hash = await tasks.fields(bus, hand.id)
    assert hash["crashes"] == "0"
    assert "history" not in hash, "it was no attempt"
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    (again,) = await tasks.hands(bus, other)
    assert (again.id, again.epoch) == (hand.id, hand.epoch + 2)
    assert await start(bus, lost, [hand]) == ["stale"]


async def test_silent_worker_is_forgotten_with_its_stream(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await bus.commands.call("HSET", SHARD.suspects, owner.worker, "task 1")
    await silence(bus, owner)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(0, 0, 1, 0)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker), SHARD.workers, SHARD.suspects) == 0
    assert await reap(bus, SHARD, tasks.LIMITS) == NOTHING


async def test_silent_worker_keeps_what_it_runs_until_the_lease_ends(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await silence(bus, owner)
    assert await reap(bus, SHARD, tasks.LIMITS) == NOTHING
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"
    await lose_lease(bus, hand)
    assert await reap(bus, SHARD, tasks.LIMITS) == Reaped(1, 0, 1, 0)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker)) == 0


async def test_lease_of_a_task_that_has_ended_is_only_removed(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    await lose_lease(bus, hand)
    await reap(bus, SHARD, tasks.LIMITS)
    assert (await tasks.fields(bus, hand.id))["state"] == "completed"
    assert await waiting(bus) == []


async def test_one_call_is_bounded(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    for hand in [await tasks.running(bus, owner) for _ in range(3)]:
        await lose_lease(bus, hand)
    assert await reap(bus, SHARD, tasks.LIMITS, 2) == Reaped(2, 0, 0, 0)
    assert await reap(bus, SHARD, tasks.LIMITS, 2) == Reaped(1, 0, 0, 0)


@pytest.mark.keeps_keys
async def test_spoiled_task_is_passed_over(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.running(bus, owner) for _ in range(2)]
    for hand in (spoiled, good):
        await lose_lease(bus, hand)
    await spoil(bus, SHARD.task(spoiled.id))
    await silence(bus, owner)
    assert (await reap(bus, SHARD, tasks.LIMITS)).workers == 1
    assert await waiting(bus) == [good.id.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("kind", ["log", "bus", "outbox"])
async def test_task_that_cannot_be_told_of_keeps_its_lease_until_it_can(bus: Bus, kind: str) -> None:
    """It would be half ended: told in one place and not in the other."""
    owner = await tasks.worker(bus)
    spoiled, good = await tasks.running(bus, owner, reply_to="orders"), await tasks.running(bus, owner)
    key = {"log": SHARD.log(spoiled.id), "bus": SHARD.bus(0), "outbox": SHARD.outbox}[kind]
    await spoil(bus, key)
    for hand in (spoiled, good):
        await lose_lease(bus, hand)
    await reap(bus, SHARD, tasks.LIMITS)
    assert (await tasks.fields(bus, spoiled.id))["state"] == "processing"
    assert await waiting(bus) == ([] if kind == "bus" else [good.id.encode()])
    await bus.commands.call("DEL", key)
    assert (await reap(bus, SHARD, tasks.LIMITS)).running == (2 if kind == "bus" else 1)
    assert (await tasks.fields(bus, spoiled.id))["state"] == "pending"


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "key",
    [
        *(SHARD.leases, SHARD.workers, SHARD.suspects, SHARD.arrivals),
        *tasks.ORDER,
        *(SHARD.expiry, SHARD.attached, SHARD.later, SHARD.dead),
    ],
)
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    await lose_lease(bus, await tasks.running(bus, owner))
    await tasks.handed(bus, owner)
    await silence(bus, owner)
    await assert_refused_whole(bus, key, lambda: reap(bus, SHARD, tasks.LIMITS))


@pytest.mark.keeps_keys
async def test_spoiled_stream_of_a_silent_worker_is_named_after_its_running_tasks_are_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose_lease(bus, hand)
    await silence(bus, owner)
    await spoil(bus, SHARD.work(owner.worker))
    with pytest.raises(WrongKeyType):
        await reap(bus, SHARD, tasks.LIMITS)
    assert await waiting(bus) == [hand.id.encode()]
