"""The worker's beat: it announces capacity, renews the leases of what runs, and learns what is no longer its own."""

import asyncio
import logging

from services.inference import metrics
from services.inference.engine import Engine
from services.inference.scripts import Owner, beat
from services.inference.worker import Worker
from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.errors import BusError
from shared.lifecycle import LEASE_MS
from shared.messages import Announcement, encode

log = logging.getLogger(__name__)

INTERVAL_S = LEASE_MS / 4000
"""A quarter of the lease: two beats may be lost."""


class Heartbeat:
    def __init__(self, bus: Bus, owner: Owner, engine: Engine, worker: Worker, *, model: str, slots: int) -> None:
        self._bus, self._owner, self._engine, self._worker = bus, owner, engine, worker
        self._model, self.slots = model, slots
        self.last_pass_s: float | None = None
        self.fault: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until `stop`; with `slots` set to 0 it goes on beating, and gets nothing new."""
        while not stop.is_set():
            try:
                await self.beat()
                self.last_pass_s, self.fault = monotonic_s(), None
            except BusError as error:
                self.fault = f"heartbeat: {error}"
                log.warning("%s", self.fault)
            try:
                await asyncio.wait_for(stop.wait(), INTERVAL_S)
            except TimeoutError:
                continue

    async def beat(self) -> None:
        capacity = self._engine.capacity()
        announcement = Announcement(
            model=self._model,
            engine=self._engine.name,
            slots=self.slots,
            running=capacity.running,
            waiting=capacity.waiting,
            kv_use=capacity.kv_use,
        )
        tasks = [(run.id, run.hand.epoch) for run in self._worker.runs.values()]
        for task_id in await beat(self._bus, self._owner, self.slots, encode(announcement), tasks):
            self._worker.abort_id(task_id)
        metrics.SLOTS.set(self.slots)
        metrics.KV_USE.set(capacity.kv_use)
