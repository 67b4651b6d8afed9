"""A batch is fed to its end: each line once, in one file, whatever dies, is refused or is out of reach meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.inference.scripts import Ending, Hand
from services.scheduler.batches import feeder, feeding, gathering
from services.scheduler.batches.feeder import Feeder
from services.scheduler.batches.gathering import Gathering
from services.scheduler.batches.items import Item
from services.scheduler.batches.work import Tools, read_work
from services.scheduler.metrics import BATCH_WAITS
from services.scheduler.scripts import due
from shared import keys
from shared.batches import Batch, Batches, End, Status, file_id_of, move, new_id
from shared.bus.client import Bus
from shared.bus.connection import Arg, Reply
from shared.config import Config, Limits
from shared.errors import ConnectionLost, MemoryFull, TenantFull
from shared.lifecycle import State
from shared.messages import Finished, encode
from shared.policy import Live, Policy, Tenant
from shared.request import Request
from shared.submit import Submitted, Submitter
from tests.support import batches, tasks
from tests.support.batches import FAILS, Engine, Fate, MortalBus, fed, line, made, nothing_left, read_lines, tools
from tests.support.waiting import TIMEOUT_S, wait_until

LINES = [
    line(0),
    line(1, FAILS),
    b"no json",
    line(3),
    b"",
    line(3),  # stands twice
    *(line(n) for n in range(6, 12)),
    line(12, url="/v1/embeddings"),
    line(13),
]
SAID = {"item-1": "told_to", None: "invalid_json_line", "item-3": "duplicate_custom_id", "item-12": "invalid_url"}
DONE = [f"item-{n}" for n in (0, 3, *range(6, 12), 13)]
MANY_BATCHES = pytest.mark.timeout(600)
"""A batch for each step: seconds, and minutes on a machine that does much else."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((feeder, "IDLE_S", 0.0), (feeder, "PAUSE_S", (0.0, 0.0)), (feeder, "LOOK_S", 0.0)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(gathering, "SEGMENT_S", 0.01)


async def read(bus: Bus, batch: Batch) -> Batch:
    return await Batches(bus, 1).read(batch.id)


async def whole(bus: Bus, folder: Path, batch: Batch) -> None:
    """What LINES come to."""
    after = await read(bus, batch)
    assert after.status is Status.COMPLETED
    assert (after.total, after.ended) == (13, {End.COMPLETED: 9, End.FAILED: 4, End.CANCELLED: 0, End.EXPIRED: 0})
    output, errors = [await read_lines(bus, folder, batch.id, kind) for kind in ("output", "errors")]
    assert sorted(said["custom_id"] for said in output) == sorted(DONE)
    assert sorted(map(str, (said["custom_id"] for said in errors))) == sorted(map(str, SAID))
    assert batches.codes(errors) == SAID
    assert (after.output_lines, after.error_lines) == (9, 4)
    assert (after.tokens_in, after.tokens_out) == (27, 18)
    assert len({said["id"] for said in output + errors}) == 13
    await nothing_left(bus, folder, batch)


async def test_output_has_each_line_once_in_the_shape_of_the_openai_api(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)
    await fed(bus, tools(bus, tmp_path), batch.id)
    await whole(bus, tmp_path, batch)
    (first,) = [said for said in await read_lines(bus, tmp_path, batch.id, "output") if said["custom_id"] == "item-0"]
    assert first.keys() == {"id", "custom_id", "response", "error"}
    assert first["error"] is None
    assert (first["response"]["status_code"], first["response"]["request_id"][:5]) == (200, "smol.")
    assert first["response"]["body"]["said"]["messages"][0]["content"] == "text 0"
    errors = {said["custom_id"]: said for said in await read_lines(bus, tmp_path, batch.id, "errors")}
    assert errors["item-1"]["response"]["status_code"] == 400
    assert errors["item-3"]["error"]["line"] == 6
    assert errors[None]["error"]["line"] == 3


@MANY_BATCHES
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_feeder_that_dies_at_any_step_is_followed_by_one_that_ends_the_batch(
    redis_url: str, tmp_path: Path, after: bool
) -> None:
    died, at = True, 0
    while died:
        at += 1
        fate = Fate(at, after=after)
        async with MortalBus(redis_url, name="mortal") as mortal, Bus(redis_url, name="test") as bus:
            batch = await made(bus, tmp_path, LINES)
            mortal.fate = fate
            engine = await fed(bus, tools(mortal, tmp_path, fate=fate), batch.id, fate)
            died = fate.steps >= at
            if not (await read(bus, batch)).status.terminal:
                await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
            await whole(bus, tmp_path, batch)
            assert len(engine.ran) == len(set(engine.ran)) == 10, "what ran once was run again"
            await bus.commands.call("FLUSHALL")
    assert at > 12


@MANY_BATCHES
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_connection_that_is_lost_at_any_step_is_waited_for(redis_url: str, tmp_path: Path, after: bool) -> None:
    lost, at = True, 0
    while lost:
        at += 1
        fate = Fate(at, after=after)
        async with MortalBus(redis_url, name="mortal") as mortal, Bus(redis_url, name="test") as bus:
            batch = await made(bus, tmp_path, LINES)
            mortal.fate = fate
            engine = await fed(bus, tools(mortal, tmp_path, fate=fate), batch.id)
            await whole(bus, tmp_path, batch)
            assert len(engine.ran) == len(set(engine.ran)) == 10
            assert await bus.commands.call("HGET", keys.batch(batch.id, "state"), "epoch") == b"1"
            lost = fate.steps >= at
            await bus.commands.call("FLUSHALL")
    assert at > 12


async def test_no_more_than_the_window_are_tasks_at_once(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, [line(n) for n in range(50)])
    kit, most = tools(bus, tmp_path), 0

    class Counting(Engine):
        async def serve(self) -> None:
            nonlocal most
            most = max(most, int(await bus.commands.call("HGET", tasks.SHARD.waiting, "l:batch") or 0))
            await super().serve()

    engine = Counting(bus)
    await fed(bus, kit, batch.id, engine=engine)
    assert len(engine.ran) == 50
    assert 0 < most <= batches.CONFIG.limits.batch_window


async def test_what_a_tenant_may_not_have_waiting_is_waited_for(bus: Bus, tmp_path: Path) -> None:
    policy = Policy(tenants={"acme": Tenant(queued=3)})
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(batch_window=8), live=Live(policy))
    batch = await made(bus, tmp_path, [line(n) for n in range(20)])
    await fed(bus, tools(bus, tmp_path, config), batch.id)
    after = await read(bus, batch)
    assert (after.status, after.ended[End.COMPLETED]) == (Status.COMPLETED, 20)


async def test_full_shard_is_waited_for(bus: Bus, tmp_path: Path) -> None:
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(batch_window=8, backlog=4))
    batch = await made(bus, tmp_path, [line(n) for n in range(12)])
    await fed(bus, tools(bus, tmp_path, config), batch.id)
    assert (await read(bus, batch)).ended[End.COMPLETED] == 12


async def test_full_redis_is_waited_for_while_what_has_ended_goes_to_the_files(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that makes room: until a segment is named, nothing more is taken."""
    monkeypatch.setattr(gathering, "SEGMENT_S", 0.2)
    monkeypatch.setattr(feeding, "REFUSED_S", (0.0, 0.0))
    batch = await made(bus, tmp_path, [line(n) for n in range(20)])
    accepted: set[str] = set()

    class Full(Submitter):
        async def submit(self, request: Request, task_id: str) -> Submitted:
            ended = await bus.commands.call("HGET", keys.batch(batch.id, "state"), End.COMPLETED)
            if len(accepted) >= 4 and not int(ended or 0):
                raise MemoryFull("Redis uses 90% of its maxmemory")
            accepted.add(task_id)
            return await super().submit(request, task_id)

    await fed(bus, replace(tools(bus, tmp_path), submitter=Full(bus, batches.CONFIG)), batch.id)
    assert (await read(bus, batch)).ended[End.COMPLETED] == len(accepted) == 20


@pytest.mark.parametrize(("waited_s", "completed"), [(1800, 6), (7200, 0)], ids=["in its window", "for longer"])
async def test_task_that_was_refused_for_a_while_has_only_the_rest_of_the_window(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited_s: int, completed: int
) -> None:
    shift_ms, told, refused = 0, list[float](), set[str]()

    time_ms = Bus.time_ms

    async def shifted_ms(bus: Bus) -> int:
        return await time_ms(bus) + shift_ms

    monkeypatch.setattr(Bus, "time_ms", shifted_ms)
    monkeypatch.setattr(feeding, "REFUSED_S", (0.0, 0.0))
    batch = await made(bus, tmp_path, [line(n) for n in range(6)], window_s=3600)

    class Refusing(Submitter):
        async def submit(self, request: Request, task_id: str) -> Submitted:
            nonlocal shift_ms
            if not shift_ms:
                refused.add(task_id)
                shift_ms = waited_s * 1000 if len(refused) == 6 else 0
                raise TenantFull("acme", 1)
            told.append(request.task.expires_in_s)
            return await super().submit(request, task_id)

    await fed(bus, replace(tools(bus, tmp_path), submitter=Refusing(bus, batches.CONFIG)), batch.id)
    ended = (await read(bus, batch)).ended
    assert (ended[End.COMPLETED], ended[End.EXPIRED]) == (completed, 6 - completed)
    assert max(told, default=0) <= 3600 - waited_s or not completed


async def test_ids_of_tasks_do_not_follow_from_the_key_of_their_batch(bus: Bus, tmp_path: Path) -> None:
    ran: list[set[str]] = []
    for _ in range(2):
        batch = await made(bus, tmp_path, LINES, key="daily")
        assert batch.id == new_id("acme", "daily")
        ran.append(set((await fed(bus, tools(bus, tmp_path), batch.id)).ran))
        await bus.commands.call("FLUSHALL")
    assert ran[0].isdisjoint(ran[1])


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([], ["empty_file"]),
        ([b"", b"  "], ["empty_file"]),
        ([b"no json", line(1, method="GET"), line(2, body={"model": "nope"})], ["invalid_json_line", "invalid_method", "model_not_found"]),
    ],
    ids=["empty", "blank", "every line wrong"],
)  # fmt: skip
async def test_file_without_a_single_valid_line_fails_the_batch(
    bus: Bus, tmp_path: Path, lines: list[bytes], codes: list[str]
) -> None:
    batch = await made(bus, tmp_path, lines)
    engine = await fed(bus, tools(bus, tmp_path), batch.id)
    after = await read(bus, batch)
    assert (after.status, [fault.code for fault in after.faults], engine.ran) == (Status.FAILED, codes, [])
    assert after.total == after.ended[End.FAILED]
    await nothing_left(bus, tmp_path, batch)


async def test_file_with_too_many_lines_fails_the_batch(bus: Bus, tmp_path: Path) -> None:
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(batch_lines=3))
    batch = await made(bus, tmp_path, [line(n) for n in range(4)])
    await fed(bus, tools(bus, tmp_path, config), batch.id)
    (fault,) = (await read(bus, batch)).faults
    assert (fault.code, "batch_lines" in fault.message) == ("too_many_lines", True)


async def test_file_that_is_gone_before_its_batch_began_fails_it(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)
    await batches.files(bus, tmp_path).delete(batch.input_file_id)
    await fed(bus, tools(bus, tmp_path), batch.id)
    assert [fault.code for fault in (await read(bus, batch)).faults] == ["input_file_not_found"]


async def test_file_that_goes_while_its_batch_runs_leaves_the_rest_undone(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, [line(n) for n in range(30)])

    class Deleting(Engine):
        async def serve(self) -> None:
            if not self.ran:
                await super().serve()
                if self.ran:
                    await batches.files(bus, tmp_path).delete(batch.input_file_id)
            else:
                await super().serve()

    kit = tools(bus, tmp_path)
    await fed(bus, kit, batch.id, engine=Deleting(bus))
    after = await read(bus, batch)
    assert after.status is Status.COMPLETED
    assert sum(after.ended.values()) == 30


async def cancelled(bus: Bus, batch: Batch) -> None:
    await Batches(bus, 1).cancel(batch.id)


async def test_cancel_before_anything_was_begun(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)
    await cancelled(bus, batch)
    engine = await fed(bus, tools(bus, tmp_path), batch.id)
    after = await read(bus, batch)
    assert (after.status, sum(after.ended.values()), after.total, engine.ran) == (Status.CANCELLED, 0, 0, [])


async def test_cancel_in_the_middle_ends_what_waits_and_what_was_not_begun(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, [line(n) for n in range(30)])

    class Cancelling(Engine):
        async def serve(self) -> None:
            if len(self.ran) < 5:
                await super().serve()
            elif not self.holds:
                self.holds = True
                await cancelled(bus, batch)
            await super().serve()

    engine = Cancelling(bus)
    await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
    after = await read(bus, batch)
    done = len(engine.ran)
    assert (after.status, after.ended[End.COMPLETED], after.ended[End.CANCELLED]) == (Status.CANCELLED, done, 30 - done)
    errors = await read_lines(bus, tmp_path, batch.id, "errors")
    assert {said["error"]["code"] for said in errors} == {"batch_cancelled"}
    assert {said["response"] for said in errors} == {None}
    output = await read_lines(bus, tmp_path, batch.id, "output")
    assert sorted(said["custom_id"] for said in output + errors) == sorted(f"item-{n}" for n in range(30))
    await nothing_left(bus, tmp_path, batch)


async def test_what_is_not_done_when_the_window_ends_has_expired(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, [line(n) for n in range(30)])

    class Late(Engine):
        async def serve(self) -> None:
            await super().serve()
            if self.ran and not self.holds:
                self.holds = True
                await bus.commands.call("HSET", keys.batch(batch.id, "state"), "expires_at_ms", 1)
                raise EOFError

    engine, kit = Late(bus), tools(bus, tmp_path)
    with pytest.raises(EOFError):
        await fed(bus, kit, batch.id, engine=engine)
    await expire_all(bus)
    await fed(bus, kit, batch.id, engine=engine)
    after = await read(bus, batch)
    assert after.status is Status.EXPIRED
    assert after.ended[End.EXPIRED] == 30 - after.ended[End.COMPLETED]
    errors = await read_lines(bus, tmp_path, batch.id, "errors")
    assert {said["error"]["code"] for said in errors} == {"batch_expired"}


async def expire_all(bus: Bus) -> None:
    """The tasks that wait, as their deadlines would."""
    for id in await bus.commands.call("ZRANGE", tasks.SHARD.expiry, 0, -1):
        await bus.commands.call("HSET", tasks.SHARD.task(id.decode()), "deadline_ms", 1)
        await bus.commands.call("ZADD", tasks.SHARD.expiry, 1, id)
    await due(bus, tasks.SHARD, tasks.LIMITS)


async def lose_input(bus: Bus, folder: Path, batch: Batch) -> None:
    """The record of the file stays."""
    (part,) = await bus.commands.call("ZRANGE", keys.file_parts(batch.input_file_id), 0, -1)
    await batches.files(bus, folder).objects.delete(part.decode())


async def test_batch_whose_input_the_store_has_lost_waits_for_it_until_its_window_ends(
    bus: Bus, tmp_path: Path
) -> None:
    """It would never end: what is not there cannot be validated, and nobody gives it up."""
    batch, kit = await made(bus, tmp_path, LINES), tools(bus, tmp_path)
    await lose_input(bus, tmp_path, batch)
    running = asyncio.create_task(Feeder(kit, batch.id, await batches.held(bus, batch.id), lambda: 8).run())
    before = BATCH_WAITS.labels("store")._value.get()
    await wait_until(lambda: BATCH_WAITS.labels("store")._value.get() > before, "it waits")
    assert (await read(bus, batch)).status is Status.VALIDATING
    await bus.commands.call("HSET", keys.batch(batch.id, "state"), "expires_at_ms", 1)
    await asyncio.wait_for(running, TIMEOUT_S)
    assert [fault.code for fault in (await read(bus, batch)).faults] == ["input_file_not_found"]


async def test_batch_whose_input_the_store_has_lost_can_be_cancelled(bus: Bus, tmp_path: Path) -> None:
    batch, engine, kit = await made(bus, tmp_path, [line(n) for n in range(30)]), Engine(bus), tools(bus, tmp_path)
    feeding = Feeder(kit, batch.id, await batches.held(bus, batch.id), lambda: 8)
    running = asyncio.create_task(feeding.run())
    await wait_until(lambda: feeding.work is not None and len(feeding.work.numbers) == 8, "its window is full")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await lose_input(bus, tmp_path, batch)
    await cancelled(bus, batch)
    engine.holds = True
    await fed(bus, kit, batch.id, engine=engine)
    after = await read(bus, batch)
    assert (after.status, after.fed, after.total) == (Status.CANCELLED, 30, 30)
    errors = batches.codes(await read_lines(bus, tmp_path, batch.id, "errors"))
    assert errors == {f"item-{n}": "batch_cancelled" for n in range(8)} | {None: "input_file_not_found"}
    assert (after.ended[End.CANCELLED], after.ended[End.FAILED]) == (8, 22)


async def leave(bus: Bus, kit: Tools, batch: Batch, *, items: int) -> None:
    """A holder goes as soon as the items are tasks."""
    feeding = Feeder(kit, batch.id, await batches.held(bus, batch.id), lambda: 8)
    running = asyncio.create_task(feeding.run())
    await wait_until(lambda: feeding.work is not None and len(feeding.work.numbers) == items, "its items are tasks")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_results_wait_to_be_gathered_for_longer_than_results_are_kept(bus: Bus, tmp_path: Path) -> None:
    """A batch that waited for a place for longer told of answers that had been there, and were gone."""
    batch, engine, kit = await made(bus, tmp_path, [line(0), line(1, FAILS)]), Engine(bus), tools(bus, tmp_path)
    await leave(bus, kit, batch, items=2)
    await engine.serve()
    left_ms = [await tasks.ttl_ms(bus, tasks.SHARD.task(id)) for id in engine.ran]
    assert tasks.LIMITS.results_kept_s * 1000 < 3_600_000 < min(left_ms) <= 3_600_000 + kit.batches.kept_ms
    await fed(bus, kit, batch.id, engine=engine)
    assert max([await tasks.ttl_ms(bus, tasks.SHARD.task(id)) for id in engine.ran]) <= gathering.KEPT_MS
    assert (await read(bus, batch)).ended[End.COMPLETED] == 1


async def test_item_whose_task_is_gone_ends_as_its_batch_was_asked_to(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel leaves a note where the task was, which is no end of it."""
    monkeypatch.setattr(gathering, "SILENCE_S", 0.05)
    batch = await made(bus, tmp_path, [line(n) for n in range(3)])

    class Losing(Engine):
        async def serve(self) -> None:
            if int(await bus.commands.call("HGET", keys.batch(batch.id, "state"), "fed") or 0) == 3:
                if not self.holds:
                    self.holds = True
                    await lose_tasks(bus)
                    await cancelled(bus, batch)
                await super().serve()

    await fed(bus, tools(bus, tmp_path), batch.id, engine=Losing(bus))
    errors = batches.codes(await read_lines(bus, tmp_path, batch.id, "errors"))
    assert errors == {f"item-{n}": "batch_cancelled" for n in range(3)}


async def test_full_redis_keeps_no_end_from_being_gathered_and_its_file_comes_when_there_is_room(
    bus: Bus, tmp_path: Path
) -> None:
    """A file has places in indexes, which a full Redis refuses; and only what was gathered makes room. The batch ends when it has
    its file, and not before: its segments would be taken for what a holder has left."""
    batch, engine, kit = await made(bus, tmp_path, LINES[:1]), Engine(bus), tools(bus, tmp_path)
    await leave(bus, kit, batch, items=1)
    await engine.serve()

    waits = BATCH_WAITS.labels("redis")._value.get
    feeding, before = Feeder(kit, batch.id, await batches.held(bus, batch.id), lambda: 8), waits()
    await bus.commands.call("CONFIG", "SET", "maxmemory", 1)
    try:
        running = asyncio.create_task(feeding.run())
        await wait_until(lambda: waits() > before, "it waits with its end")
        assert (await read(bus, batch)).ended[End.COMPLETED] == 1
        assert await tasks.ttl_ms(bus, tasks.SHARD.task(engine.ran[0])) <= gathering.KEPT_MS
        assert await bus.commands.call("LLEN", keys.batch(batch.id, "unfiled")) == 1
    finally:
        await bus.commands.call("CONFIG", "SET", "maxmemory", 0)
    await asyncio.wait_for(running, TIMEOUT_S)
    assert (await read(bus, batch)).status is Status.COMPLETED
    assert [said["custom_id"] for said in await read_lines(bus, tmp_path, batch.id, "output")] == ["item-0"]


@pytest.mark.parametrize("count", [1, 20], ids=["its last segment", "one in the middle"])
async def test_tasks_whose_lines_are_written_go_soon_though_their_holder_died_before_it_saw_to_that(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """They would stay for as long as those that wait to be gathered: a file's life behind the window."""
    batch, forget, died = await made(bus, tmp_path, [line(n) for n in range(count)]), Gathering._forget, list[str]()

    async def forgetting(self: Gathering, *leaving: Any) -> None:
        if not died:
            died.append("here")
            raise ConnectionLost("killed")
        await forget(self, *leaving)

    monkeypatch.setattr(Gathering, "_forget", forgetting)
    engine = await fed(bus, tools(bus, tmp_path), batch.id)
    assert (len(died), (await read(bus, batch)).ended[End.COMPLETED]) == (1, count)
    assert max([await tasks.ttl_ms(bus, tasks.SHARD.task(id)) for id in engine.ran]) <= gathering.KEPT_MS


class Silent(Engine):
    """Its replies are lost."""

    async def serve(self) -> None:
        await self._run()
        await self._bus.commands.call("DEL", tasks.SHARD.outbox)


async def test_first_look_at_the_tasks_comes_soon_after_the_batch_was_taken(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that gives up its place again and again would never find an end whose reply was lost."""
    monkeypatch.setattr(gathering, "SILENCE_S", 3600.0)
    monkeypatch.setattr(gathering, "FIRST_LOOK_S", 0.0)
    batch = await made(bus, tmp_path, LINES[:1])

    class Deaf(Engine):
        async def serve(self) -> None:
            await super().serve()
            await bus.commands.call("UNLINK", keys.reply(f"batch.{batch.id}"))

    feeding = Feeder(tools(bus, tmp_path), batch.id, await batches.held(bus, batch.id), lambda: 8)
    running = asyncio.create_task(feeding.run())
    await wait_until(lambda: feeding.work is not None and feeding.work.numbers, "it has a task")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    engine = Deaf(bus)
    await engine.serve()
    assert len(engine.ran) == 1
    await fed(bus, tools(bus, tmp_path), batch.id, engine=engine)
    assert (await read(bus, batch)).ended[End.COMPLETED] == 1


async def test_batch_does_not_stand_still_while_it_gathers_a_segment(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up its place forgets what was gathered: a slow batch would never name a segment."""
    monkeypatch.setattr(gathering, "SEGMENT_S", 3600.0)
    monkeypatch.setattr(feeder, "IDLE_S", 0.01)
    batch = await made(bus, tmp_path, LINES[:1] + LINES[3:4])
    feeding = Feeder(tools(bus, tmp_path), batch.id, await batches.held(bus, batch.id), lambda: 1)
    running, engine = asyncio.create_task(feeding.run()), Engine(bus)

    async def gathered() -> bool:
        engine.holds = bool(engine.ran)
        await engine.serve()
        return feeding.work is not None and len(feeding.work.endings) == 1

    await wait_until(gathered, "one has ended, and waits for the other")
    before_s = feeding._moved_s
    await wait_until(
        lambda: feeding._moved_s > before_s + 0.05 and feeding._pausing, "it counts as moving while it pauses"
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_end_whose_reply_was_lost_is_found_by_a_look_at_the_task(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SILENCE_S", 0.05)
    batch = await made(bus, tmp_path, LINES)
    await fed(bus, tools(bus, tmp_path), batch.id, engine=Silent(bus))
    await whole(bus, tmp_path, batch)


async def test_what_a_look_finds_goes_to_the_files_bit_by_bit(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("SILENCE_S", 0.05),
        ("SEGMENT_ITEMS", 3),
        ("SEGMENT_S", 3600.0),
        ("LONGEST_SEGMENT_S", 3600.0),
    ):
        monkeypatch.setattr(gathering, name, value)
    batch = await made(bus, tmp_path, [line(n) for n in range(16)])
    await fed(bus, tools(bus, tmp_path), batch.id, engine=Silent(bus))
    objects = batches.files(bus, tmp_path).objects
    segments = [await objects.get(key) async for key in objects.list(f"batches/{batch.id}/")]
    assert sum(data.count(b"\n") for data in segments) == 16
    assert max(data.count(b"\n") for data in segments) == 3


@pytest.mark.parametrize("base", [Engine, Silent], ids=["from the reply", "from the task"])
async def test_answer_that_is_not_json_stands_in_its_line_by_reference_and_its_task_is_kept(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: type[Engine]
) -> None:
    monkeypatch.setattr(gathering, "SILENCE_S", 0.05)
    monkeypatch.setattr(gathering, "KEPT_MS", 60_000)
    batch = await made(bus, tmp_path, [line(n) for n in range(3)])

    class Painting(base):  # type: ignore[misc, valid-type]
        def ending(self, hand: Hand, body: bytes) -> Ending:
            said = Finished(attempt=1, last=0, state=State.COMPLETED, status=200, content_type="image/png")
            return replace(tasks.ending(hand, 1, 0), result=b"\x89PNG\n", finished=encode(said))

    engine = await fed(bus, tools(bus, tmp_path), batch.id, engine=Painting(bus))
    output = await read_lines(bus, tmp_path, batch.id, "output")
    assert {said["response"]["body"]["url"] for said in output} == {f"/v1/tasks/{id}/result" for id in engine.ran}
    assert {said["response"]["body"]["bytes"] for said in output} == {5}
    assert min([await tasks.ttl_ms(bus, tasks.SHARD.task(id)) for id in engine.ran]) > gathering.KEPT_MS


async def test_failure_that_only_its_task_tells_has_the_reason(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SILENCE_S", 0.05)
    batch = await made(bus, tmp_path, [line(0, FAILS), line(1)])

    class Wordless(Silent):
        def ending(self, hand: Hand, body: bytes) -> Ending:
            ending = super().ending(hand, body)
            return replace(ending, result=b"") if ending.state is State.FAILED else ending

    await fed(bus, tools(bus, tmp_path), batch.id, engine=Wordless(bus))
    assert batches.codes(await read_lines(bus, tmp_path, batch.id, "errors")) == {"item-0": "told_to"}


class Reading(Bus):
    """Remembers how many entries each XREAD gave."""

    taken: list[int]

    async def read(self, *command: Arg) -> Reply:
        answer = await super().read(*command)
        if command[0] == "XREAD" and answer:
            self.taken.append(len(answer[0][1]))
        return answer


@pytest.mark.parametrize(("size", "taken"), [(900, [1] * 20), (10, [1, 2, 4, 8, 5])], ids=["large", "small"])
async def test_successor_reads_no_more_replies_at_once_than_may_be_in_memory(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, taken: list[int]
) -> None:
    monkeypatch.setattr(gathering, "READ_BYTES", 1000)
    async with Reading(redis_url, name="reading") as bus:
        bus.taken = []
        batch, kit = await made(bus, tmp_path, LINES), tools(bus, tmp_path)
        for _ in range(20):
            await bus.commands.call("XADD", keys.reply(f"batch.{batch.id}"), "*", "reply", "x" * size)

        async def again(number: int, item: Item) -> None: ...

        gatherer = Gathering(kit, await read_work(kit, batch.id, await batches.held(bus, batch.id)), again)
        while await gatherer.take():
            pass
        assert bus.taken == taken


LOSE = """
local found = redis.call('KEYS', ARGV[1])
for _, key in ipairs(found) do redis.call('DEL', key) end
return #found > 0 and redis.call('DEL', unpack(KEYS)) or 0
"""


async def lose_tasks(bus: Bus) -> int:
    names = (tasks.SHARD.arrivals, tasks.SHARD.expiry, tasks.SHARD.waiting)
    return int(await bus.commands.call("EVAL", LOSE, len(names), *names, tasks.SHARD.task("*")))


async def test_task_that_redis_has_lost_is_submitted_again(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SILENCE_S", 0.05)
    batch = await made(bus, tmp_path, LINES)

    class Losing(Engine):
        lost = 0

        async def serve(self) -> None:
            if not self.lost:
                self.lost = await lose_tasks(bus)
            await super().serve()

    await fed(bus, tools(bus, tmp_path), batch.id, engine=Losing(bus))
    await whole(bus, tmp_path, batch)


async def test_reply_that_comes_twice_or_from_a_stranger_counts_for_nothing(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)
    stream = keys.reply(f"batch.{batch.id}")

    class Repeating(Engine):
        async def serve(self) -> None:
            await super().serve()
            for _, fields in await tasks.entries(bus, stream):
                await bus.commands.call("XADD", stream, "*", "reply", fields[b"reply"])
                await bus.commands.call("XADD", stream, "*", "reply", b'{"type":"reply.v1"', "x", "y")
                await bus.commands.call("XADD", stream, "*", "reply", b'{"type":"reply.v1","context":' + b"[" * 5000)
                forged = '{"type":"reply.v1","event":"e","id":"smol.0.0.0.x","status":"completed","result":{}}'
                await bus.commands.call("XADD", stream, "*", "reply", forged)
                break

    await fed(bus, tools(bus, tmp_path), batch.id, engine=Repeating(bus))
    after = await read(bus, batch)
    assert (after.status, after.output_lines) == (Status.COMPLETED, 9)


@pytest.mark.parametrize("since", [0, 4, 8], ids=["from the start", "while it feeds", "while it ends"])
async def test_object_store_that_is_away_is_waited_for(bus: Bus, tmp_path: Path, since: int) -> None:
    batch, fate = await made(bus, tmp_path, LINES), Fate()

    class Moving(Engine):
        turns = 0

        async def serve(self) -> None:
            fate.away = since <= self.turns < since + 30
            self.turns += 1
            await super().serve()

    fate.away = since == 0
    await fed(bus, tools(bus, tmp_path, fate=fate), batch.id, engine=Moving(bus))
    await whole(bus, tmp_path, batch)


async def test_holder_that_lost_its_lease_writes_nothing_more(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)

    class Usurping(Engine):
        async def serve(self) -> None:
            await super().serve()
            if not self.holds:
                self.holds = True
                await batches.held(bus, batch.id)

    engine = await fed(bus, tools(bus, tmp_path), batch.id, engine=Usurping(bus))
    before = await bus.commands.call("HGETALL", keys.batch(batch.id, "state"))
    assert (await read(bus, batch)).status in (Status.VALIDATING, Status.IN_PROGRESS)
    assert await move(bus, batch.id, None, [], Status.FAILED) == f"is {(await read(bus, batch)).status}"
    assert await bus.commands.call("HGETALL", keys.batch(batch.id, "state")) == before
    engine.holds = False
    await fed(bus, tools(bus, tmp_path), batch.id, engine=Engine(bus))
    await whole(bus, tmp_path, batch)


async def test_files_can_be_read_before_the_end(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "SEGMENT_ITEMS", batches.CONFIG.limits.batch_window)
    batch = await made(bus, tmp_path, [line(n) for n in range(30)])
    seen: list[int] = []

    class Looking(Engine):
        async def serve(self) -> None:
            await super().serve()
            seen.append(len(await read_lines(bus, tmp_path, batch.id, "output")))

    await fed(bus, tools(bus, tmp_path), batch.id, engine=Looking(bus))
    assert seen == sorted(seen)
    assert any(0 < count < 30 for count in seen)
    file = await batches.files(bus, tmp_path).get(file_id_of(batch.id, "output"))
    assert (file.status, file.tenant, file.purpose) == ("processed", "acme", "batch_output")


async def test_tasks_whose_lines_are_in_the_output_are_not_kept_for_long(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, LINES)
    engine = await fed(bus, tools(bus, tmp_path), batch.id)
    kept: Any = [await tasks.ttl_ms(bus, tasks.SHARD.task(id)) for id in engine.ran]
    assert max(kept) <= gathering.KEPT_MS
