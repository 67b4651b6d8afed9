"""Wiring of the scheduler, top to bottom."""

import asyncio

from starlette.applications import Starlette

from services.scheduler.front import Front
from services.scheduler.housekeeping import Housekeeping
from services.scheduler.intake import Intake
from services.scheduler.settings import Settings
from shared import config, keys
from shared.bus.client import Bus
from shared.bus.consume import Consumer
from shared.config import Config
from shared.errors import ConfigError
from shared.ids import new_nonce
from shared.keys import shard_keys
from shared.lifespan import HttpServer, announce_ready, stop_requested
from shared.probes import passing, probe_routes
from shared.submit import Submitter

ARRIVALS_PER_READ = 200
DOOR_PER_READ = 100
"""A small count, so that replicas share a burst."""


async def run(settings: Settings) -> None:
    stop = stop_requested()
    deployment = config.load(settings.config)
    replica = f"scheduler-{new_nonce()}"
    async with Bus(settings.redis_url, name=replica) as bus:
        shards = await register_shards(bus, deployment)
        consumers, keepers = [], []
        for (pool, shard), partitions in shards.items():
            place = shard_keys(pool, shard)
            intake = Intake(bus, place)
            consumers.append(
                Consumer(bus, stream=place.arrivals, group=keys.SCHEDULER, name=replica,
                         handle=intake.on_arrivals, count=ARRIVALS_PER_READ)
            )  # fmt: skip
            keepers.append(Housekeeping(bus, place, partitions, intake))
        front = Front(bus, deployment, Submitter(bus, deployment))
        consumers.append(
            Consumer(bus, stream=keys.REQUESTS, group=keys.FRONT, name=replica,
                     handle=front.on_entries, count=DOOR_PER_READ)
        )  # fmt: skip
        await serve(settings, stop, consumers, keepers)


async def serve(
    settings: Settings, stop: asyncio.Event, consumers: list[Consumer], keepers: list[Housekeeping]
) -> None:
    loops = [*consumers, *keepers]
    checks = [passing(type(loop).__name__.lower(), lambda l=loop: l.last_pass_s, lambda l=loop: l.fault) for loop in loops]
    http = HttpServer(Starlette(routes=probe_routes(*checks)), settings.host, settings.port)
    await http.start()
    async with asyncio.TaskGroup() as tasks:
        for consumer in consumers:
            tasks.create_task(consumer.run())
        for keeper in keepers:
            tasks.create_task(keeper.run(stop))
        while not stop.is_set() and any(loop.last_pass_s is None for loop in loops):
            await asyncio.sleep(0.01)
        announce_ready(settings, "scheduler", http.url)
        await stop.wait()
        await asyncio.gather(*(consumer.stop() for consumer in consumers))
    await http.stop()


async def register_shards(bus: Bus, deployment: Config) -> dict[tuple[str, int], int]:
    """Every shard that exists: those of the configuration and those that earlier ones left behind.

    Raises: ConfigError if a shard exists with another number of partitions: its ids would be looked for in the wrong stream.
    """
    for name, pool in deployment.pools.items():
        for shard in range(pool.shards):
            await bus.commands.call("HSETNX", keys.SHARDS, f"{name}.{shard}", pool.partitions)
    existing = await bus.commands.call("HGETALL", keys.SHARDS)
    shards = {}
    for tag, partitions in zip(existing[::2], existing[1::2], strict=True):
        pool_name, _, number = tag.decode().rpartition(".")
        configured = deployment.pools.get(pool_name)
        if configured is not None and configured.partitions != int(partitions):
            raise ConfigError(
                f"pools.{pool_name}.partitions is {configured.partitions}, but the shard exists with {int(partitions)}. "
                f"Set it back, or choose another pool name."
            )
        shards[pool_name, int(number)] = int(partitions)
    return shards
