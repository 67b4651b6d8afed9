"""start.lua: one nonce holds an epoch."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from services.inference.scripts import Running, start
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.messages import Finished, Started, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD


async def test_task_starts_with_spec_body_owner_and_lease(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    (run,) = await start(bus, owner, [hand])
    hash = await tasks.fields(bus, hand.id)
    assert isinstance(run, Running)
    assert (run.attempt, run.published, run.body, run.spec) == (1, 0, tasks.BODY, hash["spec"].encode())
    assert 0 <= run.waited_ms < tasks.LIMITS.lease_ms
    assert (hash["state"], hash["owner"], hash["worker"], hash["attempts"], hash["last"]) == (
        *("processing", owner.nonce, "w1", "1", "0"),
    )
    assert await bus.commands.call("ZSCORE", SHARD.leases, hand.id) is not None


async def test_start_is_told_on_the_bus_and_not_in_the_log(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    ((_, news),) = await tasks.entries(bus, SHARD.bus(0))
    assert decode_event(news[b"e"]) == Started(attempt=1, worker="w1")
    assert await bus.commands.call("EXISTS", SHARD.log(hand.id)) == 0


async def test_repeat_by_the_same_nonce_gets_the_same_answer_and_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    (first,) = await start(bus, owner, [hand])
    before = await snapshot(bus)
    (again,) = await start(bus, owner, [hand])
    assert isinstance(first, Running)
    assert isinstance(again, Running)
    assert replace(again, waited_ms=first.waited_ms) == first
    assert await snapshot(bus) == before


async def test_of_two_rivals_one_runs_and_the_other_is_stale(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    rival = replace(owner, nonce="other")
    (won,), (lost,) = await asyncio.gather(start(bus, owner, [hand]), start(bus, rival, [hand]))
    assert isinstance(won, Running)
    assert lost == "stale"


@pytest.mark.parametrize("step", [-1, 1])
async def test_other_epoch_is_stale_and_its_entry_is_cleared(bus: Bus, step: int) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner)
    assert await start(bus, owner, [replace(hand, epoch=hand.epoch + step)]) == ["stale"]
    assert (await tasks.fields(bus, hand.id))["state"] == "pending"
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert (await bus.commands.call("XPENDING", SHARD.work(owner.worker), "workers"))[0] == 0


async def test_ended_and_unknown_tasks_are_stale(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    done = await tasks.ended(bus, owner)
    unknown = replace(done, id=tasks.new_id())
    assert await start(bus, owner, [done, unknown]) == ["stale", "stale"]
    assert (await tasks.fields(bus, done.id))["state"] == "completed"


async def lose(bus: Bus, id: str) -> None:
    await bus.commands.call("ZADD", SHARD.leases, 1, id)
    assert (await reap(bus, SHARD, tasks.LIMITS)).running == 1
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1


async def test_second_attempt_is_told_what_the_first_published_and_numbers_go_on(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
    await lose(bus, hand.id)
    (again,) = await tasks.hands(bus, owner)
    (run,) = await start(bus, owner, [again])
    assert isinstance(run, Running)
    assert (run.attempt, run.published) == (2, 2)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["last"], hash["from"]) == ("2", "2")
    *_, (_, news) = await tasks.entries(bus, SHARD.bus(0))
    assert decode_event(news[b"e"]) == Started(attempt=2, worker="w1")
    assert len(await tasks.entries(bus, SHARD.log(hand.id))) == 1, "going on or starting over is said by rebase"
    assert await tasks.emit_one(bus, owner, tasks.emission(again, 1, 2, attempt=2)) == "ok"
    assert len(await tasks.entries(bus, SHARD.log(hand.id))) == 1
    assert await tasks.emit_one(bus, owner, tasks.emission(again, 3, 3, attempt=2)) == "ok"
    assert len(await tasks.entries(bus, SHARD.log(hand.id))) == 2


async def test_second_attempt_without_output_begins_at_the_first_chunk(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await lose(bus, hand.id)
    (run,) = await start(bus, owner, await tasks.hands(bus, owner))
    assert isinstance(run, Running)
    assert (run.attempt, run.published) == (2, 0)
    *_, (_, news) = await tasks.entries(bus, SHARD.bus(0))
    assert decode_event(news[b"e"]) == Started(attempt=2, worker="w1")
    assert await bus.commands.call("EXISTS", SHARD.log(hand.id)) == 0


async def test_repeat_of_a_later_start_gets_the_same_answer_too(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2))
    await lose(bus, hand.id)
    (again,) = await tasks.hands(bus, owner)
    (first,) = await start(bus, owner, [again])
    before = await snapshot(bus)
    (repeat,) = await start(bus, owner, [again])
    assert isinstance(first, Running)
    assert isinstance(repeat, Running)
    assert replace(repeat, waited_ms=first.waited_ms) == first
    assert await snapshot(bus) == before


async def test_worker_that_lost_its_run_after_output_starts_another_attempt_behind_it(bus: Bus) -> None:
    """The end could not be written for a minute; the entry comes again after the reconnect, before the lease is reaped.
    The same answer as before would let it number other output from 1, and emit would take it for a repeat."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
    (run,) = await start(bus, owner, [hand])
    assert isinstance(run, Running)
    assert (run.attempt, run.published) == (2, 2)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["last"], hash["epoch"], hash["attempts"]) == ("2", str(hand.epoch), "2")
    assert "crashes" not in hash, "nobody died"
    (attempt,) = [json.loads(line) for line in hash["history"].splitlines()]
    assert (attempt["attempt"], attempt["why"], attempt["last"]) == (1, "lost", 2)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 3, 3, attempt=2)) == "ok"
    assert len(await tasks.entries(bus, SHARD.log(hand.id))) == 2


async def pass_deadline(bus: Bus, id: str) -> None:
    await bus.commands.call("HSET", SHARD.task(id), "deadline_ms", 1)


async def test_task_past_its_deadline_expires_instead_of_starting(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    late, good = await tasks.handed(bus, owner, reply_to="orders"), await tasks.handed(bus, owner)
    await pass_deadline(bus, late.id)
    first, second = await start(bus, owner, [late, good])
    assert first == "stale"
    assert isinstance(second, Running)
    hash = await tasks.fields(bus, late.id)
    assert (hash["state"], hash["status"], "attempts" in hash) == ("expired", "504", False)
    assert json.loads(hash["result"])["error"]["code"] == "task_expired"
    ((_, event),) = await tasks.entries(bus, SHARD.log(late.id))
    end = decode_event(event[b"e"])
    assert isinstance(end, Finished)
    assert (end.attempt, end.last, end.state, end.status, end.streamed) == (0, 0, "expired", 504, False)
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": late.id.encode()}]
    assert await bus.commands.call("ZRANGE", SHARD.expiry, 0, -1) == [good.id.encode()]
    assert await bus.commands.call("ZRANGE", SHARD.leases, 0, -1) == [good.id.encode()]
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 1
    assert await start(bus, owner, [late]) == ["stale"]


async def test_repeat_past_the_deadline_still_gets_the_answer_that_was_lost(bus: Bus) -> None:
    """It runs: it is `due` that asks it to stop, and its worker that ends it."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await pass_deadline(bus, hand.id)
    (run,) = await start(bus, owner, [hand])
    assert isinstance(run, Running)
    assert run.attempt == 1
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"


@pytest.mark.parametrize(
    "kind", ["task", "log", "bus", "outbox", "leases", "work", "expiry", "attached", "later", "dead"]
)
@pytest.mark.keeps_keys
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, kind: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.handed(bus, owner, reply_to="orders")
    key = {
        "task": SHARD.task(hand.id),
        "log": SHARD.log(hand.id),
        "bus": SHARD.bus(0),
        "outbox": SHARD.outbox,
        "leases": SHARD.leases,
        "expiry": SHARD.expiry,
        "attached": SHARD.attached,
        "later": SHARD.later,
        "dead": SHARD.dead,
        "work": SHARD.work("w1"),
    }[kind]
    await assert_refused_whole(bus, key, lambda: start(bus, owner, [hand]))


@pytest.mark.keeps_keys
async def test_spoiled_task_does_not_disturb_its_neighbours(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.handed(bus, owner) for _ in range(2)]
    await spoil(bus, SHARD.task(spoiled.id))
    first, second = await start(bus, owner, [spoiled, good])
    assert first == SHARD.task(spoiled.id)
    assert isinstance(second, Running)
