"""Items of many callers become one call, as large as the moment offers."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.bus.batch import Batcher
from shared.bus.script import MAX_BYTES, MAX_ITEMS
from shared.errors import BusUnavailable


class Calls:
    """A script that can be held, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def run(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        await self.open.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [item.upper() for item in items]


async def test_items_of_one_turn_are_one_call_and_each_gets_its_verdict() -> None:
    calls = Calls()
    batcher = Batcher(calls.run)
    assert await asyncio.gather(*(batcher.add(item) for item in "abc")) == ["A", "B", "C"]
    assert calls.batches == [["a", "b", "c"]]


async def test_lone_item_waits_for_nobody() -> None:
    batcher = Batcher(Calls().run)
    assert await batcher.add("a") == "A"
    assert await batcher.add("b") == "B"


async def test_what_arrives_during_a_call_is_the_next_call() -> None:
    calls = Calls()
    calls.open.clear()
    batcher = Batcher(calls.run)
    first = batcher.add("a")
    await asyncio.sleep(0)
    later = [batcher.add(item) for item in "bc"]
    calls.open.set()
    assert await asyncio.gather(first, *later) == ["A", "B", "C"]
    assert calls.batches == [["a"], ["b", "c"]]


async def test_call_is_bounded_in_items() -> None:
    calls = Calls()
    batcher = Batcher(calls.run)
    await asyncio.gather(*(batcher.add("x") for _ in range(MAX_ITEMS * 2 + 1)))
    assert [len(batch) for batch in calls.batches] == [MAX_ITEMS, MAX_ITEMS, 1]


async def test_call_is_bounded_in_bytes_and_an_item_over_the_bound_goes_alone() -> None:
    calls = Calls()
    sizes = {"half": MAX_BYTES // 2, "huge": MAX_BYTES * 3, "tiny": 1}
    batcher = Batcher(calls.run, size=sizes.__getitem__)
    await asyncio.gather(*(batcher.add(item) for item in ("half", "half", "tiny", "huge", "tiny")))
    assert calls.batches == [["half", "half"], ["tiny"], ["huge"], ["tiny"]]


async def test_failed_call_fails_its_items_and_not_the_next() -> None:
    calls = Calls()
    calls.error = BusUnavailable("down")
    calls.open.clear()
    batcher = Batcher(calls.run)
    failing = [batcher.add("a"), batcher.add("b")]
    await asyncio.sleep(0)
    later = batcher.add("c")
    calls.open.set()
    for verdict in failing:
        with pytest.raises(BusUnavailable):
            await verdict
    assert await later == "C"


async def test_call_that_answers_too_little_fails_its_items_and_leaves_nobody_waiting() -> None:
    async def short(items: Sequence[str]) -> Sequence[str]:
        return items[1:]

    batcher = Batcher(short)
    for verdict in [batcher.add(item) for item in "ab"]:
        with pytest.raises(ValueError, match="shorter"):
            await verdict
    await batcher.drain()


async def test_cancelled_caller_disturbs_nobody() -> None:
    calls = Calls()
    batcher = Batcher(calls.run)
    cancelled, other = batcher.add("a"), batcher.add("b")
    cancelled.cancel()
    assert await other == "B"


async def test_drain_returns_when_all_have_their_verdict() -> None:
    calls = Calls()
    calls.open.clear()
    batcher = Batcher(calls.run)
    await batcher.drain()
    verdicts = [batcher.add(item) for item in "ab"]
    draining = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    calls.open.set()
    await draining
    assert [verdict.result() for verdict in verdicts] == ["A", "B"]
