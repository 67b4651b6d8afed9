"""retire.lua: a worker that stops leaves nothing behind and loses nothing."""

import json

import pytest
from msgspec.structs import replace

from services.inference.scripts import Retired, retire, start
from services.scheduler.scripts import Dispatched, dispatch
from shared.bus.client import Bus
from shared.messages import Finished, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD


async def waiting(bus: Bus) -> list[bytes]:
    return list(await bus.commands.call("ZRANGE", tasks.BACKLOGS[1], 0, -1))


async def test_idle_worker_is_forgotten(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    assert await retire(bus, owner, running=False) == Retired(0, 0)
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker), SHARD.workers) == 0
    assert await retire(bus, owner, running=True) == Retired(0, 0)


async def test_unstarted_task_waits_again_at_its_old_place_uncharged(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await retire(bus, owner, running=False) == Retired(1, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"], hash["crashes"], hash["failures"]) == ("pending", "2", "0", "0")
    assert "history" not in hash, "it was no attempt"
    assert (await bus.commands.call("ZSCORE", tasks.BACKLOGS[1], hand.id)).decode() == hash["created_at_ms"]
    assert await tasks.wakes(bus) == [b"retire"]


async def test_running_task_stays_until_the_second_call_hands_it_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await retire(bus, owner, running=False) == Retired(0, 1)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1)) == "ok"
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"], hash["crashes"], hash["failures"]) == ("pending", "2", "0", "0")
    assert "owner" not in hash
    (attempt,) = hash["history"].splitlines()
    told = json.loads(attempt)
    assert (told["attempt"], told["worker"], told["why"], told["last"]) == (1, owner.worker, "drained", 1)
    assert int(hash["started_at_ms"]) == told["started_at_ms"] <= told["ended_at_ms"]
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.work(owner.worker)) == 0
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 2, 1)) == "fenced"
    assert await waiting(bus) == [hand.id.encode()]


async def test_worker_is_known_without_slots_as_long_as_it_holds_anything(bus: Bus) -> None:
    """Else, if it were killed now, nobody would look at its stream."""
    owner = await tasks.worker(bus, slots=4)
    await tasks.running(bus, owner)
    beat_ms, *_, rest = (await bus.commands.call("HGET", SHARD.workers, owner.worker)).split(b" ", 4)
    assert await retire(bus, owner, running=False) == Retired(0, 1)
    assert await bus.commands.call("HGET", SHARD.workers, owner.worker) == b" ".join((beat_ms, b"0 0 0", rest))
    await tasks.admitted(bus)
    assert await dispatch(bus, SHARD, tasks.CONFIG) == Dispatched(0, 1, 0)
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    assert await bus.commands.call("EXISTS", SHARD.workers, SHARD.work(owner.worker)) == 0


async def test_task_that_ends_between_the_calls_is_not_handed_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await retire(bus, owner, running=False)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    assert await retire(bus, owner, running=True) == Retired(0, 0)
    assert await waiting(bus) == []
    assert await bus.commands.call("EXISTS", SHARD.work(owner.worker)) == 0


@pytest.mark.parametrize(("word", "status"), [("cancelled", "499"), ("expired", "504")])
async def test_running_task_that_was_asked_to_stop_ends_instead_of_running_again(
    bus: Bus, word: str, status: str
) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
    await bus.commands.call("HSET", SHARD.task(hand.id), "stop", word)
    assert await retire(bus, owner, running=False) == Retired(0, 1)
    assert (await tasks.fields(bus, hand.id))["state"] == "processing", "its worker may still end it"
    assert await retire(bus, owner, running=True) == Retired(0, 0)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["last"]) == (word, status, "2")
    *_, (_, event) = await tasks.entries(bus, SHARD.log(hand.id))
    end = decode_event(event[b"e"])
    assert isinstance(end, Finished)
    assert (end.state, end.attempt, end.last, end.streamed) == (word, 1, 2, True)
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": hand.id.encode()}]
    assert await waiting(bus) == []
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.expiry, SHARD.work(owner.worker)) == 0


async def test_note_of_the_suspect_that_a_worker_had_goes_with_the_worker(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await bus.commands.call("HSET", SHARD.suspects, owner.worker, "task 1", "other", "task 2")
    await retire(bus, owner, running=True)
    assert await bus.commands.call("HKEYS", SHARD.suspects) == [b"other"]


async def test_second_run_hands_back_nothing_more(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.handed(bus, owner)
    await retire(bus, owner, running=True)
    before = await snapshot(bus)
    assert await retire(bus, owner, running=True) == Retired(0, 0)
    assert await snapshot(bus) == before


async def test_rival_nonce_does_not_take_back_what_this_worker_runs(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await retire(bus, replace(owner, nonce="other"), running=True)
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"
    assert await bus.commands.call("ZCARD", SHARD.leases) == 1


async def test_other_worker_gets_the_task_and_the_old_entry_is_stale(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    await retire(bus, owner, running=True)
    other = await tasks.worker(bus, "w2")
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    (again,) = await tasks.hands(bus, other)
    assert await start(bus, owner, [hand]) == ["stale"]
    (run,) = await start(bus, other, [again])
    assert not isinstance(run, str)


@pytest.mark.keeps_keys
async def test_spoiled_task_is_dropped_and_the_others_go_back(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.handed(bus, owner) for _ in range(2)]
    await spoil(bus, SHARD.task(spoiled.id))
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    assert await waiting(bus) == [good.id.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("kind", ["log", "outbox"])
async def test_stopped_task_that_cannot_be_told_of_is_left_to_its_lease_and_the_others_go_back(
    bus: Bus, kind: str
) -> None:
    owner = await tasks.worker(bus)
    stopped, good = await tasks.running(bus, owner, reply_to="orders"), await tasks.running(bus, owner)
    await bus.commands.call("HSET", SHARD.task(stopped.id), "stop", "cancelled")
    await spoil(bus, {"log": SHARD.log(stopped.id), "outbox": SHARD.outbox}[kind])
    before = await tasks.fields(bus, stopped.id)
    assert await retire(bus, owner, running=True) == Retired(1, 0)
    assert await tasks.fields(bus, stopped.id) == before
    assert await bus.commands.call("ZRANGE", SHARD.leases, 0, -1) == [stopped.id.encode()]
    assert await waiting(bus) == [good.id.encode()]


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "key",
    [
        *(SHARD.work("w1"), SHARD.workers, SHARD.suspects, SHARD.leases, SHARD.arrivals),
        *tasks.ORDER,
        *(SHARD.expiry, SHARD.attached, SHARD.later, SHARD.dead),
    ],
)
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    await tasks.running(bus, owner)
    await assert_refused_whole(bus, key, lambda: retire(bus, owner, running=True))
