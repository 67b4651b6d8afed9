"""Answers of items that are too large for Redis: whole in the output where they are JSON, else told by their place."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.inference.scripts import Ending, Hand
from services.scheduler.batches.feeder import Feeder
from services.scheduler.batches.gathering import KEPT_MS
from shared import keys
from shared.batches import Batches
from shared.bus.client import Bus
from shared.config import Limits
from shared.large import object_key
from shared.lifecycle import State
from shared.messages import Finished, Stored, encode
from shared.objects import Objects
from shared.submit import Submitter
from tests.scheduler.batches.test_feeder import impatient as impatient
from tests.support import batches, tasks
from tests.support.batches import CONFIG, FAILS, Engine, fed, line, made, read_lines, tools
from tests.support.waiting import wait_until

WHOLE, SOUND, LOST = "whole", "a sound", "lost"


class Storing(Engine):
    """Its answers lie in the object store, or did."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        super().__init__(bus)
        self._folder = folder

    def ending(self, hand: Hand, body: bytes) -> Ending:
        usual = super().ending(hand, body)
        stored = Stored(name="x", bytes=len(usual.result))
        if LOST.encode() not in body:
            path = self._folder / object_key(hand.id, stored)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(usual.result)
        kind = "audio/wav" if SOUND.encode() in body else ""
        event = Finished(attempt=1, last=0, state=State.COMPLETED, status=200, content_type=kind, stored=stored)
        return replace(usual, result=b"", finished=encode(event))


async def test_an_item_ends_with_its_large_answer_where_that_is_or_as_lost(bus: Bus, tmp_path: Path) -> None:
    batch = await made(bus, tmp_path, [line(1, WHOLE), line(2, SOUND), line(3, LOST)])
    await fed(bus, tools(bus, tmp_path), batch.id, engine=Storing(bus, tmp_path))
    output = {said["custom_id"]: said["response"] for said in await read_lines(bus, tmp_path, batch.id, "output")}
    assert output["item-1"]["body"]["said"]["messages"][0]["content"] == WHOLE
    task_id = output["item-2"]["request_id"]
    assert output["item-2"]["body"]["url"] == f"/v1/tasks/{task_id}/result"
    assert output["item-2"]["body"]["content_type"] == "audio/wav"
    errors = await read_lines(bus, tmp_path, batch.id, "errors")
    assert batches.codes(errors) == {"item-3": "result_lost"}
    assert await bus.commands.call("EXISTS", keys.batch(batch.id, "open")) == 0


@pytest.mark.parametrize("cancelled", [False, True])
async def test_answer_that_is_gone_with_its_task_is_made_anew_unless_its_batch_is_over(
    bus: Bus, tmp_path: Path, cancelled: bool
) -> None:
    """Its reply only says where it is."""
    batch = await made(bus, tmp_path, [line(1, WHOLE)])

    class Forgetting(Storing):
        forgotten = 0

        async def serve(self) -> None:
            await super().serve()
            if len(self.ran) == 1 and not self.forgotten:
                self.forgotten = await bus.commands.call("DEL", tasks.SHARD.task(self.ran[0]))
                if cancelled:
                    await Batches(bus, 1).cancel(batch.id)

    kit, engine = tools(bus, tmp_path), Forgetting(bus, tmp_path)
    feeding = Feeder(kit, batch.id, await batches.held(bus, batch.id), lambda: 8)
    running = asyncio.create_task(feeding.run())
    await wait_until(lambda: feeding.work is not None and feeding.work.numbers, "its item is a task")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await engine.serve()
    await fed(bus, kit, batch.id, engine=engine)
    assert len(engine.ran) == (1 if cancelled else 2)
    output = await read_lines(bus, tmp_path, batch.id, "output")
    assert [said["custom_id"] for said in output] == ([] if cancelled else ["item-1"])
    errors = batches.codes(await read_lines(bus, tmp_path, batch.id, "errors"))
    assert errors == ({"item-1": "result_lost"} if cancelled else {})


async def test_the_task_of_a_failed_item_stays_if_its_dead_letter_may_need_the_body(bus: Bus, tmp_path: Path) -> None:
    """Those of other items make room: all that matters of them is in the output."""

    class Failing(Engine):
        """Whatever has no body in Redis fails."""

        def ending(self, hand: Hand, body: bytes) -> Ending:
            return super().ending(hand, body or FAILS.encode())

    small = replace(CONFIG, limits=Limits(inline_bytes=1024))
    submitter = Submitter(bus, small, Objects(tmp_path.as_uri()))
    engine = Failing(bus)
    engine._owner = replace(await tasks.worker(bus, slots=100), limits=Limits())
    batch = await made(bus, tmp_path, [line(1, "x" * 2000), line(2, FAILS)])
    await fed(bus, replace(tools(bus, tmp_path), submitter=submitter), batch.id, engine=engine)
    errors = {said["custom_id"]: said["response"] for said in await read_lines(bus, tmp_path, batch.id, "errors")}
    left_ms = {name: await tasks.ttl_ms(bus, tasks.SHARD.task(said["request_id"])) for name, said in errors.items()}
    assert small.limits.results_kept_s * 1000 >= left_ms["item-1"] > KEPT_MS >= left_ms["item-2"] > 0
