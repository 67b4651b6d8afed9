"""The model of the estimate: what it promises, whatever the numbers; test_place.py shows that the script agrees with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.support.eta import AHEAD, Asked, Lane, Shard, estimate

COUNTS = st.integers(0, 500)


@st.composite
def lanes(draw: st.DrawFn) -> Lane:
    return Lane(
        share=draw(st.floats(0.05, 1)),
        waiting=draw(COUNTS),
        run_ms=draw(st.integers(1, 60_000)),
        pace=draw(st.floats(0, 50)),
        tag=draw(st.floats(0, 1e6)),
        limit=draw(st.integers(0, 40)),
    )


shards = st.builds(
    Shard, lanes=st.tuples(lanes(), lanes(), lanes()), slots=st.integers(1, 64), running=st.integers(0, 64)
)
askers = st.builds(
    Asked, lane=st.integers(0, 2), rank=COUNTS, waiting=COUNTS, ahead=st.integers(0, 50), others=st.integers(0, 50),
    weight=st.floats(0.1, 10), their_weight=st.floats(0.1, 10), tokens=st.floats(1, 1e5), cap=st.integers(0, 8), held=st.integers(0, 8),
)  # fmt: skip


@given(shards, askers)
def test_a_later_rank_never_starts_earlier(shard: Shard, asked: Asked) -> None:
    one, next = estimate(shard, asked), estimate(shard, replace(asked, rank=asked.rank + 1))
    assert next.before >= one.before
    assert next.wait_ms >= one.wait_ms


@given(shards, askers, st.floats(1, 10))
def test_more_weight_never_waits_longer(shard: Shard, asked: Asked, factor: float) -> None:
    heavier = estimate(shard, replace(asked, weight=asked.weight * factor))
    assert heavier.before <= estimate(shard, asked).before
    assert heavier.wait_ms <= estimate(shard, asked).wait_ms


@given(shards, askers, st.integers(1, 64))
def test_more_slots_never_wait_longer(shard: Shard, asked: Asked, more: int) -> None:
    assert estimate(replace(shard, slots=shard.slots + more), asked).wait_ms <= estimate(shard, asked).wait_ms + 1


@given(shards, askers)
def test_whoever_has_a_free_slot_and_nobody_before_it_waits_for_nothing(shard: Shard, asked: Asked) -> None:
    empty = tuple(replace(lane, waiting=0, limit=0) for lane in shard.lanes)
    free = replace(shard, lanes=empty, running=shard.slots - 1)
    assert estimate(free, replace(asked, rank=0, cap=0)).wait_ms == 0


def test_without_a_worker_or_before_the_first_end_nobody_knows() -> None:
    lane = Lane(share=1, waiting=3, run_ms=100)
    assert estimate(Shard((lane, lane, lane), slots=0), Asked(lane=0)).wait_ms == -1
    unknown = replace(lane, run_ms=0)
    assert estimate(Shard((unknown, unknown, unknown), slots=4, running=4), Asked(lane=1)).wait_ms == -1


ALONE = Lane(share=0.2, waiting=40, run_ms=1000, tag=AHEAD)
IDLE = Lane(share=0.7)
BATCH = Lane(share=0.1, waiting=1000, run_ms=1000)


@pytest.mark.parametrize(
    ("shard", "asked", "before", "wait_s"),
    [
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, rank=39, waiting=40), 39, 10),
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, rank=9, waiting=20, others=1), 18, 4.75),
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, rank=9, waiting=20, others=1, weight=3), 12, 3.25),
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, rank=3, waiting=20, others=1, their_weight=3), 12, 3.25),
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, rank=19, waiting=20, others=9), 39, 10),
        (Shard((IDLE, ALONE, BATCH), 6, 6), Asked(lane=1, rank=39, waiting=40), 58, 10),
        (Shard((IDLE, replace(ALONE, tag=0), BATCH), 4, 4), Asked(lane=1, rank=39, waiting=40, tokens=1), 39, 10),
        (Shard((IDLE, replace(ALONE, tag=0), BATCH), 4, 4), Asked(lane=2, tokens=1), 40, 10.25),
        (Shard((IDLE, replace(ALONE, tag=0), BATCH), 6, 6), Asked(lane=1, rank=39, waiting=40, tokens=200), 48, 8.333),
        (Shard((IDLE, ALONE, BATCH), 6, 6), Asked(lane=2, rank=999, waiting=1000), 1039, 1040 / 6),
        (Shard((replace(IDLE, run_ms=1000, pace=2), IDLE, BATCH), 4, 4), Asked(lane=2, rank=99, waiting=1000), 99, 50),
        (Shard((replace(IDLE, run_ms=1000, pace=90), IDLE, BATCH), 4, 4), Asked(lane=2, rank=9, waiting=1000), 9, 20),
        (Shard((IDLE, ALONE, replace(BATCH, limit=1)), 4, 4), Asked(lane=2, waiting=1000), 2, 1),
        (Shard((IDLE, ALONE, IDLE), 4, 4), Asked(lane=1, waiting=40, cap=1, held=1), 0, 1),
        (Shard((IDLE, ALONE, IDLE), 4, 0), Asked(lane=1, rank=3, waiting=40), 3, 0),
    ],
    ids=[
        "alone in its lane", "two tenants take turns", "a tenant of weight 3", "beside one of weight 3", "the others have no more",
        "batch work takes its share", "a burst goes first", "and batch work after it", "a flood only for a while", "batch work has all when the rest is done", "what comes in a more urgent lane",
        "a share is kept", "a lane that may not have all slots", "a tenant at its cap", "slots are free",
    ],
)  # fmt: skip
def test_the_estimate_of_plain_cases(shard: Shard, asked: Asked, before: int, wait_s: float) -> None:
    found = estimate(shard, asked)
    assert found.before == before
    assert found.wait_ms == pytest.approx(wait_s * 1000, abs=1)
