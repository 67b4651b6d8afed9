"""One simulation: a Redis of its own, a world on it, and its recording."""

import asyncio
from collections.abc import Callable

import uvloop

from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.keys import shard_keys
from tests.simulate.agenda import Agenda
from tests.simulate.calls import Calls
from tests.simulate.clock import simulated_time
from tests.simulate.recording import Recording
from tests.simulate.world import POOL, Setup, World
from tests.support.redis import find_server, redis_server

LOOK_S = 0.2

Watch = Callable[[float, int, int], None]
"""Told now and then: time of the simulation (s), tasks that have ended, all tasks."""


def simulate(setup: Setup, watch: Watch | None = None) -> Recording:
    """Raises: BusError."""
    with simulated_time(), redis_server(find_server()) as url:
        return uvloop.run(_run(setup, url, watch))


async def _run(setup: Setup, url: str, watch: Watch | None) -> Recording:
    began_s, agenda = monotonic_s(), Agenda()
    async with Bus(url, name="simulator") as bus:
        calls = Calls(bus, shard_keys(POOL, 0), setup.config, agenda)
        await calls.begin()
        world = World(setup, calls, agenda)
        watching = asyncio.create_task(_tell(world, watch)) if watch else None
        try:
            await world.run()
        finally:
            if watching is not None:
                watching.cancel()
    recording = world.recording
    recording.counts.update(calls.counts)
    recording.took_s = monotonic_s() - began_s
    return recording


async def _tell(world: World, watch: Watch) -> None:
    tasks = len(world.setup.rows)
    while True:
        watch(world.agenda.now_s, tasks - world.open, tasks)
        await asyncio.sleep(LOOK_S)
