"""The worker's beat: it announces capacity, renews the leases of what runs, and learns what is no longer its own."""

from msgspec.structs import astuple

from services.inference import metrics
from services.inference.engine import Engine
from services.inference.run import Parting, Run
from services.inference.scripts import NO_SLOTS, Owner, Slots, beat
from services.inference.worker import Worker
from shared.bus.client import Bus
from shared.lifecycle import Lane
from shared.messages import Announcement, encode

BEATS = 4
"""Of one lease: two may be lost."""


class Heartbeat:
    def __init__(self, bus: Bus, owner: Owner, engine: Engine, worker: Worker, *, model: str) -> None:
        self._bus, self._owner, self._engine, self._worker = bus, owner, engine, worker
        self._model = model
        self.leaving = False
        """The worker lives on and gets nothing new."""
        self._announced: Slots | None = None

    @property
    def slots(self) -> Slots:
        return NO_SLOTS if self.leaving else self._worker.room.slots

    async def beat(self) -> None:
        """One beat. Raises: BusError."""
        await self._beat(list(self._worker.runs.values()))

    async def look(self) -> None:
        """At the engine; a beat without leases, which costs the same for any number of tasks, if there is more room or less.

        Raises: BusError.
        """
        self._worker.room.look()
        if self.slots != self._announced:
            await self._beat([])

    async def _beat(self, runs: list[Run]) -> None:
        slots, capacity = self.slots, self._engine.capacity()
        announcement = Announcement(
            model=self._model,
            engine=self._engine.name,
            slots=slots.total,
            running=capacity.running,
            waiting=capacity.waiting,
            kv_use=capacity.kv_use,
            normal=slots.normal,
            batch=slots.batch,
            preemptions=capacity.preemptions,
            breaker=self._worker.room.breaker or "",
        )
        tasks = [(run.id, run.hand.epoch) for run in runs]
        stopped = await beat(self._bus, self._owner, slots, encode(announcement), tasks)
        self._announced = slots
        for run in runs:
            if run.id in stopped and self._worker.runs.get(run.id) is run:  # and not another one, begun meanwhile
                self._worker.stop(run.id, Parting("none", stopped[run.id]))
        for lane, most in zip(Lane, astuple(slots), strict=True):
            metrics.SLOTS.labels(lane).set(most)
