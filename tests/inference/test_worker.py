"""A worker's runs: whatever an engine does, the task ends once, with a reason."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from services.inference import closing, emitter, metrics
from services.inference.breaker import FAILED_TASKS
from services.inference.engine import Answer, Call, CannotResume, Capacity, Chunk, EngineDead
from services.inference.run import DRAINED, FENCED
from services.inference.scripts import Hand, Owner, release
from services.inference.worker import Worker
from services.scheduler.scripts import dispatch, reap
from shared.bus import consume
from shared.bus.client import Bus
from shared.bus.consume import Consumer, Entry
from shared.cancel import cancel
from shared.config import Limits
from shared.errors import BusUnavailable
from shared.keys import WORKERS
from shared.lifecycle import Lane
from shared.messages import NULL, Chunks, Finished, Reset, Resumed, Task, decode_event, encode
from shared.policy import LANES, LaneRule, Live, Policy
from shared.routes import RESPONSES
from tests.support import tasks
from tests.support.tasks import CONFIG, SHARD
from tests.support.waiting import wait_until

HANG = "hang"


class Scripted:
    """An engine that does what it is told."""

    name = "scripted"

    def __init__(self, *made: Chunk | Answer | Exception | str, resumes: bool = True, remote: bool = False) -> None:
        self._made, self._resumes, self.remote = made, resumes, remote
        self.calls: list[Call] = []
        self.closed = 0

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        self.calls.append(call)
        if call.published and not self._resumes:
            raise CannotResume("never")
        try:
            for made in self._made:
                if isinstance(made, Exception):
                    raise made
                if isinstance(made, str):
                    await asyncio.Event().wait()
                else:
                    yield made
        finally:
            self.closed += 1

    def capacity(self) -> Capacity:
        return Capacity(slots=8)

    async def start(self) -> None: ...

    async def health(self) -> None: ...

    async def stop(self) -> None: ...


class Waiting(Scripted):
    """An engine over HTTP that answers when it is told to."""

    def __init__(self, goes_on: asyncio.Event, *made: Answer) -> None:
        super().__init__(*made, remote=True)
        self._goes_on = goes_on

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        await self._goes_on.wait()
        async for piece in super().run(call):
            yield piece


class Slow(Scripted):
    """An engine that needs its time to break its first call off."""

    def __init__(self, goes_on: asyncio.Event) -> None:
        super().__init__(HANG)
        self._goes_on = goes_on

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        try:
            async for piece in super().run(call):
                yield piece
        finally:
            if call is self.calls[0]:
                await self._goes_on.wait()


class Two(Scripted):
    """Its first task makes what is no chunk; both make it in one turn of the loop, so that one flush has both."""

    def __init__(self, goes_on: asyncio.Event) -> None:
        super().__init__()
        self._goes_on = goes_on

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        self.calls.append(call)
        made = NO_CHUNK if len(self.calls) == 1 else chunk("a")
        await self._goes_on.wait()
        yield made
        if made is NO_CHUNK:
            await asyncio.Event().wait()
        yield Answer(status=200, body=b"")


ONE_TRY = Limits(failures=0)
NO_CHUNK = Chunk(b"{}", tokens=(object(),))  # type: ignore[arg-type]


def chunk(text: str, *tokens: int) -> Chunk:
    return Chunk(msgspec.json.encode({"choices": [{"index": 0, "text": text}]}), tokens)


def refusal(status: int) -> Answer:
    error = {"message": f"no {status}", "type": "server_error", "code": "busy"}
    return Answer(status=status, body=msgspec.json.encode({"error": error}))


def as_entry(hand: Hand) -> Entry:
    return Entry(hand.entry, {b"t": hand.id.encode(), b"e": str(hand.epoch).encode()})


async def begun(bus: Bus, owner: Owner, worker: Worker) -> Hand:
    """A task that the worker has taken."""
    hand = await tasks.handed(bus, owner)
    assert await worker.on_work([as_entry(hand)]) == []
    return hand


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await tasks.worker(bus)


async def outcome(
    bus: Bus, owner: Owner, engine: Scripted, limits: Limits | None = None
) -> tuple[bytes, bytes, dict[str, object]]:
    """Run one task; its state, status and result."""
    owner = replace(owner, limits=limits or ONE_TRY)
    worker = Worker(bus, owner, engine, CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    await worker.drain(1)
    state, status, result = await bus.commands.call("HMGET", SHARD.task(hand.id), "state", "status", "result")
    return state, status, msgspec.json.decode(result) if result else {}


async def test_a_whole_answer_is_stored_as_the_engine_made_it(bus: Bus, owner: Owner) -> None:
    engine = Scripted(Answer(status=200, body=b'{"choices": [],"x" : 1}'))
    assert await outcome(bus, owner, engine) == (b"completed", b"200", {"choices": [], "x": 1})
    assert engine.closed == 1


async def test_an_engine_is_told_whose_task_it_is_and_where_files_are(bus: Bus, owner: Owner) -> None:
    engine = Scripted(Answer(status=200, body=b"{}"))
    await outcome(bus, owner, engine)
    (call,) = engine.calls
    assert call.tenant == "default"
    assert call.files is not None
    assert await call.files.list(call.tenant) == []


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


@pytest.mark.parametrize("body", [b'{"detail":"Not Found"}', b'{"error":{"message":"Not Found"}}', b'"Not Found"'])
async def test_an_error_in_another_shape_stays_as_the_engine_made_it(bus: Bus, owner: Owner, body: bytes) -> None:
    worker = Worker(bus, owner, Scripted(Answer(status=404, body=body)), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["result"]) == ("failed", "404", body.decode())
    event = decode_event(hash["finished"].encode())
    assert isinstance(event, Finished)
    assert event.error is not None
    assert (event.error.message, event.error.code) == ("Not Found", 404)


async def test_what_is_not_json_is_kept_in_its_bytes_with_its_type(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(Answer(status=200, body=b"RIFF\xff\x00", content_type="audio/wav")), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    state, result, finished = await bus.commands.call("HMGET", SHARD.task(hand.id), "state", "result", "finished")
    event = decode_event(finished)
    assert isinstance(event, Finished)
    assert (state, result, event.content_type, event.result) == (b"completed", b"RIFF\xff\x00", "audio/wav", NULL)


async def test_a_dead_engine_hands_the_task_back_at_once_and_charges_a_crash(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(chunk("a"), EngineDead("gone")), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert worker.died.is_set()
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["crashes"], hash["last"]) == ("pending", "1", "1")
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_another_try_may_mend_is_tried_again_later(bus: Bus, owner: Owner, status: int) -> None:
    worker = Worker(bus, owner, Scripted(refusal(status)), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["failures"]) == ("pending", "1")
    assert await bus.commands.call("ZSCORE", SHARD.later, hand.id) is not None


async def test_a_task_whose_engine_cannot_be_reached_is_not_charged(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(replace(refusal(503), unreached=True)), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash.get("failures", "0")) == ("pending", "0")


async def test_a_fault_of_the_request_fails_at_once(bus: Bus, owner: Owner) -> None:
    state, status, _ = await outcome(bus, owner, Scripted(refusal(404)), Limits())
    assert (state, status) == (b"failed", b"404")


async def test_the_last_failure_is_the_result_and_a_dead_letter(bus: Bus, owner: Owner) -> None:
    state, status, result = await outcome(bus, owner, Scripted(refusal(503)))
    assert (state, status) == (b"failed", b"503")
    assert "no 503" in str(result)
    ((_, letter),) = await tasks.entries(bus, SHARD.dead)
    assert (letter[b"code"], letter[b"body"]) == (b"busy", tasks.BODY)


async def test_a_run_over_the_longest_time_fails(bus: Bus, owner: Owner) -> None:
    engine = Scripted(chunk("a"), HANG)
    state, status, result = await outcome(bus, owner, engine, Limits(run_s=1))
    assert (state, status) == (b"failed", b"504")
    assert "run_time_exceeded" in str(result)
    assert engine.closed == 1


async def test_a_run_over_the_longest_time_of_its_lane_fails(bus: Bus, owner: Owner) -> None:
    lanes = {**LANES, Lane.NORMAL: LaneRule(share=0.2, run_s=1)}
    worker = Worker(bus, owner, Scripted(HANG), replace(CONFIG, live=Live(Policy(lanes=lanes))))
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"]) == ("failed", "504")
    assert "lanes.normal.run_s" in hash["result"]


def break_it(worker: Worker) -> None:
    """The upstream fails so many others that its breaker opens."""
    for other in range(FAILED_TASKS):
        worker.room.began(f"other{other}", Lane.NORMAL)
        worker.room.answered(f"other{other}", 503)
        worker.room.left(f"other{other}")
    assert worker.room.closed


async def test_a_task_that_fails_because_its_upstream_went_down_is_not_charged(bus: Bus, owner: Owner) -> None:
    goes_on = asyncio.Event()
    worker = Worker(bus, owner, Waiting(goes_on, refusal(503)), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: worker.room.breaker and hand.id in worker.room._stays, "the engine has it")
    break_it(worker)
    goes_on.set()
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash.get("failures", "0")) == ("pending", "0")
    assert '"why":"upstream_open"' in hash["history"]
    assert await bus.commands.call("ZSCORE", SHARD.later, hand.id) is None


async def test_a_task_that_succeeds_though_its_upstream_went_down_is_done(bus: Bus, owner: Owner) -> None:
    goes_on = asyncio.Event()
    worker = Worker(bus, owner, Waiting(goes_on, Answer(status=200, body=b"{}")), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: hand.id in worker.room._stays, "the engine has it")
    break_it(worker)
    goes_on.set()
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert (await tasks.fields(bus, hand.id))["state"] == "completed"
    assert worker.room.closed


async def test_while_the_breaker_is_open_the_engine_gets_nothing(bus: Bus, owner: Owner) -> None:
    engine = Scripted(Answer(status=200, body=b"{}"), remote=True)
    worker = Worker(bus, owner, engine, CONFIG)
    break_it(worker)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert engine.calls == []
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash.get("failures", "0"), hash.get("crashes", "0")) == ("pending", "0", "0")
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_what_has_ended_holds_no_room(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(refusal(503), remote=True), CONFIG)
    await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert (worker.room._stays, worker.room._limiter._held) == ({}, {})


async def test_a_cancelled_task_is_ended_with_what_it_has_made(bus: Bus, owner: Owner) -> None:
    engine = Scripted(chunk("a"), HANG)
    worker = Worker(bus, owner, engine, CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: worker.runs[hand.id].published == 1, "the first chunk is published")
    assert await cancel(bus, SHARD, owner.limits, [hand.id]) == ["processing"]
    ((entry, told),) = [item for item in await tasks.entries(bus, SHARD.work(owner.worker)) if b"stop" in item[1]]
    assert await worker.on_work([Entry(entry, told)]) == [entry]
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["status"], hash["last"], engine.closed) == ("cancelled", "499", "1", 1)


async def test_a_drained_worker_hands_back_what_does_not_end_with_all_its_chunks(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(chunk("a"), chunk("b"), HANG), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: worker.runs[hand.id].last == 2, "both chunks are made")
    await worker.drain(0.01)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["last"], hash.get("crashes", "0")) == ("pending", "2", "0")
    assert '"why":"drained"' in hash["history"]


def given_up() -> float:
    """Tasks that were, as the metrics count them."""
    samples = [sample for family in metrics.GIVEN_UP.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


async def test_a_run_that_is_out_of_step_with_its_log_hands_the_task_on(bus: Bus, owner: Owner) -> None:
    """Nothing of ours brings it about; should it be so, the slot must be free and the task go on elsewhere."""
    worker = Worker(bus, owner, Scripted(chunk("a"), HANG), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: worker.runs[hand.id].published == 1, "the first chunk is published")
    await bus.commands.call("HSET", SHARD.task(hand.id), "last", 5)
    worker.stop(hand.id, DRAINED)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["last"]) == ("pending", "5")
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_a_lost_task_frees_the_slot_of_the_worker_that_lost_it(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(chunk("a"), HANG), CONFIG)
    hand = await begun(bus, owner, worker)
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, owner.limits)
    worker.stop(hand.id, FENCED)
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert (await tasks.fields(bus, hand.id))["state"] == "pending"


async def handed_again(bus: Bus, owner: Owner) -> Hand:
    await dispatch(bus, SHARD, CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    return hand


async def lost_and_handed_again(bus: Bus, owner: Owner, hand: Hand) -> Hand:
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, owner.limits)
    return await handed_again(bus, owner)


async def test_a_task_that_comes_back_to_the_worker_that_lost_it_runs_there_again(bus: Bus, owner: Owner) -> None:
    engine = Scripted(HANG)
    worker = Worker(bus, owner, engine, CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: engine.calls, "it runs")
    back = await lost_and_handed_again(bus, owner, hand)
    assert await worker.on_work([as_entry(back)]) == []
    await wait_until(lambda: len(engine.calls) == 2, "it runs again")
    assert (worker.runs[hand.id].hand, engine.closed) == (back, 1)
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 1
    await worker.drain(0)


async def test_a_task_that_comes_back_before_its_release_was_answered_runs_again(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scripted(replace(refusal(503), unreached=True))
    worker = Worker(bus, owner, engine, CONFIG)

    async def released(*given: Any) -> Sequence[str]:
        verdicts = await release(*given)
        if len(engine.calls) == 1:
            assert await worker.on_work([as_entry(await handed_again(bus, owner))]) == []
        return verdicts

    monkeypatch.setattr(closing, "release", released)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: len(engine.calls) == 2 and not worker.runs, "it has run again")
    assert (await tasks.fields(bus, hand.id))["state"] == "pending"
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_an_entry_that_comes_again_while_its_task_waits_behind_the_old_run_starts_it_once(
    bus: Bus, owner: Owner
) -> None:
    goes_on = asyncio.Event()
    engine = Slow(goes_on)
    worker = Worker(bus, owner, engine, CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: engine.calls, "it runs")
    back = await lost_and_handed_again(bus, owner, hand)
    for _ in range(3):
        assert await worker.on_work([as_entry(back)]) == []
    assert list(worker._aside) == [back.entry]
    goes_on.set()
    await wait_until(lambda: len(engine.calls) == 2, "it runs again")
    await worker.drain(0)
    assert len(engine.calls) == 2
    assert (await tasks.fields(bus, hand.id))["attempts"] == "2"


async def test_an_entry_of_an_earlier_hand_out_does_not_break_off_the_run(bus: Bus, owner: Owner) -> None:
    """Redis has lost what came after it, say, or its end was cleared while it was on its way."""
    goes_on = asyncio.Event()
    worker = Worker(bus, owner, Waiting(goes_on, Answer(status=200, body=b"{}")), CONFIG)
    hand = await begun(bus, owner, worker)
    stale = await bus.commands.call("XADD", SHARD.work(owner.worker), "*", "t", hand.id, "e", "0", "l", "normal")
    assert await worker.on_work([as_entry(Hand(hand.id, 0, stale))]) == []
    goes_on.set()

    async def cleared() -> bool:
        return not worker.runs and await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0

    await wait_until(cleared, "the run has ended, and both entries are cleared")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["attempts"]) == ("completed", "1")


@asynccontextmanager
async def reading(bus: Bus, owner: Owner, worker: Worker) -> AsyncIterator[None]:
    """The worker gets its entries as in a service."""
    stream = SHARD.work(owner.worker)
    consumer = Consumer(
        bus, stream=stream, group=WORKERS, name=owner.worker, handle=worker.on_work, count=10, shared=False
    )
    running = asyncio.create_task(consumer.run())
    try:
        yield
    finally:
        await consumer.stop()
        await running


async def test_a_task_whose_start_redis_has_forgotten_is_started_again_and_holds_no_slot_for_good(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover the task is pending again with the same epoch, and its entry is its only place. The old run is fenced, and
    must leave the entry; the worker has read it, and Redis would never deliver it again by itself."""
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 20)
    monkeypatch.setattr(consume, "BLOCK_MS", 20)
    engine = Scripted(HANG)
    worker = Worker(bus, owner, engine, CONFIG)
    id = await tasks.admitted(bus)
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    async with reading(bus, owner, worker):
        await wait_until(lambda: engine.calls, "it runs")
        await bus.commands.call("HSET", SHARD.task(id), "state", "pending")
        await bus.commands.call("HDEL", SHARD.task(id), "owner")
        engine._made = (Answer(status=200, body=b"{}"),)
        worker.stop(id, FENCED)
        await wait_until(lambda: len(engine.calls) == 2 and not worker.runs, "it has run again")
    assert (await tasks.fields(bus, id))["state"] == "completed"
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def test_a_task_that_cannot_start_starts_once_the_key_that_keeps_it_is_gone(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 20)
    monkeypatch.setattr(consume, "BLOCK_MS", 20)
    engine = Scripted(Answer(status=200, body=b"{}"))
    worker = Worker(bus, owner, engine, CONFIG)
    id = await tasks.admitted(bus)
    await bus.commands.call("SET", SHARD.log(id), "not ours")
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    told = caught(worker, monkeypatch)
    async with reading(bus, owner, worker):
        await wait_until(lambda: len(told) > 1, "it was looked at more than once")
        assert engine.calls == []
        await bus.commands.call("DEL", SHARD.log(id))
        await wait_until(lambda: engine.calls and not worker.runs, "it has run")
    assert (await tasks.fields(bus, id))["state"] == "completed"


def caught(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[Hand]:
    """What the worker tries to start from here on."""
    told: list[Hand] = []
    start = worker._start

    async def starting(hands: list[Hand]) -> None:
        told.extend(hands)
        await start(hands)

    monkeypatch.setattr(worker, "_start", starting)
    return told


async def test_nothing_begins_while_the_worker_drains(bus: Bus, owner: Owner) -> None:
    goes_on = asyncio.Event()
    engine = Slow(goes_on)
    worker = Worker(bus, owner, engine, CONFIG)
    slow, lost = [await begun(bus, owner, worker) for _ in range(2)]
    await wait_until(lambda: len(engine.calls) == 2, "both run")
    await bus.commands.call("ZADD", SHARD.leases, 1, lost.id)
    await reap(bus, SHARD, owner.limits)
    assert await worker.on_work([as_entry(await handed_again(bus, owner))]) == []
    draining = asyncio.create_task(worker.drain(0))
    await wait_until(lambda: list(worker.runs) == [slow.id], "the lost run has ended")
    await bus.bulk.call("PING")  # behind what would start it anew
    goes_on.set()
    await draining
    assert (worker.runs, worker._aside, len(engine.calls)) == ({}, {}, 2)


class Faulty(Scripted):
    """An engine that cannot even be asked."""

    def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        raise ValueError("bad wheel")


@pytest.mark.parametrize("engine", [Faulty(), Scripted(NO_CHUNK, HANG), Scripted(CannotResume("never"))])
async def test_a_fault_that_nobody_has_thought_of_gives_the_task_up_and_frees_the_slot(
    bus: Bus, owner: Owner, engine: Scripted
) -> None:
    worker = Worker(bus, owner, engine, CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: not worker.runs, "the run has ended")
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["crashes"]) == ("pending", "1")
    assert '"why":"broken"' in hash["history"]
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0
    assert (worker.room._stays, worker.room._limiter._held) == ({}, {})


async def test_chunks_that_are_none_hold_up_no_other_task(bus: Bus, owner: Owner) -> None:
    goes_on = asyncio.Event()
    worker = Worker(bus, owner, Two(goes_on), CONFIG)
    hands = [await begun(bus, owner, worker) for _ in range(2)]
    goes_on.set()
    await wait_until(lambda: not worker.runs, "both runs have ended")
    found = [await tasks.fields(bus, hand.id) for hand in hands]
    assert sorted((hash["state"], hash.get("crashes", "0")) for hash in found) == [("completed", "0"), ("pending", "1")]


async def test_a_fault_in_publishing_does_not_keep_a_run_from_its_end(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = asyncio.Event()

    async def broken(*_: Any) -> list[str]:
        goes_on.set()
        raise ValueError("broken")

    class Told(Scripted):
        async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
            yield chunk("a")
            await goes_on.wait()
            yield Answer(status=200, body=b"")

    monkeypatch.setattr(emitter, "emit", broken)
    state, status, _ = await outcome(bus, owner, Told())
    assert (state, status) == (b"completed", b"200")


async def test_a_run_that_is_out_of_step_waits_for_redis_too(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "AGAIN_S", 0.0)
    failing = 1

    async def released(bus: Bus, owner: Owner, items: Sequence[Any]) -> Sequence[str]:
        nonlocal failing
        if items[0].why == "out_of_step" and failing:
            failing -= 1
            raise BusUnavailable("away")
        return await release(bus, owner, items)

    monkeypatch.setattr(closing, "release", released)
    before = given_up()
    worker = Worker(bus, owner, Scripted(chunk("a"), HANG), CONFIG)
    hand = await begun(bus, owner, worker)
    await wait_until(lambda: worker.runs[hand.id].published == 1, "the first chunk is published")
    await bus.commands.call("HSET", SHARD.task(hand.id), "last", 5)
    worker.stop(hand.id, DRAINED)
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert (failing, given_up() - before) == (0, 1)
    assert (await tasks.fields(bus, hand.id))["state"] == "pending"
    assert await bus.commands.call("XLEN", SHARD.work(owner.worker)) == 0


async def again(bus: Bus, hand: Hand, name: str = "w2") -> tuple[Owner, Hand]:
    """The task was lost, and is handed to another worker."""
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, tasks.LIMITS)
    await bus.commands.call("DEL", SHARD.workers)
    owner = await tasks.worker(bus, name)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (handed,) = await tasks.hands(bus, owner)
    return owner, handed


async def test_the_next_worker_goes_on_behind_what_was_published(bus: Bus, owner: Owner) -> None:
    first = Worker(bus, owner, Scripted(chunk("a", 7), chunk("b", 8, 9), HANG), CONFIG)
    hand = await begun(bus, owner, first)
    await wait_until(lambda: first.runs[hand.id].published == 2, "two chunks are published")
    second, handed = await again(bus, hand)
    engine = Scripted(chunk("c", 10), Answer(status=200, body=b""))
    worker = Worker(bus, second, engine, CONFIG)
    await worker.on_work([as_entry(handed)])
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert engine.calls[0].published == (chunk("a", 7), chunk("b", 8, 9))
    events = [decode_event(entry[b"e"]) for _, entry in await tasks.entries(bus, SHARD.log(hand.id))]
    assert events[-3] == Resumed(attempt=2, last=2)
    hash = await tasks.fields(bus, hand.id)
    assert (hash["state"], hash["last"], hash["attempts"]) == ("completed", "3", "2")
    assert [choice["text"] for choice in msgspec.json.decode(hash["result"])["choices"]] == ["abc"]
    first.stop(hand.id, FENCED)
    await wait_until(lambda: not first.runs, "the old run has ended")


async def test_what_cannot_be_gone_on_with_is_reset_and_starts_over(bus: Bus, owner: Owner) -> None:
    first = Worker(bus, owner, Scripted(chunk("a"), HANG), CONFIG)
    hand = await begun(bus, owner, first)
    await wait_until(lambda: first.runs[hand.id].published == 1, "a chunk is published")
    second, handed = await again(bus, hand)
    engine = Scripted(chunk("x"), Answer(status=200, body=b""), resumes=False)
    worker = Worker(bus, second, engine, CONFIG)
    await worker.on_work([as_entry(handed)])
    await wait_until(lambda: not worker.runs, "the run has ended")
    assert [len(call.published) for call in engine.calls] == [1, 0]
    events = [decode_event(entry[b"e"]) for _, entry in await tasks.entries(bus, SHARD.log(hand.id))]
    assert [type(event) for event in events] == [Chunks, Reset, Chunks, Finished]
    assert (await tasks.fields(bus, hand.id))["last"] == "1"
    first.stop(hand.id, FENCED)
    await wait_until(lambda: not first.runs, "the old run has ended")


async def test_what_cannot_be_gone_on_with_but_comes_out_the_same_has_no_seam(bus: Bus, owner: Owner) -> None:
    first = Worker(bus, owner, Scripted(chunk("a"), HANG), CONFIG)
    hand = await begun(bus, owner, first)
    await wait_until(lambda: first.runs[hand.id].published == 1, "a chunk is published")
    second, handed = await again(bus, hand)
    worker = Worker(bus, second, Scripted(chunk("a"), chunk("b"), Answer(status=200, body=b""), resumes=False), CONFIG)
    await worker.on_work([as_entry(handed)])
    await wait_until(lambda: not worker.runs, "the run has ended")
    events = [decode_event(entry[b"e"]) for _, entry in await tasks.entries(bus, SHARD.log(hand.id))]
    assert [type(event) for event in events] == [Chunks, Resumed, Chunks, Finished]
    assert (await tasks.fields(bus, hand.id))["last"] == "2"
    first.stop(hand.id, FENCED)
    await wait_until(lambda: not first.runs, "the old run has ended")


def response(kind: str, id: str, at: int) -> Chunk:
    """An event that tells of a whole response, as an engine that draws its ids makes it."""
    whole = {"id": id, "created_at": at, "status": "completed", "output": []}
    return Chunk(msgspec.json.encode({"type": f"response.{kind}", "response": whole}))


async def test_a_response_made_anew_bears_the_same_id_so_only_its_items_can_differ(bus: Bus, owner: Owner) -> None:
    first = Worker(bus, owner, Scripted(response("created", "resp_1", 1), HANG), CONFIG)
    hand = await tasks.handed(bus, owner)
    spec = encode(Task(route=RESPONSES, model=tasks.MODEL, tenant="default", streamed=True))
    await bus.commands.call("HSET", SHARD.task(hand.id), "spec", spec)
    assert await first.on_work([as_entry(hand)]) == []
    await wait_until(lambda: first.runs[hand.id].published == 1, "an event is published")
    second, handed = await again(bus, hand)
    made = response("created", "resp_2", 2), response("completed", "resp_2", 2)
    worker = Worker(bus, second, Scripted(*made, Answer(status=200, body=b""), resumes=False), CONFIG)
    await worker.on_work([as_entry(handed)])
    await wait_until(lambda: not worker.runs, "the run has ended")
    events = [decode_event(entry[b"e"]) for _, entry in await tasks.entries(bus, SHARD.log(hand.id))]
    assert [type(event) for event in events] == [Chunks, Resumed, Chunks, Finished]
    result = msgspec.json.decode((await tasks.fields(bus, hand.id))["result"])
    assert (result["id"], result["created_at"]) == (f"resp_{hand.id}", 1)
    first.stop(hand.id, FENCED)
    await wait_until(lambda: not first.runs, "the old run has ended")


async def test_a_task_that_cannot_be_read_is_quarantined_in_the_end(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(), CONFIG)
    hand = await tasks.handed(bus, owner)
    await bus.commands.call("HSET", SHARD.task(hand.id), "spec", "{}")
    for _ in range(owner.limits.crashes):
        await worker.on_work([as_entry(hand)])
        await wait_until(lambda: not worker._aside, "it is given up")
        await dispatch(bus, SHARD, tasks.CONFIG)
        (hand,) = await tasks.hands(bus, owner) or (hand,)
    assert (await tasks.fields(bus, hand.id))["state"] == "failed"
    ((_, letter),) = await tasks.entries(bus, SHARD.dead)
    assert letter[b"code"] == b"task_quarantined"


async def test_an_entry_of_somebody_else_is_done_with(bus: Bus, owner: Owner) -> None:
    worker = Worker(bus, owner, Scripted(), CONFIG)
    assert await worker.on_work([Entry(b"1-1", {b"x": b"y"}), Entry(b"1-2", {})]) == [b"1-1", b"1-2"]
