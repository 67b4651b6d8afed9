"""Objects of tasks go with their tasks, and with the dead letters that need them; not before."""

from pathlib import Path

import pytest

from services.scheduler.object_sweep import AGAIN_MS, LATER_MS, LONGEST_MS, PAGE, ObjectSweep
from shared import keys
from shared.bus.client import Bus
from shared.bus.streams import append
from shared.clock import now_ms
from shared.large import Large, object_key
from shared.objects import Objects
from tests.shared.test_files import stored
from tests.support import tasks


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


async def due(bus: Bus, objects: Objects, task_id: str) -> str:
    """The key of an object of that task that is to be looked at."""
    key = object_key(task_id, await Large(bus, objects, 0).put(task_id, b"x"))
    await bus.commands.call("ZADD", keys.OBJECTS, now_ms() - 1, key)
    return key


async def waits_ms(bus: Bus, entry: str) -> float:
    return float(await bus.commands.call("ZSCORE", keys.OBJECTS, entry)) - now_ms()


async def test_objects_without_a_task_go_and_fresh_ones_stay(bus: Bus, objects: Objects) -> None:
    for _ in range(PAGE + 1):
        await due(bus, objects, tasks.new_id())
    task_id = tasks.new_id()
    fresh = object_key(task_id, await Large(bus, objects, 0).put(task_id, b"x"))
    await ObjectSweep(bus, objects).look()
    assert await stored(objects) == [fresh]
    assert await bus.commands.call("ZRANGE", keys.OBJECTS, 0, -1) == [fresh.encode()]


async def test_an_object_stays_while_its_task_does(bus: Bus, objects: Objects) -> None:
    task_id = await tasks.submitted(bus)
    key = await due(bus, objects, task_id)
    sweep = ObjectSweep(bus, objects)
    await sweep.look()
    assert AGAIN_MS - 60_000 < await waits_ms(bus, key) <= AGAIN_MS + 60_000
    await bus.commands.call("PEXPIRE", tasks.SHARD.task(task_id), 500_000)
    await bus.commands.call("ZADD", keys.OBJECTS, 1, key)
    await sweep.look()
    assert 400_000 < await waits_ms(bus, key) <= 501_000
    await bus.commands.call("PEXPIRE", tasks.SHARD.task(task_id), 30 * LONGEST_MS)
    await bus.commands.call("ZADD", keys.OBJECTS, 1, key)
    await sweep.look()
    assert await waits_ms(bus, key) <= LONGEST_MS + 60_000
    assert await stored(objects) == [key]
    await bus.commands.call("DEL", tasks.SHARD.task(task_id))
    await bus.commands.call("ZADD", keys.OBJECTS, 1, key)
    for _ in range(2):
        await sweep.look()
        assert await stored(objects) == []
        assert await bus.commands.call("EXISTS", keys.OBJECTS) == 0


async def test_the_body_of_a_dead_letter_stays_as_long_as_the_letter(bus: Bus, objects: Objects) -> None:
    task_id = await tasks.submitted(bus)
    key = await due(bus, objects, task_id)
    letter = await append(bus, tasks.SHARD.dead, {"k": "task", "t": task_id})
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), "dead", letter)
    await bus.commands.call("PEXPIRE", tasks.SHARD.task(task_id), 60_000)
    sweep, entry = ObjectSweep(bus, objects), f"{key} {letter.decode()}"
    await sweep.look()
    assert await bus.commands.call("ZRANGE", keys.OBJECTS, 0, -1) == [entry.encode()]
    await bus.commands.call("DEL", tasks.SHARD.task(task_id))
    await bus.commands.call("ZADD", keys.OBJECTS, 1, entry)
    await sweep.look()
    assert (await stored(objects), await waits_ms(bus, entry) > AGAIN_MS - 60_000) == ([key], True)
    await bus.commands.call("XDEL", tasks.SHARD.dead, letter)
    await bus.commands.call("ZADD", keys.OBJECTS, 1, entry)
    await sweep.look()
    assert await stored(objects) == []
    assert await bus.commands.call("EXISTS", keys.OBJECTS) == 0


async def test_what_is_no_object_of_a_task_is_struck_off(bus: Bus, objects: Objects) -> None:
    await objects.put("files/x", b"x")
    await bus.commands.call("ZADD", keys.OBJECTS, 1, "files/x")
    await ObjectSweep(bus, objects).look()
    assert await bus.commands.call("EXISTS", keys.OBJECTS) == 0
    assert await stored(objects) == ["files/x"]


async def test_without_the_store_nothing_is_removed_and_what_becomes_of_tasks_is_seen(
    bus: Bus, objects: Objects, tmp_path: Path
) -> None:
    """More wait to be removed than are looked at in one pass, and behind them stands the body of a dead letter."""
    gone = [await due(bus, objects, tasks.new_id()) for _ in range(PAGE)]
    for key in gone:
        await bus.commands.call("ZADD", keys.OBJECTS, 1, key)
    task_id = await tasks.submitted(bus)
    body = await due(bus, objects, task_id)
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), "dead", "1-0")
    await bus.commands.call("PEXPIRE", tasks.SHARD.task(task_id), 60_000)
    (tmp_path / "objects").rename(tmp_path / "away")
    sweep = ObjectSweep(bus, objects)
    await sweep.look()
    assert await bus.commands.call("ZCARD", keys.OBJECTS) == PAGE + 1
    await sweep.look()
    assert 0 < await waits_ms(bus, f"{body} 1-0") <= 61_000
    assert 0 < await waits_ms(bus, gone[0]) <= LATER_MS + 60_000
    (tmp_path / "away").rename(tmp_path / "objects")
    for key in gone:
        await bus.commands.call("ZADD", keys.OBJECTS, 1, key)
    await sweep.look()
    assert await stored(objects) == [body]
    assert await bus.commands.call("ZCARD", keys.OBJECTS) == 1
