"""The doors that are open are those that the configuration names, whatever a reload makes of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from services.scheduler.doors import Doors
from shared import keys
from shared.bus.client import Bus
from shared.config import Config
from shared.policy import Live, Policy, Producer
from shared.probes import passing
from shared.submit import Submitter
from tests.support import tasks
from tests.support.server import starving
from tests.support.waiting import wait_until

SHOP, DEPOT = {"shop": Producer(tenant="acme")}, {"depot": Producer(tenant="beta")}


def config(producers: dict[str, Producer]) -> Config:
    return Config(pools=tasks.CONFIG.pools, live=Live(Policy(producers=producers)))


def reload(deployed: Config, producers: dict[str, Producer]) -> None:
    deployed.live.policy = msgspec.structs.replace(deployed.policy, producers=producers)


@asynccontextmanager
async def opened(bus: Bus, deployed: Config) -> AsyncIterator[Doors]:
    doors = Doors(bus, deployed, Submitter(bus, deployed), "s1")
    running = asyncio.create_task(doors.run())
    try:
        yield doors
    finally:
        await doors.stop()
        await running


async def knock(bus: Bus, door: str) -> None:
    await bus.commands.call("XADD", door, "*", "input_text", "x")


def made(bus: Bus, *tenants: str) -> Callable[[], object]:
    async def found() -> bool:
        hashes = await bus.commands.call("KEYS", tasks.SHARD.task("*"))
        return sorted([(await bus.commands.call("HGET", key, "tenant")).decode() for key in hashes]) == sorted(tenants)

    return found


def has_readers(bus: Bus, door: str, count: int) -> Callable[[], object]:
    async def found() -> bool:
        groups = await tasks.groups(bus, door)
        return bool(groups) and groups[0][groups[0].index(b"consumers") + 1] == count

    return found


async def test_every_door_is_read_for_its_tenant(bus: Bus) -> None:
    for door in (keys.REQUESTS, keys.door("shop"), keys.door("depot")):
        await knock(bus, door)
    async with opened(bus, config(SHOP | DEPOT)):
        await wait_until(made(bus, "acme", "beta", "default"), "each door has made its task")


async def test_the_doors_are_alive_once_each_was_read(bus: Bus) -> None:
    doors = Doors(bus, config(SHOP), Submitter(bus, config(SHOP)), "s1")
    assert passing(doors)() == "the stream doors has not made a pass yet"
    async with opened(bus, config(SHOP)) as doors:
        await wait_until(lambda: doors.last_pass_s, "each was read")
        assert passing(doors)() is None


async def test_a_door_that_cannot_be_read_is_told(bus: Bus) -> None:
    await bus.commands.call("SET", keys.door("shop"), "not ours")
    async with opened(bus, config(SHOP)) as doors:
        await wait_until(lambda: doors.fault and "hr:requests:shop" in doors.fault, "the fault is told")
    await bus.commands.call("DEL", keys.door("shop"))


async def test_a_door_that_a_reload_brings_is_opened(bus: Bus) -> None:
    deployed = config({})
    async with opened(bus, deployed) as doors:
        await wait_until(lambda: doors.last_pass_s, "it runs")
        await knock(bus, keys.door("shop"))
        reload(deployed, SHOP)
        await wait_until(made(bus, "acme"), "what had come before is taken")
        assert passing(doors)() is None


async def test_a_door_that_a_reload_takes_away_is_closed_once_it_is_empty(bus: Bus) -> None:
    deployed = config(SHOP)
    async with opened(bus, deployed) as doors:
        await wait_until(has_readers(bus, keys.door("shop"), 1), "the door is open")
        async with starving(bus):
            await knock_though_full(bus, keys.door("shop"))
            reload(deployed, {})
            await wait_until(lambda: doors.fault, "the entry waits")
        await wait_until(made(bus, "acme"), "the entry is taken")
        await wait_until(has_readers(bus, keys.door("shop"), 0), "the door is closed")
        await wait_until(lambda: doors.fault is None, "nothing is wrong")
        reload(deployed, SHOP)
        await knock(bus, keys.door("shop"))
        await wait_until(made(bus, "acme", "acme"), "it is opened again")


async def knock_though_full(bus: Bus, door: str) -> None:
    """The full Redis is the door's trouble, not the producer's."""
    await bus.commands.call("CONFIG", "SET", "maxmemory", 0)
    await knock(bus, door)
    await bus.commands.call("CONFIG", "SET", "maxmemory", 1)
