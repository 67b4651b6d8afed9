"""release.lua: a worker gives a task up with all it has made; it is tried again, or that was the last try."""

import msgspec
import pytest
from msgspec.structs import replace

from services.inference.scripts import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, Hand, Owner, Release, release, start
from services.scheduler.scripts import dispatch, due, reap
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.config import Limits
from shared.lifecycle import State
from shared.messages import Chunks, Finished, decode_event
from shared.record import Attempt
from tests.support import tasks
from tests.support.redis import assert_refused_whole, spoil
from tests.support.tasks import LIMITS, SHARD, emission, emit_one

NO_FAILURES = Limits(failures=0, results_kept_s=600, log_kept_s=60)


def given_up(hand: Hand, first: int, last: int, *, charge: str = "none", why: str = "drained") -> Release:
    """With the tail `first`..`last`; an empty tail if first is above last."""
    tail = tasks.chunks_event(first, last) if first <= last else b""
    finished = tasks.finished_event(last, state=State.FAILED)
    return Release(
        hand.id, hand.epoch, hand.entry, first, last, tail, b"", 20, charge, why, 500, 503, b'{"no":1}', finished
    )


async def release_one(bus: Bus, owner: Owner, one: Release) -> str:
    (verdict,) = await release(bus, owner, [one])
    return verdict


async def history(bus: Bus, id: str) -> list[Attempt]:
    text = (await tasks.fields(bus, id)).get("history", "")
    return [msgspec.json.decode(line, type=Attempt) for line in text.splitlines()]


async def run_again(bus: Bus, owner: Owner) -> Hand:
    assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    return hand


async def dead_letters(bus: Bus) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in await tasks.entries(bus, SHARD.dead)]


async def test_drained_task_waits_at_its_old_place_uncharged_with_what_it_has_made(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 2))
    assert await release_one(bus, owner, given_up(hand, 3, 4)) == "again"
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["epoch"], hash["last"], hash["crashes"], hash["failures"]) == (
        "pending",
        "2",
        "4",
        "0",
        "0",
    )
    assert not {"owner", "worker"} & hash.keys()
    assert (await bus.commands.call("ZSCORE", tasks.BACKLOGS[1], hand.id)).decode() == hash["created_at_ms"]
    log = [decode_event(fields[b"e"]) for _, fields in await tasks.entries(bus, SHARD.log(hand.id))]
    assert [(event.first, event.last) for event in log if isinstance(event, Chunks)] == [(1, 2), (3, 4)]
    assert await bus.commands.call("EXISTS", SHARD.leases) == 0
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert await tasks.wakes(bus) == [b"release"]


async def test_history_tells_of_every_attempt_that_was_not_the_last(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await release_one(bus, owner, given_up(hand, 1, 2))
    again = await run_again(bus, owner)
    await release_one(bus, owner, given_up(again, 3, 2, charge="crash", why="engine_died"))
    told = await history(bus, hand.id)
    assert [(a.attempt, a.worker, a.why, a.last) for a in told] == [
        (1, "w1", "drained", 2),
        (2, "w1", "engine_died", 2),
    ]
    assert all(attempt.started_at_ms <= attempt.ended_at_ms for attempt in told)


async def test_failed_task_is_tried_again_later_with_jitter_below_a_doubling_pause(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    for failures, most_ms in ((1, FIRST_PAUSE_MS), (2, 2 * FIRST_PAUSE_MS), (3, 4 * FIRST_PAUSE_MS)):
        before_ms = await now_ms(bus)
        assert await release_one(bus, owner, given_up(hand, 1, 0, charge="failure", why="overloaded")) == "later"
        due_ms = int(await bus.commands.call("ZSCORE", SHARD.later, hand.id))
        assert before_ms + most_ms // 2 <= due_ms <= await now_ms(bus) + most_ms // 2
        assert (await tasks.fields(bus, hand.id))["failures"] == str(failures)
        assert await bus.commands.call("EXISTS", *tasks.BACKLOGS) == 0
        await bus.commands.call("ZADD", SHARD.later, 1, hand.id)
        await due(bus, SHARD, LIMITS)
        await tasks.admit_all(bus)
        hand = await run_again(bus, owner)


async def test_what_an_upstream_asked_for_is_waited_for_before_the_pause(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    before_ms = await now_ms(bus)
    assert await release_one(bus, owner, replace(given_up(hand, 1, 0, charge="failure"), least_ms=30_000)) == "later"
    due_ms = int(await bus.commands.call("ZSCORE", SHARD.later, hand.id))
    assert before_ms + 30_000 + FIRST_PAUSE_MS // 2 <= due_ms <= await now_ms(bus) + 30_000 + FIRST_PAUSE_MS // 2


async def now_ms(bus: Bus) -> int:
    seconds, micros = await bus.commands.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def test_pause_has_a_longest(bus: Bus) -> None:
    patient = replace(await tasks.worker(bus), limits=Limits(failures=100))
    hand = await tasks.running(bus, patient)
    await bus.commands.call("HSET", SHARD.task(hand.id), "failures", 50)
    await release_one(bus, patient, given_up(hand, 1, 0, charge="failure"))
    due_ms = int(await bus.commands.call("ZSCORE", SHARD.later, hand.id))
    assert due_ms <= await now_ms(bus) + LONGEST_PAUSE_MS // 2


@pytest.mark.parametrize(("charge", "limits"), [("failure", NO_FAILURES), ("final", LIMITS)])
async def test_last_failure_ends_the_task_with_the_engines_error_and_a_dead_letter(
    bus: Bus, charge: str, limits: Limits
) -> None:
    owner = replace(await tasks.worker(bus), limits=limits)
    hand = await tasks.running(bus, owner, reply_to="orders")
    assert await release_one(bus, owner, given_up(hand, 1, 1, charge=charge, why="overloaded")) == "failed"
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["result"], hash["failures"]) == ("failed", "503", '{"no":1}', "1")
    log = [decode_event(fields[b"e"]) for _, fields in await tasks.entries(bus, SHARD.log(hand.id))]
    assert [type(event) for event in log] == [Chunks, Finished]
    (letter,) = await dead_letters(bus)
    assert (letter[b"k"], letter[b"t"], letter[b"code"]) == (b"task", hand.id.encode(), b"overloaded")
    assert (letter[b"spec"], letter[b"body"]) == (hash["spec"].encode(), hash["body"].encode())
    assert letter[b"history"].decode() == hash["history"]
    assert len(await tasks.entries(bus, SHARD.outbox)) == 1
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert 0 < await tasks.ttl_ms(bus, SHARD.task(hand.id)) <= 600_000


@pytest.mark.parametrize(("chunks", "tokens", "used"), [(3, 0, 3), (0, 0, 0), (3, 20, 20)])
async def test_last_failure_is_charged_its_chunks_if_its_engine_counts_no_tokens(
    bus: Bus, chunks: int, tokens: int, used: int
) -> None:
    owner = replace(await tasks.worker(bus), limits=NO_FAILURES)
    hand = await tasks.running(bus, owner)
    prompt = int((await tasks.fields(bus, hand.id))["tokens_in"])
    last = replace(given_up(hand, 1, chunks, charge="failure"), tokens=tokens)
    assert await release_one(bus, owner, last) == "failed"
    estimated = prompt if chunks and not tokens else 0
    assert int((await tasks.fields(bus, hand.id))["used"]) == estimated + used


async def test_task_whose_engines_die_is_quarantined_at_the_limit(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    verdicts = [await release_one(bus, owner, given_up(hand, 1, 0, charge="crash", why="engine_died"))]
    while verdicts[-1] == "again":
        hand = await run_again(bus, owner)
        verdicts.append(await release_one(bus, owner, given_up(hand, 1, 0, charge="crash", why="engine_died")))
    assert verdicts == ["again"] * (LIMITS.crashes - 1) + ["quarantined"]
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["crashes"]) == ("failed", str(LIMITS.crashes))
    finished = decode_event(hash["finished"].encode())
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert finished.error.code == "task_quarantined"
    (letter,) = await dead_letters(bus)
    assert letter[b"code"] == b"task_quarantined"
    assert len(await history(bus, hand.id)) == LIMITS.crashes


@pytest.mark.parametrize("charge", ["none", "crash", "failure", "final"])
async def test_what_was_asked_to_stop_ends_and_is_not_tried_again(bus: Bus, charge: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await cancel(bus, SHARD, LIMITS, [hand.id])
    assert await release_one(bus, owner, given_up(hand, 1, 1, charge=charge)) == "cancelled"
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["last"], hash.get("crashes"), hash.get("failures")) == ("cancelled", "1", None, None)
    assert await dead_letters(bus) == []


async def test_repeat_is_fenced_and_moves_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    one = given_up(await tasks.running(bus, owner), 1, 1)
    await release_one(bus, owner, one)
    before = await tasks.fields(bus, one.id)
    assert await release_one(bus, owner, one) == "fenced"
    assert await tasks.fields(bus, one.id) == before
    assert await bus.commands.call("ZCARD", tasks.BACKLOGS[1]) == 1


async def test_rival_nonce_is_fenced(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    assert await release_one(bus, replace(owner, nonce="other"), given_up(hand, 1, 1)) == "fenced"
    assert (await tasks.fields(bus, hand.id))["state"] == "processing"


async def test_worker_that_slept_beyond_its_lease_only_frees_its_slot(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, LIMITS)
    before = await tasks.fields(bus, hand.id)
    assert await release_one(bus, owner, given_up(hand, 1, 1, charge="crash")) == "fenced"
    assert await tasks.fields(bus, hand.id) == before
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


@pytest.mark.parametrize(("first", "last"), [(4, 5), (2, 3), (4, 3), (2, 1)])
async def test_tail_that_does_not_join_is_refused_with_what_was_written(bus: Bus, first: int, last: int) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await emit_one(bus, owner, emission(hand, 1, 2))
    before = await tasks.fields(bus, hand.id)
    assert await release_one(bus, owner, given_up(hand, first, last)) == "gap 2"
    assert await tasks.fields(bus, hand.id) == before
    assert await release_one(bus, owner, given_up(hand, 3, 3)) == "again"


async def test_verdicts_of_one_call_come_in_its_order(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first, second = [await tasks.running(bus, owner) for _ in range(2)]
    gone = replace(first, id=tasks.new_id())
    items = [given_up(gone, 1, 0), given_up(first, 1, 0), given_up(second, 1, 0, charge="failure")]
    assert await release(bus, owner, items) == ["fenced", "again", "later"]


@pytest.mark.keeps_keys
async def test_spoiled_log_is_named_and_the_others_are_given_up(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    spoiled, good = [await tasks.running(bus, owner) for _ in range(2)]
    await spoil(bus, SHARD.log(spoiled.id))
    verdicts = await release(bus, owner, [given_up(spoiled, 1, 1), given_up(good, 1, 1)])
    assert verdicts == [f"wrongtype {SHARD.log(spoiled.id)}", "again"]


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "key", [SHARD.work("w1"), SHARD.arrivals, SHARD.leases, SHARD.later, SHARD.dead, *tasks.ORDER, tasks.BACKLOGS[1]]
)
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    await assert_refused_whole(bus, key, lambda: release(bus, owner, [given_up(hand, 1, 1, charge="failure")]))


@pytest.mark.keeps_keys
@pytest.mark.parametrize("key", [SHARD.bus(0), SHARD.outbox])
async def test_task_that_cannot_be_ended_is_left_running(bus: Bus, key: str) -> None:
    owner = replace(await tasks.worker(bus), limits=NO_FAILURES)
    hand = await tasks.running(bus, owner, reply_to="orders")
    await spoil(bus, key)
    before = await tasks.fields(bus, hand.id)
    assert await release_one(bus, owner, given_up(hand, 1, 1, charge="failure")) == f"wrongtype {key}"
    assert await tasks.fields(bus, hand.id) == before
