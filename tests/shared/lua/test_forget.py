import asyncio

import pytest

from shared.bus.client import Bus
from shared.bus.streams import ensure_group, forget
from shared.errors import BusError
from tests.support.redis import spoil
from tests.support.server import starving

STREAM, GROUP = "hr:requests", "front"


async def read(bus: Bus, name: str, count: int = 1) -> list[bytes]:
    reply = await bus.commands.call("XREADGROUP", "GROUP", GROUP, name, "COUNT", count, "STREAMS", STREAM, ">")
    return [entry for entry, _ in reply[0][1]] if reply else []


async def members(bus: Bus) -> set[bytes]:
    return {found[1] for found in await bus.commands.call("XINFO", "CONSUMERS", STREAM, GROUP)}


async def silent(bus: Bus, ms: int = 20) -> None:
    """Return when every consumer was silent for so long."""

    async def least() -> int:
        found = await bus.commands.call("XINFO", "CONSUMERS", STREAM, GROUP)
        return min(int(consumer[5]) for consumer in found)

    while await least() <= ms:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
async def _group(bus: Bus) -> None:
    await ensure_group(bus, STREAM, GROUP)
    for _ in range(3):
        await bus.commands.call("XADD", STREAM, "*", "n", 1)


async def test_silent_consumer_without_entries_goes(bus: Bus) -> None:
    done = await read(bus, "dead")
    await bus.commands.call("XACK", STREAM, GROUP, *done)
    await silent(bus)
    assert await forget(bus, STREAM, GROUP, silent_ms=20, own="me") == 1
    assert await members(bus) == set()


async def test_consumer_with_entries_pending_stays(bus: Bus) -> None:
    """They would go with it, stay in the stream, and be given to nobody ever again."""
    await read(bus, "dead")
    await silent(bus)
    assert await forget(bus, STREAM, GROUP, silent_ms=20, own="me") == 0
    assert await members(bus) == {b"dead"}


async def test_consumer_that_asks_stays_and_so_do_those_that_have_read_lately(bus: Bus) -> None:
    for name in ("me", "live"):
        await bus.commands.call("XACK", STREAM, GROUP, *await read(bus, name))
    assert await forget(bus, STREAM, GROUP, silent_ms=60_000, own="x") == 0
    await silent(bus)
    assert await forget(bus, STREAM, GROUP, silent_ms=20, own="me") == 1
    assert await members(bus) == {b"me"}


async def test_consumer_that_was_forgotten_though_alive_reads_on(bus: Bus) -> None:
    await bus.commands.call("XACK", STREAM, GROUP, *await read(bus, "live"))
    await silent(bus)
    await forget(bus, STREAM, GROUP, silent_ms=20, own="me")
    assert len(await read(bus, "live", count=10)) == 2


async def test_consumer_that_is_forgotten_while_its_read_waits_gets_what_comes(bus: Bus) -> None:
    await bus.commands.call("XACK", STREAM, GROUP, *await read(bus, "live", count=10))
    reader = bus.reader("blocked")
    waiting = reader.send("XREADGROUP", "GROUP", GROUP, "live", "BLOCK", 5000, "STREAMS", STREAM, ">")
    while b"cmd=xreadgroup" not in await bus.commands.call("CLIENT", "LIST"):
        await asyncio.sleep(0)
    await silent(bus)
    assert await forget(bus, STREAM, GROUP, silent_ms=20, own="me") == 1
    added = await bus.commands.call("XADD", STREAM, "*", "n", 2)
    ((_, ((got, _),)),) = await waiting
    assert got == added
    assert await bus.commands.call("XACK", STREAM, GROUP, got) == 1


async def test_full_memory_does_not_refuse_it(bus: Bus) -> None:
    async with starving(bus):
        await forget(bus, STREAM, GROUP, silent_ms=0, own="me")


async def test_wrong_type_and_missing_group_are_told(bus: Bus) -> None:
    with pytest.raises(BusError, match="NOGROUP"):
        await forget(bus, STREAM, "other", silent_ms=0, own="me")
    await spoil(bus, STREAM)
    with pytest.raises(BusError, match="WRONGTYPE"):
        await forget(bus, STREAM, GROUP, silent_ms=0, own="me")
