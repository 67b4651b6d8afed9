"""Publishing chunks: the first of a task at once, the rest merged by time, all tasks of a flush in one script call.

Problem. Every token that leaves alone costs a script, two stream entries and a frame; at 64 tasks that is more than the
engine's own front end. But the first token is what people wait for.

So a task's first chunk wakes the flush, later ones wait FLUSH_S for company, and every flush takes all that is there.
A task has at most one range on its way. If Redis does not answer, the call is repeated byte for byte (the script knows
what it has written); meanwhile chunks pile up and leave as one range, which is the back-pressure.
"""

import asyncio
import logging
from collections.abc import Callable

from services.inference import metrics
from services.inference.run import BROKEN, FENCED, Parting, Run
from services.inference.scripts import Emission, Owner, emit
from shared.bus.client import Bus
from shared.bus.script import MAX_BYTES, MAX_ITEMS
from shared.errors import BusError

log = logging.getLogger(__name__)

FLUSH_S = 0.03
"""Half of what people notice between words; shorter costs CPU that the engine needs, longer makes text jump."""


class Emitter:
    def __init__(self, bus: Bus, owner: Owner, stop: Callable[[str, Parting], None]) -> None:
        """`stop`: breaks off the run of a task."""
        self._bus, self._owner, self._stop = bus, owner, stop
        self._dirty: dict[str, Run] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def mark(self, run: Run) -> None:
        """The run has a new chunk."""
        self._dirty[run.id] = run
        if run.published == 0 and run.emitting is None:
            self._flush_soon()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    async def settle(self, run: Run) -> None:
        """Return when nothing of the run is on its way; what is unpublished is the caller's."""
        self._dirty.pop(run.id, None)
        if run.emitting is not None:
            await asyncio.wait([run.emitting])

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._flushing is not None:
            await asyncio.wait([self._flushing])

    def _flush_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while runs := self._take():
                await self._publish(runs)
                await asyncio.sleep(0)
        finally:
            self._flushing = None
            if self._dirty and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    def _take(self) -> list[tuple[Run, Emission]]:
        """As many dirty runs as one call may carry. What arrives during the call waits for the next flush."""
        taken: list[tuple[Run, Emission]] = []
        size = 0
        while self._dirty and len(taken) < MAX_ITEMS and size < MAX_BYTES:
            _, run = self._dirty.popitem()
            if run.unpublished and run.emitting is None:
                try:
                    emission = run.emission()
                except Exception:  # what the engine made is no chunk; the others of the flush must go on
                    log.exception("the chunks of %s cannot be published", run.id)
                    self._stop(run.id, BROKEN)
                    continue
                run.emitting = asyncio.get_running_loop().create_future()
                taken.append((run, emission))
                size += len(emission.event)
        return taken

    async def _publish(self, runs: list[tuple[Run, Emission]]) -> None:
        metrics.FLUSHED.observe(len(runs))
        try:
            verdicts = await emit(self._bus, self._owner, [emission for _, emission in runs])
        except Exception as error:  # noqa: BLE001 - whatever it is, the ends of these runs wait for this
            tell = log.error if isinstance(error, BusError) else log.exception
            tell("cannot publish %d tasks, their leases decide: %s", len(runs), error)
            verdicts = ["unknown"] * len(runs)
        for (run, emission), verdict in zip(runs, verdicts, strict=True):
            if verdict == "ok":
                run.published = emission.last
            elif verdict.startswith("gap"):
                run.published = int(verdict[4:])
            elif verdict == "fenced":
                self._stop(run.id, FENCED)
            if run.emitting is not None:
                run.emitting.set_result(None)
                run.emitting = None
