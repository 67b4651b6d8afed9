"""Wiring of an inference worker, top to bottom. The engine is built first: it may fork, and must not inherit sockets."""

import asyncio
import logging

from starlette.applications import Starlette

from services.inference.engine import Engine
from services.inference.engines import make_engine
from services.inference.heartbeat import BEATS, Heartbeat
from services.inference.room import LOOK_S
from services.inference.scripts import Owner, retire
from services.inference.settings import Settings
from services.inference.worker import Worker
from shared import config, keys
from shared.bus.client import Bus
from shared.bus.consume import Consumer
from shared.config import Config, Pool
from shared.errors import BusError, ConfigError, HeadraceError
from shared.ids import new_nonce
from shared.keys import shard_keys
from shared.lifespan import HttpServer, all_passed, announce_ready, stop_requested, unless_stopped
from shared.objects import Objects
from shared.periodic import Periodic
from shared.probes import Check, Door, Loop, passing, probe_routes
from shared.reload import watching

log = logging.getLogger(__name__)

CHECK_S = 5.0
"""Between two looks at the engine: a death while idle is noticed by then; one with tasks at once, by the tasks."""
READ = 100
"""Entries of one read: a start call's worth."""


async def run(settings: Settings) -> None:
    deployment = config.load(settings.config)
    name = pool_name(deployment, settings)
    pool = deployment.pools[name]
    engine = _engine(pool, settings, deployment)
    await engine.start()
    stop = stop_requested()  # after the engine has forked: a child would inherit the handlers' wake-up socket
    owner = Owner(shard_keys(name, settings.shard), f"worker-{new_nonce()}", new_nonce(), deployment.limits)
    try:
        objects = Objects(settings.objects_url) if settings.objects_url else None
        async with Bus(settings.redis_url, name=owner.worker, safety=deployment) as bus:
            service = Service(bus, owner, engine, deployment, pool, drain_s=settings.drain_s, objects=objects)
            await service.serve(settings, stop, watching(deployment))
    finally:
        await engine.stop()
    if service.worker.died.is_set():
        raise HeadraceError("the engine died; its tasks were handed back")


class Service:
    """A worker with all that keeps it going."""

    def __init__(
        self,
        bus: Bus,
        owner: Owner,
        engine: Engine,
        deployment: Config,
        pool: Pool,
        *,
        drain_s: float,
        objects: Objects | None = None,
    ) -> None:
        self._bus, self._owner, self._drain_s = bus, owner, drain_s
        self.worker = Worker(bus, owner, engine, deployment, objects)
        self._beat = Heartbeat(bus, owner, engine, self.worker, model=pool.model)
        self._beating = Periodic("the heartbeat", owner.limits.lease_s / BEATS, self._beat.beat)
        self._looking = Periodic("the room for tasks", LOOK_S, self._beat.look)
        self.worker.room.on_change = self._looking.wake
        self._checking = Periodic("the engine", CHECK_S, self.worker.check_engine)
        self._consumer = Consumer(bus, stream=owner.shard.work(owner.worker), group=keys.WORKERS, name=owner.worker,
                                  handle=self.worker.on_work, count=READ, shared=False)  # fmt: skip
        found_dead_s = pool.vllm.wedged_s + 2 * CHECK_S
        self._checks: list[Check] = [
            passing(self._beating), passing(self._consumer), passing(self._checking, stale_s=found_dead_s),
            self.worker.fault,
        ]  # fmt: skip

    async def serve(self, settings: Settings, stop: asyncio.Event, reloading: Loop) -> None:
        door = Door(self._bus.fault)
        async with HttpServer(door, settings.host, settings.port, drain_s=self._drain_s) as http:
            if await unless_stopped(stop, self._bus.reach()) is None:
                return
            door.open(Starlette(routes=probe_routes(*self._checks)))
            await http.start()
            await self._work(settings, stop, reloading, http.url)
            handed_back = await retire(self._bus, self._owner, running=True)
            log.info("stopped; %d tasks handed back", handed_back.handed_back)

    async def _work(self, settings: Settings, stop: asyncio.Event, reloading: Loop, url: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beating.run())
            tasks.create_task(reloading.run())
            checked = tasks.create_task(self._checking.run())
            await unless_stopped(stop, all_passed([self._beating]))
            tasks.create_task(self._looking.run())
            reading = tasks.create_task(self._consumer.run())
            if await unless_stopped(stop, all_passed([self._consumer])) is not None:
                announce_ready(settings, "inference", url)
                await first_of(stop, self.worker.died)
            await self._checking.stop()  # an engine may lose the cancellation
            checked.cancel()  # it may be waiting for an engine that hangs
            await self._leave(reading)
            await reloading.stop()
            await self._looking.stop()
            await self._beating.stop()

    async def _leave(self, reading: asyncio.Task[None]) -> None:
        """Take nothing new, hand back what has not started, finish what runs, within the time to drain."""
        self._beat.leaving = True
        await self._consumer.stop()
        await reading
        try:
            await retire(self._bus, self._owner, running=False)
            await self._beat.beat()
        except BusError as error:  # what runs may end all the same; the rest is handed back behind it
            log.warning("cannot hand back yet what has not started: %s", error)
        await self.worker.drain(0 if self.worker.died.is_set() else self._drain_s)


async def first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def pool_name(deployment: Config, settings: Settings) -> str:
    """Raises: ConfigError if the pool or shard does not exist."""
    name = settings.pool or (next(iter(deployment.pools)) if len(deployment.pools) == 1 else "")
    if name not in deployment.pools:
        known = ", ".join(deployment.pools)
        raise ConfigError(f"HEADRACE_INFERENCE_POOL is {settings.pool!r}; pools of the configuration: {known}")
    if settings.shard >= deployment.pools[name].shards:
        shards = deployment.pools[name].shards
        raise ConfigError(f"HEADRACE_INFERENCE_SHARD is {settings.shard}; the pool {name} has {shards} shards, from 0")
    return name


def _engine(pool: Pool, settings: Settings, deployment: Config) -> Engine:
    """Raises: ConfigError."""
    try:
        return make_engine(pool, settings.engine or pool.engine, deployment.limits)
    except ConfigError as error:
        if not settings.engine:
            raise
        raise ConfigError(f"HEADRACE_INFERENCE_ENGINE is {settings.engine!r}: {error}") from error
