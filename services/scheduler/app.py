"""Wiring of the scheduler, top to bottom."""

import asyncio
import logging
import random

from msgspec import Struct
from starlette.applications import Starlette

from services.scheduler.batches.holder import Holder
from services.scheduler.batches.store import Store
from services.scheduler.batches.work import Tools
from services.scheduler.doors import Doors
from services.scheduler.file_sweep import INTERVAL_S as FILES_SWEEP_S
from services.scheduler.file_sweep import FileSweep
from services.scheduler.housekeeping import INTERVAL_S, Housekeeping
from services.scheduler.intake import Intake
from services.scheduler.object_sweep import INTERVAL_S as OBJECTS_SWEEP_S
from services.scheduler.object_sweep import ObjectSweep
from services.scheduler.quota_sweep import INTERVAL_S as SWEEP_S
from services.scheduler.quota_sweep import QuotaSweep
from services.scheduler.settings import Settings
from services.scheduler.terms import Terms
from shared import config, keys
from shared.batches import Batches
from shared.bus.client import Bus
from shared.bus.consume import PAUSE_S, Consumer, Handler
from shared.cancel import Canceller
from shared.config import Config
from shared.errors import BusError, ConfigError
from shared.files import Files
from shared.ids import new_nonce
from shared.keys import shard_keys
from shared.lifespan import HttpServer, all_passed, announce_ready, running, stop_requested, unless_stopped
from shared.objects import Objects
from shared.periodic import Periodic
from shared.probes import Door, Loop, passing, probe_routes
from shared.reload import watching
from shared.submit import Submitter

log = logging.getLogger(__name__)

ARRIVALS_PER_READ = 200


async def run(settings: Settings) -> None:
    stop = stop_requested()
    deployment = config.load(settings.config)
    replica = f"scheduler-{new_nonce()}"
    async with Bus(settings.redis_url, name=replica, safety=deployment) as bus:
        door = Door(bus.fault)
        async with HttpServer(door, settings.host, settings.port, drain_s=settings.drain_s) as http:
            started = await unless_stopped(stop, prepared(bus, deployment))
            if started is not None:
                loops = working(bus, deployment, settings, replica, *started)
                door.open(Starlette(routes=probe_routes(*map(passing, loops))))
                await http.start()
                await serve(settings, stop, http, loops)


def working(bus: Bus, deployment: Config, settings: Settings, replica: str, start: "Start") -> list[Loop]:
    """All that a scheduler does."""
    loops: list[Loop] = []
    for (pool, shard), partitions in start.shards.items():
        place = shard_keys(pool, shard)
        intake = Intake(bus, place, deployment)
        tidy = Housekeeping(bus, place, deployment, partitions, intake).tidy
        loops += [
            consumer(bus, replica, place.arrivals, keys.SCHEDULER, intake.on_arrivals, ARRIVALS_PER_READ),
            Periodic(f"housekeeping of {place.tag}", INTERVAL_S, tidy),
        ]
    objects = Objects(settings.objects_url) if settings.objects_url else None
    submitter = Submitter(bus, deployment, objects)
    loops += [
        Doors(bus, deployment, submitter, replica),
        Periodic("the sweep of the quotas", SWEEP_S, QuotaSweep(bus, deployment).look),
        watching(deployment, start.terms.write),
    ]
    if objects is not None:
        files = Files(bus, objects, deployment.limits.files_kept_s)
        loops += [
            batches(bus, deployment, files, submitter),
            Periodic("the sweep of the files", FILES_SWEEP_S, FileSweep(bus, files).look),
            Periodic("the sweep of the objects", OBJECTS_SWEEP_S, ObjectSweep(bus, objects).look),
        ]
    return loops


def batches(bus: Bus, deployment: Config, files: Files, submitter: Submitter) -> Holder:
    kept_s = deployment.limits.files_kept_s
    store, found = Store(bus, files, kept_s), Batches(bus, kept_s)
    return Holder(Tools(bus, deployment, store, found, submitter, Canceller(bus, deployment)))


def consumer(bus: Bus, replica: str, stream: str, group: str, handle: Handler, count: int) -> Consumer:
    return Consumer(bus, stream=stream, group=group, name=replica, handle=handle, count=count)


async def serve(settings: Settings, stop: asyncio.Event, http: HttpServer, loops: list[Loop]) -> None:
    async with running(loops):
        if await unless_stopped(stop, all_passed(loops)) is not None:
            announce_ready(settings, "scheduler", http.url)
            await stop.wait()


class Start(Struct, frozen=True):
    shards: dict[tuple[str, int], int]
    """Pool and number, and partitions of it."""
    terms: Terms


async def prepared(bus: Bus, deployment: Config) -> Start:
    """What must be in Redis before a loop may run. Its errors are told and waited out, as the loops do.

    Raises: ConfigError, as register_shards and Bus.reach; CommandRefused, as Bus.reach.
    """
    await bus.reach()
    while True:
        try:
            shards = await register_shards(bus, deployment)
            terms = Terms(bus, deployment, [shard_keys(*shard) for shard in shards])
            await terms.write()
        except BusError as error:
            log.warning("cannot start yet: %s", error)
            await asyncio.sleep(random.uniform(*PAUSE_S))
        else:
            return Start(shards, terms)


async def register_shards(bus: Bus, deployment: Config) -> dict[tuple[str, int], int]:
    """Every shard that exists: those of the configuration and those that earlier ones left behind.

    Raises: BusError; ConfigError if a shard exists with another number of partitions: its ids would be looked for in the wrong stream.
    """
    known = await bus.commands.call("HKEYS", keys.SHARDS)
    for name, pool in deployment.pools.items():
        for shard in range(pool.shards):
            if f"{name}.{shard}".encode() not in known:  # a full Redis refuses it, and a restart must not fail for that
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
