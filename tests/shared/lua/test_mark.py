from shared.bus.client import Bus
from shared.bus.durability import MARK_KEPT_MS, MARKING
from shared.keys import MARK
from tests.support import tasks
from tests.support.server import starving


async def changes(bus: Bus) -> int:
    """Changes of the data since the server started."""
    info = (await bus.commands.call("INFO", "persistence")).decode()
    return int(info.partition("rdb_changes_since_last_save:")[2].split()[0])


async def test_each_call_writes(bus: Bus) -> None:
    for _ in range(2):
        before = await changes(bus)
        assert await bus.run(MARKING, [MARK], [MARK_KEPT_MS]) == b"ok"
        assert await changes(bus) > before


async def test_mark_goes_by_itself(bus: Bus) -> None:
    await bus.run(MARKING, [MARK], [MARK_KEPT_MS])
    assert 0 < await tasks.ttl_ms(bus, MARK) <= MARK_KEPT_MS


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        assert await bus.run(MARKING, [MARK], [MARK_KEPT_MS]) == b"ok"


async def test_whatever_the_key_holds_is_written_over(bus: Bus) -> None:
    """Nobody reads it, so no type of it can be wrong."""
    await bus.commands.call("RPUSH", MARK, "not ours")
    assert await bus.run(MARKING, [MARK], [MARK_KEPT_MS]) == b"ok"
