"""The stream doors of this replica: hr:requests, and one for each producer that the configuration names."""

import asyncio
import logging

from msgspec import Struct

from services.scheduler.front import Front
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Consumer
from shared.clock import monotonic_s
from shared.config import Config
from shared.errors import BusError
from shared.submit import Submitter

log = logging.getLogger(__name__)

DOOR_PER_READ = 100
"""A small count, so that replicas share a burst, and doors their turn."""
INTERVAL_S = 1.0
"""How soon a door opens whose producer a reload brings."""
UNNAMED = ""


class _Door(Struct):
    consumer: Consumer
    running: asyncio.Task[None]
    opened_s: float

    @property
    def last_pass_s(self) -> float:
        return self.consumer.last_pass_s or self.opened_s


class Doors:
    """One loop for the probes, whatever doors there are."""

    name = "the stream doors"

    def __init__(self, bus: Bus, config: Config, submitter: Submitter, replica: str) -> None:
        self._bus, self._config, self._submitter, self._replica = bus, config, submitter, replica
        self._doors: dict[str, _Door] = {}
        self._stopping = asyncio.Event()
        self._opened = False

    @property
    def last_pass_s(self) -> float | None:
        """Of the door that is furthest behind; None until each of the first ones was read."""
        if not self._opened:
            self._opened = bool(self._doors) and all(door.consumer.last_pass_s for door in self._doors.values())
        return min((door.last_pass_s for door in self._doors.values()), default=None) if self._opened else None

    @property
    def fault(self) -> str | None:
        return next((door.consumer.fault for door in self._doors.values() if door.consumer.fault), None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                self._open(tasks)
                await self._close_left()
                try:
                    await asyncio.wait_for(self._stopping.wait(), INTERVAL_S)
                except TimeoutError:
                    continue
            await asyncio.gather(*(door.consumer.stop() for door in self._doors.values()))

    async def stop(self) -> None:
        self._stopping.set()

    # -- parts

    def _open(self, tasks: asyncio.TaskGroup) -> None:
        for producer in (UNNAMED, *self._config.policy.producers):
            if producer not in self._doors:
                front = Front(self._bus, self._config, self._submitter, producer)
                consumer = Consumer(self._bus, stream=front.door, group=keys.FRONT, name=self._replica,
                                    handle=front.on_entries, count=DOOR_PER_READ)  # fmt: skip
                running = tasks.create_task(consumer.run(), name=front.door)
                self._doors[producer] = _Door(consumer, running, monotonic_s())
                log.info("the door %s is open", front.door)

    async def _close_left(self) -> None:
        """Doors of producers that the configuration has dropped, once they are empty."""
        kept = {UNNAMED, *self._config.policy.producers}
        for producer in [producer for producer in self._doors if producer not in kept]:
            try:
                if await self._bus.commands.call("XLEN", keys.door(producer)):
                    continue
            except BusError as error:
                log.warning("cannot look at %s: %s", keys.door(producer), error)
                continue
            door = self._doors.pop(producer)
            await door.consumer.stop()
            await door.running
            log.info("the door %s is closed: its producer is not configured any more", keys.door(producer))
