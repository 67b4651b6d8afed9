"""rebase.lua: an attempt says what it goes on behind, before its first chunk."""

import pytest
from msgspec.structs import replace

from services.inference.scripts import Hand, Owner, Running, rebase, start
from services.scheduler.scripts import dispatch, reap
from shared.bus.client import Bus
from shared.messages import Chunks, Event, Reset, Resumed, decode_event
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot
from tests.support.tasks import LIMITS, SHARD, emission, emit_one


async def second_attempt(bus: Bus, chunks: int = 2) -> tuple[Owner, Hand]:
    """A task that runs again, after a worker that published something died."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    if chunks:
        await emit_one(bus, owner, emission(hand, 1, chunks))
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, LIMITS)
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    (again,) = await tasks.hands(bus, owner)
    (verdict,) = await start(bus, owner, [again])
    assert isinstance(verdict, Running)
    assert (verdict.attempt, verdict.published) == (2, chunks)
    return owner, again


async def events(bus: Bus, id: str) -> list[Event]:
    return [decode_event(fields[b"e"]) for _, fields in await tasks.entries(bus, SHARD.log(id))]


async def test_attempt_that_goes_on_says_so_live_and_in_the_log_under_one_id(bus: Bus) -> None:
    owner, hand = await second_attempt(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=2) == "ok"
    assert (await events(bus, hand.id))[-1] == Resumed(attempt=2, last=2)
    assert (await tasks.entries(bus, SHARD.log(hand.id)))[-1][0] == (await tasks.entries(bus, SHARD.bus(0)))[-1][0]
    assert await emit_one(bus, owner, emission(hand, 3, 3, attempt=2)) == "ok"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 4, 4, attempt=2)) == "ok"


async def test_attempt_that_starts_over_says_so_and_counts_from_one(bus: Bus) -> None:
    owner, hand = await second_attempt(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=0) == "ok"
    assert await emit_one(bus, owner, emission(hand, 3, 3, attempt=2)) == "gap 0"
    assert await emit_one(bus, owner, emission(hand, 1, 1, attempt=2)) == "ok"
    told = await events(bus, hand.id)
    assert told[1] == Reset(attempt=2, why="retry")
    assert [event.first for event in told if isinstance(event, Chunks)] == [1, 1]


async def test_attempt_that_finds_it_cannot_go_on_starts_over(bus: Bus) -> None:
    owner, hand = await second_attempt(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=2) == "ok"
    assert await rebase(bus, owner, hand, attempt=2, behind=0) == "ok"
    assert [type(event) for event in await events(bus, hand.id)] == [Chunks, Resumed, Reset]


@pytest.mark.parametrize("behind", [0, 2])
async def test_repeat_is_ok_and_says_nothing_twice(bus: Bus, behind: int) -> None:
    owner, hand = await second_attempt(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=behind) == "ok"
    assert await emit_one(bus, owner, emission(hand, behind + 1, behind + 1, attempt=2)) == "ok"
    before = await snapshot(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=behind) == "ok"
    assert await snapshot(bus) == before


@pytest.mark.parametrize("behind", [1, 3])
async def test_attempt_can_go_on_only_behind_all_that_was_published(bus: Bus, behind: int) -> None:
    owner, hand = await second_attempt(bus)
    before = await snapshot(bus)
    assert await rebase(bus, owner, hand, attempt=2, behind=behind) == "gap 2"
    assert await snapshot(bus) == before


async def test_repeated_start_gets_the_same_answer_after_it(bus: Bus) -> None:
    owner, hand = await second_attempt(bus)
    for behind in (2, 0):
        await rebase(bus, owner, hand, attempt=2, behind=behind)
        (verdict,) = await start(bus, owner, [hand])
        assert isinstance(verdict, Running)
        assert (verdict.attempt, verdict.published) == (2, behind)


async def test_next_attempt_goes_on_behind_what_this_one_stands_on(bus: Bus) -> None:
    owner, hand = await second_attempt(bus)
    await rebase(bus, owner, hand, attempt=2, behind=0)
    await emit_one(bus, owner, emission(hand, 1, 1, attempt=2))
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, LIMITS)
    await dispatch(bus, SHARD, replace(tasks.CONFIG, limits=replace(LIMITS, crashes=9)))
    (again,) = await tasks.hands(bus, owner)
    (verdict,) = await start(bus, owner, [again])
    assert isinstance(verdict, Running)
    assert (verdict.attempt, verdict.published) == (3, 1)


@pytest.mark.parametrize("wrong", ["nonce", "epoch", "ended", "unknown"])
async def test_who_does_not_hold_the_task_is_fenced_and_says_nothing(bus: Bus, wrong: str) -> None:
    owner, hand = await second_attempt(bus)
    if wrong == "ended":
        await tasks.finish_one(bus, owner, tasks.ending(hand, 3, 2, attempt=2))
    rival = replace(owner, nonce="other") if wrong == "nonce" else owner
    other = {"epoch": replace(hand, epoch=hand.epoch - 1), "unknown": replace(hand, id=tasks.new_id())}.get(wrong, hand)
    before = await snapshot(bus)
    assert await rebase(bus, rival, other, attempt=2, behind=2) == "fenced"
    assert await snapshot(bus) == before


@pytest.mark.keeps_keys
@pytest.mark.parametrize("kind", ["task", "log", "bus"])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, kind: str) -> None:
    owner, hand = await second_attempt(bus)
    key = {"task": SHARD.task(hand.id), "log": SHARD.log(hand.id), "bus": SHARD.bus(0)}[kind]

    async def call() -> list[str]:
        return [await rebase(bus, owner, hand, attempt=2, behind=2)]

    await assert_refused_whole(bus, key, call)
