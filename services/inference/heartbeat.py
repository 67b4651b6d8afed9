"""The worker's beat: it announces capacity, renews the leases of what runs, and learns what is no longer its own."""

from services.inference import metrics
from services.inference.engine import Engine
from services.inference.scripts import Owner, beat
from services.inference.worker import Worker
from shared.bus.client import Bus
from shared.lifecycle import LEASE_MS
from shared.messages import Announcement, encode

INTERVAL_S = LEASE_MS / 4000
"""A quarter of the lease: two beats may be lost."""


class Heartbeat:
    def __init__(self, bus: Bus, owner: Owner, engine: Engine, worker: Worker, *, model: str, slots: int) -> None:
        self._bus, self._owner, self._engine, self._worker = bus, owner, engine, worker
        self._model, self.slots = model, slots

    async def beat(self) -> None:
        """One beat; with `slots` set to 0 the worker lives on and gets nothing new. Raises: BusError."""
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
