"""Bodies that a worker reads from the object store, and answers that it puts there; and what becomes of the task without it."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from services.inference.breaker import FAILED_TASKS, State
from services.inference.closing import STORE_PAUSE_S
from services.inference.engine import Answer, Call, Chunk
from services.inference.scripts import Owner
from services.inference.worker import Worker
from services.scheduler.object_sweep import AGAIN_MS
from services.scheduler.scripts import dispatch
from shared import large
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.config import Limits
from shared.large import Large, object_key
from shared.messages import Finished, Stored, decode_event, decode_task, encode
from shared.objects import Objects
from tests.inference.test_worker import Scripted, as_entry, chunk
from tests.shared.test_files import stored
from tests.support import tasks
from tests.support.tasks import CONFIG, SHARD
from tests.support.waiting import wait_until

BODY = b'{"model":"echo-1","x":"%b"}' % (b"a" * 2000)
LARGE = Answer(status=200, body=b'{"said":"%b"}' % (b"y" * 2000))
LIMITS = Limits(inline_bytes=1024)


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return replace(await tasks.worker(bus), limits=LIMITS)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


async def ran(bus: Bus, owner: Owner, worker: Worker, objects: Objects | None, **more: object) -> str:
    """A task whose body lies in `objects` was run, as far as it was. `more`: further fields of what was asked."""
    item = tasks.item(body=b"")
    name = await Large(bus, objects, 0).put(item.id, BODY) if objects is not None else Stored(name="x", bytes=1)
    spec = replace(decode_task(item.spec), stored=name, **more)
    task_id = await tasks.admitted(bus, id=item.id, body=b"")
    await bus.commands.call("HSET", SHARD.task(task_id), "spec", encode(spec))
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    (hand,) = await tasks.hands(bus, owner)
    await worker.on_work([as_entry(hand)])
    await wait_until(lambda: not worker.runs, "the run has ended")
    return task_id


async def finished(bus: Bus, task_id: str) -> tuple[Finished, bytes]:
    event, result = await bus.commands.call("HMGET", SHARD.task(task_id), "finished", "result")
    told = decode_event(event)
    assert isinstance(told, Finished)
    return told, result


async def test_the_engine_is_given_the_body_and_a_large_answer_goes_where_that_came_from(
    bus: Bus, owner: Owner, objects: Objects
) -> None:
    engine = Scripted(replace(LARGE, content_type="image/png"))
    worker = Worker(bus, owner, engine, CONFIG, objects)
    task_id = await ran(bus, owner, worker, objects)
    assert [call.body for call in engine.calls] == [BODY]
    told, result = await finished(bus, task_id)
    assert told.stored is not None
    assert (told.state, told.content_type, told.stored.bytes, result) == (
        "completed",
        "image/png",
        len(LARGE.body),
        b"",
    )
    assert await Large(bus, objects, 0).get(task_id, told.stored) == LARGE.body
    await worker.drain(1)


@pytest.mark.parametrize(
    ("made", "more"),
    [
        ((Answer(status=200, body=b"{}"),), {}),
        ((LARGE,), {"shared": True}),
        ((chunk("x" * 2000), Answer(status=200, body=b"")), {}),
        ((Answer(status=400, body=b'{"error":{"message":"%b","type":"x"}}' % (b"y" * 2000)),), {}),
    ],
    ids=["small", "may be given to others", "streamed", "an error"],
)
async def test_other_answers_go_through_redis(
    bus: Bus, owner: Owner, objects: Objects, made: tuple[Chunk | Answer, ...], more: dict[str, object]
) -> None:
    worker = Worker(bus, owner, Scripted(*made), CONFIG, objects)
    told, result = await finished(bus, await ran(bus, owner, worker, objects, **more))
    assert told.stored is None
    assert result
    assert len(await stored(objects)) == 1  # the body
    await worker.drain(1)


async def test_an_answer_that_the_store_does_not_take_goes_through_redis(
    bus: Bus, owner: Owner, objects: Objects, tmp_path: Path
) -> None:
    class Breaking(Scripted):
        async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
            async for piece in super().run(call):
                yield piece
            (tmp_path / "objects").rename(tmp_path / "away")

    worker = Worker(bus, owner, Breaking(LARGE), CONFIG, objects)
    told, result = await finished(bus, await ran(bus, owner, worker, objects))
    assert (told.stored, result) == (None, LARGE.body)
    await worker.drain(1)


async def test_a_task_whose_body_is_lost_fails_at_once_and_is_a_dead_letter(
    bus: Bus, owner: Owner, objects: Objects
) -> None:
    engine = Scripted(LARGE)
    worker = Worker(bus, owner, engine, CONFIG, objects)
    fields = await tasks.fields(bus, await ran(bus, owner, worker, None))
    assert (fields["state"], fields["status"], engine.calls) == ("failed", "500", [])
    assert msgspec.json.decode(fields["result"])["error"]["code"] == "object_missing"
    ((_, letter),) = await tasks.entries(bus, SHARD.dead)
    assert letter[b"code"] == b"object_missing"
    await worker.drain(1)


@pytest.mark.parametrize("configured", [True, False], ids=["away", "not configured"])
async def test_without_the_store_a_task_is_tried_again_and_its_engine_is_not_blamed(
    bus: Bus, owner: Owner, objects: Objects, tmp_path: Path, configured: bool
) -> None:
    (tmp_path / "objects").rename(tmp_path / "away")
    engine = Scripted(LARGE, remote=True)
    worker = Worker(bus, owner, engine, CONFIG, objects if configured else None)
    for _ in range(FAILED_TASKS + 1):
        task_id = await ran(bus, owner, worker, None)
        fields = await tasks.fields(bus, task_id)
        assert (fields["state"], fields["failures"]) == ("pending", "1")
        due_ms = float(await bus.commands.call("ZSCORE", SHARD.later, task_id))
        assert due_ms > now_ms() + (STORE_PAUSE_S - 5) * 1000
    assert (engine.calls, worker.room.breaker) == ([], State.CLOSED)
    await worker.drain(1)


async def test_a_store_that_hangs_does_not_use_up_the_time_that_a_task_may_run(
    bus: Bus, owner: Owner, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(key: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(objects, "get", hangs)
    monkeypatch.setattr(large, "PATIENCE_S", 0.1)
    worker = Worker(bus, replace(owner, limits=Limits(inline_bytes=1024, run_s=0)), Scripted(LARGE), CONFIG, objects)
    fields = await tasks.fields(bus, await ran(bus, owner, worker, None))
    assert (fields["state"], fields["failures"]) == ("pending", "1")
    await worker.drain(1)


async def test_the_last_try_without_the_store_says_why(bus: Bus, owner: Owner) -> None:
    limits = Limits(failures=0, results_kept_s=60)
    worker = Worker(bus, replace(owner, limits=limits), Scripted(LARGE), CONFIG)
    fields = await tasks.fields(bus, await ran(bus, owner, worker, None))
    error = msgspec.json.decode(fields["result"])["error"]
    assert (fields["state"], fields["status"], error["code"]) == ("failed", "503", "store_unavailable")
    assert "HEADRACE_OBJECTS" in error["message"]
    ((_, letter),) = await tasks.entries(bus, SHARD.dead)
    task = decode_task(letter[b"spec"])
    assert task.stored is not None
    assert object_key(letter[b"t"].decode(), task.stored).endswith("/x")
    assert fields["dead"].encode() == (await tasks.entries(bus, SHARD.dead))[0][0]
    ttl_ms = await tasks.ttl_ms(bus, SHARD.task(letter[b"t"].decode()))
    assert ttl_ms > AGAIN_MS  # or the sweep could not see that the body belongs to a letter
    await worker.drain(1)
