"""New tasks are refused while there is still room for the others to drain."""

import pytest

from shared.bus import memory
from shared.bus.check import parse_info
from shared.bus.client import Bus
from shared.bus.memory import Memory
from shared.errors import MemoryFull


@pytest.fixture(autouse=True)
def _each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_EVERY_S", 0.0)


async def limit(bus: Bus, share: float) -> None:
    """Make what is used now this share of maxmemory."""
    used = int(parse_info(await bus.commands.call("INFO", "memory"))["used_memory"])
    await bus.commands.call("CONFIG", "SET", "maxmemory", int(used / share) if share else 0)


async def test_without_a_limit_there_is_always_room(bus: Bus) -> None:
    await Memory(bus).check()


async def test_there_is_no_room_above_four_fifths_and_there_is_again_below(bus: Bus) -> None:
    looked = Memory(bus)
    try:
        await limit(bus, 0.5)
        await looked.check()
        await limit(bus, 0.9)
        with pytest.raises(MemoryFull, match="of its maxmemory; above 80% it accepts no new tasks"):
            await looked.check()
        await limit(bus, 0.5)
        await looked.check()
    finally:
        await limit(bus, 0)


async def test_redis_is_asked_once_a_second_at_most(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_EVERY_S", 3600.0)
    looked = Memory(bus)
    await looked.check()
    before = bus.commands.written_commands
    for _ in range(10):
        await looked.check()
    assert bus.commands.written_commands == before


async def test_redis_out_of_reach_is_no_full_redis() -> None:
    """The submission itself will tell."""
    async with Bus("redis://127.0.0.1:1", name="test") as bus:
        bus.commands._timeout_s = 0.1
        await Memory(bus).check()
