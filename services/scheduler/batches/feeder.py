"""One batch, for as long as its lease is held: validated, fed, gathered, ended. The package says how and why."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping

from services.scheduler import metrics
from services.scheduler.batches.feeding import Feeding, read_twice
from services.scheduler.batches.gathering import Gathering
from services.scheduler.batches.items import reply_name
from services.scheduler.batches.validation import validate
from services.scheduler.batches.work import Fenced, OutOfStep, Tools, Work, read_work
from shared import keys
from shared.batches import ENDS, End, Fence, Status, move
from shared.bus.connection import Arg
from shared.clock import monotonic_s
from shared.errors import BatchNotFound, BusError, InvalidTaskId, ObjectMissing, StoreUnavailable

log = logging.getLogger(__name__)

IDLE_S = 0.1
"""Between two looks for ends when there was nothing to do: a lane that fills idle capacity may wait so long."""
LOOK_S = 1.0
"""Between two looks whether the batch is to stop."""
PAUSE_S = (0.5, 3.0)
"""After an error; drawn at random."""


class Feeder:
    def __init__(self, tools: Tools, batch_id: str, fence: Fence, window: Callable[[], int]) -> None:
        """`window`: how many of its items may be tasks at once."""
        self._tools, self._id, self._fence, self._window = tools, batch_id, fence, window
        self._look_at_s = 0.0
        self._moved_s, self._pausing = monotonic_s(), False
        self._fed_from_s: float | None = None
        self.work: Work | None = None
        """As it was read last, and has gone on since."""

    @property
    def still_s(self) -> float:
        """How long nothing has moved; 0 while it is at work, which its next holder would have to begin anew."""
        return monotonic_s() - self._moved_s if self._pausing else 0.0

    @property
    def turn_s(self) -> float:
        """How long it has been fed and gathered at a stretch; 0 while it is validated or tidied."""
        return monotonic_s() - self._fed_from_s if self._fed_from_s is not None else 0.0

    async def run(self) -> None:
        """Until the batch has ended, or another one holds it. What is out of reach is waited for, and told."""
        while True:
            try:
                await self._work()
                return
            except (Fenced, BatchNotFound) as over:
                log.info("%s: %s", self._id, over)
                return
            except OutOfStep as error:
                log.info("%s", error)
            except (StoreUnavailable, ObjectMissing, BusError, TimeoutError) as error:
                metrics.BATCH_WAITS.labels("redis" if isinstance(error, BusError) else "store").inc()
                log.warning("%s waits: %s", self._id, str(error) or "the object store does not answer")
            except Exception:  # a batch is never given up
                log.exception("%s broke its feeder; it is read again", self._id)
            await self._pause(random.uniform(*PAUSE_S))

    async def _work(self) -> None:
        """Raises: whatever keeps it from going on; all that is remembered is forgotten then."""
        work = await self._read()
        if work.batch.status in ENDS:
            return
        if work.batch.status is Status.VALIDATING:
            async with self._tools.validating:
                await validate(self._tools, work)
            work = await self._read()
        if work.batch.status not in ENDS and not work.batch.at_ms[Status.IN_PROGRESS]:  # stopped before it began
            await self._end(work, Status.CANCELLED, {"total": 0})
        elif work.batch.status not in ENDS:
            await self._feed(work)

    async def _read(self) -> Work:
        self.work = await read_work(self._tools, self._id, self._fence)
        return self.work

    async def _feed(self, work: Work) -> None:
        feeding = Feeding(self._tools, work, await read_twice(self._tools, work), self._window)
        gathering = Gathering(self._tools, work, feeding.again)
        try:
            await gathering.let_go()
            await gathering.file_some()
            self._fed_from_s = monotonic_s()
            while not (feeding.over and not work.open):
                await self._look_for_stop(work)
                busy = await gathering.take()
                if busy:
                    feeding.retry()
                busy |= await gathering.commit(hurry=feeding.over and not work.numbers)
                busy |= await feeding.feed()
                ended, feeding.ended = feeding.ended, []
                await gathering.look(ended)
                if busy or work.endings:  # a slow batch gathers a segment for longer than it may stand still
                    self._moved_s = monotonic_s()
                if not busy:
                    await self._pause(IDLE_S)
            await gathering.file_rest()  # what is in no file then is nobody's, and is removed
        finally:
            self._fed_from_s = None
            await feeding.close()
        await self._finish(work)

    async def _pause(self, pause_s: float) -> None:
        self._pausing = True
        try:
            await asyncio.sleep(pause_s)
        finally:
            self._pausing = False

    async def _look_for_stop(self, work: Work) -> None:
        """A client asks for it, or the window is over. What runs is told; the rest is never begun."""
        if monotonic_s() < self._look_at_s or (work.stop is End.CANCELLED and work.told):
            return
        self._look_at_s = monotonic_s() + LOOK_S
        status = await self._tools.bus.read("HGET", keys.batch(self._id, "state"), "status")
        if status is None:
            raise BatchNotFound(self._id)
        work.see(Status(status.decode()), await self._tools.bus.time_ms())
        if work.stop is End.CANCELLED:
            await asyncio.gather(*map(self._cancel, work.numbers))
            work.told = True

    async def _cancel(self, task_id: str) -> None:
        """One of a pool that is configured no more ends by its deadline. Raises: BusError."""
        with contextlib.suppress(InvalidTaskId):
            await self._tools.canceller.cancel(task_id)

    async def _finish(self, work: Work) -> None:
        """Every item has ended, and its line is in a file."""
        tools, id = self._tools, self._id
        moved = await move(tools.bus, id, self._fence, [Status.IN_PROGRESS], Status.FINALIZING)
        if moved not in ("ok", f"is {Status.CANCELLING}"):
            work.check(moved)
        batch = await tools.batches.read(id)
        if batch.status is Status.CANCELLING:
            await self._end(work, Status.CANCELLED)
        elif work.stop is End.EXPIRED and batch.ended[End.EXPIRED]:
            await self._end(work, Status.EXPIRED)
        else:
            await self._end(work, Status.COMPLETED)

    async def _end(self, work: Work, to: Status, fields: Mapping[str, Arg] | None = None) -> None:
        await self._tools.store.tidy(work.batch)
        await self._tools.bus.commands.call("UNLINK", keys.reply(reply_name(self._id)))
        allowed = [Status.FINALIZING, Status.CANCELLING]
        verdict = await move(
            self._tools.bus, self._id, self._fence, allowed, to, kept_ms=self._tools.batches.kept_ms, fields=fields
        )
        work.check(verdict)
        log.info("%s is %s", self._id, to)
