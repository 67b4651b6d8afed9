"""The worker's beat: it announces capacity, renews the leases of what runs, and learns what is no longer its own."""

from services.inference import metrics
from services.inference.engine import Engine
from services.inference.run import Parting
from services.inference.scripts import Owner, beat
from services.inference.worker import Worker
from shared.bus.client import Bus
from shared.messages import Announcement, encode

BEATS = 4
"""Of one lease: two may be lost."""


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
        stopped = await beat(self._bus, self._owner, self.slots, encode(announcement), tasks)
        for task_id, why in stopped.items():
            self._worker.stop(task_id, Parting("none", why))
        metrics.SLOTS.set(self.slots)
        metrics.KV_USE.set(capacity.kv_use)
