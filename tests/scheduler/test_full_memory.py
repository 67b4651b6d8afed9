"""The stream door while Redis has no room for new tasks."""

import asyncio
import logging

import pytest

from services.scheduler.front import Front
from shared import keys
from shared.bus import consume, memory
from shared.bus.check import parse_info
from shared.bus.client import Bus
from shared.bus.consume import Consumer
from shared.submit import Submitter
from tests.support import tasks
from tests.support.waiting import wait_until

ENTRIES, AT_ONCE = 100, 10


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(consume, "BLOCK_MS", 20)
    monkeypatch.setattr(consume, "PAUSE_S", (0.01, 0.05))
    monkeypatch.setattr(memory, "LOOK_EVERY_S", 0.0)
    caplog.set_level(logging.CRITICAL)


async def test_entries_wait_unread_and_become_tasks_when_there_is_room(bus: Bus) -> None:
    call = bus.commands.call
    front = Front(bus, tasks.CONFIG, Submitter(bus, tasks.CONFIG))
    door = Consumer(bus, stream=keys.REQUESTS, group=keys.FRONT, name="f", handle=front.on_entries, count=AT_ONCE)
    for n in range(ENTRIES):
        await call("XADD", keys.REQUESTS, "*", "model", tasks.MODEL, "input_text", str(n))
    used = int(parse_info(await call("INFO", "memory"))["used_memory"])
    await call("CONFIG", "SET", "maxmemory", int(used / 0.9))
    running = asyncio.create_task(door.run())
    try:
        await wait_until(lambda: "entries must wait" in str(door.fault), "the door says that it waits")
        assert (await call("XPENDING", keys.REQUESTS, keys.FRONT))[0] <= AT_ONCE
        assert await call("XLEN", keys.REQUESTS) == ENTRIES
        assert await call("XLEN", tasks.SHARD.arrivals) == 0
    finally:
        await call("CONFIG", "SET", "maxmemory", 0)
    await wait_until(lambda: is_empty(bus), "every entry is dealt with")
    assert await call("XLEN", tasks.SHARD.arrivals) == ENTRIES
    await wait_until(lambda: door.fault is None, "the fault is over")
    while not running.done():
        await door.stop()
        await asyncio.wait([running], timeout=0.05)


async def is_empty(bus: Bus) -> bool:
    length: int = await bus.commands.call("XLEN", keys.REQUESTS)
    return length == 0
