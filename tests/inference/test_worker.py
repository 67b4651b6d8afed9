"""A worker's runs: whatever an engine does, the task ends once, with a reason."""

from collections.abc import AsyncGenerator

import msgspec
import pytest

from services.inference.engine import Answer, Call, Capacity, Chunk, EngineDead
from services.inference.scripts import Owner
from services.inference.worker import Worker
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.config import Limits
from tests.support import tasks
from tests.support.tasks import SHARD
from tests.support.waiting import wait_until


class Scripted:
    """An engine that does what it is told."""

    name = "scripted"

    def __init__(self, *made: Chunk | Answer | Exception) -> None:
        self._made = made
        self.closed = 0

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        try:
            for made in self._made:
                if isinstance(made, Exception):
                    raise made
                yield made
        finally:
            self.closed += 1

    def capacity(self) -> Capacity:
        return Capacity(slots=8)

    async def start(self) -> None: ...

    async def health(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await tasks.worker(bus)


async def outcome(
    bus: Bus, owner: Owner, engine: Scripted, limits: Limits | None = None
) -> tuple[bytes, bytes, dict[str, object]]:
    """Run one task; its state, status and result."""
    worker = Worker(bus, owner, engine, limits or Limits())
    hand = await tasks.handed(bus, owner)
    entry = Entry(hand.entry, {b"t": hand.id.encode(), b"e": str(hand.epoch).encode()})
    assert await worker.on_work([entry]) == []
    await wait_until(lambda: not worker.runs, "the run has ended")
    await worker.drain(1)
    state, status, result = await bus.commands.call("HMGET", SHARD.task(hand.id), "state", "status", "result")
    return state, status, msgspec.json.decode(result) if result else {}


async def test_a_whole_answer_is_stored_as_the_engine_made_it(bus: Bus, owner: Owner) -> None:
    engine = Scripted(Answer(status=200, body=b'{"choices": [],"x" : 1}'))
    assert await outcome(bus, owner, engine) == (b"completed", b"200", {"choices": [], "x": 1})
    assert engine.closed == 1


async def test_an_engine_that_raises_fails_the_task_with_its_words(bus: Bus, owner: Owner) -> None:
    state, status, result = await outcome(bus, owner, Scripted(ValueError("bad wheel")))
    assert (state, status) == (b"failed", b"500")
    assert "bad wheel" in str(result)


async def test_an_engine_that_says_nothing_fails_the_task(bus: Bus, owner: Owner) -> None:
    state, _, result = await outcome(bus, owner, Scripted())
    assert state == b"failed"
    assert "without an answer" in str(result)


async def test_chunks_that_make_no_answer_fail_the_task(bus: Bus, owner: Owner) -> None:
    state, _, result = await outcome(bus, owner, Scripted(Chunk(b"[1,2]"), Answer(status=200, body=b"")))
    assert state == b"failed"
    assert "do not make an answer" in str(result)


async def test_a_result_over_the_limit_fails_the_task(bus: Bus, owner: Owner) -> None:
    big = Answer(status=200, body=b'{"x":"' + b"y" * 2000 + b'"}')
    state, _, result = await outcome(bus, owner, Scripted(big), Limits(result_bytes=1024))
    assert state == b"failed"
    assert "result_too_large" in str(result)


async def test_an_error_that_is_not_json_is_worded_by_us(bus: Bus, owner: Owner) -> None:
    state, status, result = await outcome(bus, owner, Scripted(Answer(status=502, body=b"<html>")))
    assert (state, status) == (b"failed", b"500")
    assert "502" in str(result)


async def test_a_dead_engine_leaves_the_task_to_be_handed_back(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(EngineDead("gone")), Limits())
    hand = await tasks.handed(bus, owner)
    await worker.on_work([Entry(hand.entry, {b"t": hand.id.encode(), b"e": str(hand.epoch).encode()})])
    await worker.died.wait()
    assert await bus.commands.call("HGET", SHARD.task(hand.id), "state") == b"processing"


async def test_an_entry_of_somebody_else_is_done_with(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(), Limits())
    assert await worker.on_work([Entry(b"1-1", {b"x": b"y"}), Entry(b"1-2", {})]) == [b"1-1", b"1-2"]
