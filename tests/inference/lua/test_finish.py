"""finish.lua: one terminal transition, with everything that follows from it."""

import pytest
from msgspec.structs import replace

from services.inference.scripts import finish, start
from services.scheduler.scripts import Arrival, admit, dispatch, reap
from shared.bus.client import Bus
from shared.lifecycle import State
from shared.messages import Chunks, Finished, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import SHARD, emission, emit_one, ending, finish_one


async def test_end_is_in_the_hash_the_log_and_on_the_bus(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await finish_one(bus, owner, ending(hand, 1, 2, journal=b"[7]")) == "ok"
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["last"], hash["result"]) == ("completed", "200", "2", '{"said":"yes"}')
    assert int(hash["finished_at_ms"]) >= int(hash["first_token_at_ms"]) >= int(hash["created_at_ms"])
    log = await tasks.entries(bus, SHARD.log(hand.id))
    assert [type(decode_event(event[b"e"])) for _, event in log] == [Chunks, Finished]
    assert [event.get(b"j") for _, event in log] == [b"[7]", None]
    assert [id for id, _ in await tasks.entries(bus, SHARD.bus(0))][-2:] == [id for id, _ in log]


async def test_keys_of_the_task_expire_and_its_lease_and_work_entry_are_gone(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    assert 0 < await tasks.ttl_ms(bus, SHARD.task(hand.id)) <= tasks.LIMITS.results_kept_s * 1000
    assert 0 < await tasks.ttl_ms(bus, SHARD.log(hand.id)) <= tasks.LIMITS.log_kept_s * 1000
    assert await bus.commands.call("EXISTS", SHARD.leases, SHARD.expiry) == 0
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert (await bus.commands.call("XPENDING", SHARD.work(owner.worker), "workers"))[0] == 0


async def test_repeat_is_ok_and_writes_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    await finish_one(bus, owner, ending(hand, 1, 1))
    before = await snapshot(bus)
    failed = replace(ending(hand, 1, 1), state=State.FAILED, status=500)
    assert await finish_one(bus, owner, ending(hand, 1, 1)) == "ok"
    assert await finish_one(bus, owner, failed) == "ok"
    assert await snapshot(bus) == before


async def test_tail_joins_what_was_emitted_and_overlap_is_dropped(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    joined, known, none = [await tasks.running(bus, owner) for _ in range(3)]
    for hand in (joined, known, none):
        await emit_one(bus, owner, emission(hand, 1, 2))
    assert await finish_one(bus, owner, ending(joined, 3, 4)) == "ok"
    assert await finish_one(bus, owner, ending(known, 1, 2)) == "ok"  # the emit's answer was lost
    assert await finish_one(bus, owner, ending(none, 3, 2)) == "ok"
    assert [len(await tasks.entries(bus, SHARD.log(hand.id))) for hand in (joined, known, none)] == [3, 2, 2]


@pytest.mark.parametrize(("first", "last"), [(4, 5), (2, 3), (1, 3), (4, 3), (2, 1), (1, 0)])
async def test_tail_that_does_not_join_is_refused_with_what_was_written(bus: Bus, first: int, last: int) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 2))
    before = await snapshot(bus)
    assert await finish_one(bus, owner, ending(hand, first, last)) == "gap 2"
    assert await snapshot(bus) == before
    assert await finish_one(bus, owner, ending(hand, 3, 3)) == "ok"


@pytest.mark.parametrize(
    ("chunks", "state", "tokens", "used"),
    [
        (0, State.COMPLETED, 0, "as charged"),
        (3, State.COMPLETED, 0, "prompt and chunks"),
        (3, State.FAILED, 0, "prompt and chunks"),
        (0, State.FAILED, 0, "nothing"),
        (3, State.COMPLETED, 7, "as counted"),
    ],
)
async def test_what_its_engine_does_not_count_is_estimated(
    bus: Bus, chunks: int, state: State, tokens: int, used: str
) -> None:
    owner = await tasks.worker(bus)
    await tasks.admitted(bus, tokens_in=100, tokens_out=300)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    assert await finish_one(bus, owner, ending(hand, 1, chunks, state=state, tokens=tokens)) == "ok"
    fields = await tasks.fields(bus, hand.id)
    charged = int(float(fields["charge"].split()[0]))
    assert charged > 103
    expected = {"as charged": charged, "prompt and chunks": 100 + chunks, "nothing": 0, "as counted": tokens}[used]
    assert int(fields["used"]) == expected


async def test_rival_nonce_is_fenced_and_ends_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    before = await tasks.fields(bus, hand.id)
    assert await finish_one(bus, replace(owner, nonce="other"), ending(hand, 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert await finish_one(bus, owner, ending(hand, 1, 1)) == "ok"


@pytest.mark.parametrize("step", [-1, 1])
async def test_other_epoch_is_fenced_and_its_slot_is_free(bus: Bus, step: int) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    before = await tasks.fields(bus, hand.id)
    assert await finish_one(bus, owner, ending(replace(hand, epoch=hand.epoch + step), 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_worker_that_slept_while_its_task_was_ended_is_fenced_and_its_slot_is_free(bus: Bus) -> None:
    """It must not take its own result, which nobody will see, for written."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    await bus.commands.call("HSET", SHARD.task(hand.id), "stop", "cancelled")
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, tasks.LIMITS)
    before = await tasks.fields(bus, hand.id)
    assert before["state"] == "cancelled"
    assert await finish_one(bus, owner, ending(hand, 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert len(await tasks.entries(bus, SHARD.outbox)) == 1
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_attached_task_that_ends_is_no_longer_waited_for(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.attached, 1, hand.id)
    await finish_one(bus, owner, ending(hand, 1, 1))
    assert await bus.commands.call("EXISTS", SHARD.attached) == 0


async def test_unknown_task_is_fenced_and_made_by_nobody(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = replace(await tasks.ended(bus, owner), id=tasks.new_id())
    assert await finish_one(bus, owner, ending(hand, 1, 1)) == "fenced"
    assert await tasks.fields(bus, hand.id) == {}


async def test_of_two_attempts_only_the_later_one_ends_the_task(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.leases, 1, first.id)
    await reap(bus, SHARD, tasks.LIMITS)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (second,) = await tasks.hands(bus, owner)
    await start(bus, owner, [second])
    page = [ending(first, 1, 1), ending(second, 1, 1, attempt=2)]
    assert await finish(bus, owner, page) == ["fenced", "ok"]
    ends = [e for _, e in await tasks.entries(bus, SHARD.log(first.id)) if b"finished.v1" in e[b"e"]]
    assert len(ends) == 1


async def test_only_a_task_with_a_reply_stream_enters_the_outbox(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.ended(bus, owner)
    hand = await tasks.running(bus, owner, reply_to="orders")
    await finish_one(bus, owner, ending(hand, 1, 0))
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": hand.id.encode()}]


async def test_freed_slot_wakes_the_scheduler_when_somebody_waits(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=2)
    first, second = [await tasks.running(bus, owner) for _ in range(2)]
    await admit(bus, SHARD, tasks.LIMITS, [Arrival("", entry) for entry, _ in await tasks.entries(bus, SHARD.arrivals)])
    await finish_one(bus, owner, ending(first, 1, 0))
    assert await tasks.wakes(bus) == []
    await tasks.admitted(bus)
    await finish_one(bus, owner, ending(second, 1, 0))
    assert await tasks.wakes(bus) == [b"slots"]


async def test_arrival_that_waits_anyway_is_wake_up_enough(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await tasks.admitted(bus)
    await tasks.submitted(bus)
    await finish_one(bus, owner, ending(hand, 1, 0))
    assert b"slots" not in await tasks.wakes(bus)


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "kind",
    ["task", "log", "bus", "leases", "expiry", "attached", "later", "dead", "work", "outbox", "in", "backlog"],
)
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, kind: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    key = {
        "task": SHARD.task(hand.id),
        "log": SHARD.log(hand.id),
        "bus": SHARD.bus(0),
        "leases": SHARD.leases,
        "expiry": SHARD.expiry,
        "attached": SHARD.attached,
        "later": SHARD.later,
        "dead": SHARD.dead,
        "work": SHARD.work("w1"),
        "outbox": SHARD.outbox,
        "in": SHARD.arrivals,
        "backlog": tasks.BACKLOGS[1],
        "turns": SHARD.turns[2],
    }[kind]
    await assert_refused_whole(bus, key, lambda: finish(bus, owner, [ending(hand, 1, 1)]))


@pytest.mark.keeps_keys
async def test_spoiled_neighbours_do_not_keep_a_task_from_ending(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    gone, unlogged, unreplied, good = (
        await tasks.running(bus, owner),
        await tasks.running(bus, owner),
        await tasks.running(bus, owner, reply_to="orders"),
        await tasks.running(bus, owner),
    )
    for key in (SHARD.task(gone.id), SHARD.log(unlogged.id), SHARD.outbox):
        await spoil(bus, key)
    page = [ending(hand, 1, 1) for hand in (gone, unlogged, unreplied, good)]
    assert await finish(bus, owner, page) == [
        f"wrongtype {SHARD.task(gone.id)}",
        f"wrongtype {SHARD.log(unlogged.id)}",
        f"wrongtype {SHARD.outbox}",
        "ok",
    ]


async def test_ended_task_of_a_session_is_in_its_list_even_if_that_had_expired(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, session="s1")
    await bus.commands.call("DEL", SHARD.session("s1"))
    assert await finish_one(bus, owner, ending(hand, 1, 0)) == "ok"
    assert await bus.commands.call("ZRANGE", SHARD.session("s1"), 0, -1) == [hand.id.encode()]
    assert 0 < await tasks.ttl_ms(bus, SHARD.session("s1")) <= tasks.LIMITS.results_kept_s * 1000
