"""One shard's arrivals: admitted into the waiting order, then handed to workers as far as there are credits."""

import logging
from collections.abc import Sequence

from services.scheduler import metrics
from services.scheduler.scripts import Arrival, admit, dispatch
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.bus.script import MAX_ITEMS
from shared.config import Limits
from shared.keys import ShardKeys

log = logging.getLogger(__name__)


class Intake:
    def __init__(self, bus: Bus, shard: ShardKeys, limits: Limits) -> None:
        self._bus, self._shard, self._limits = bus, shard, limits
        labels = (shard.pool, str(shard.shard))
        self._admitted, self._dispatched = metrics.ADMITTED.labels(*labels), metrics.DISPATCHED.labels(*labels)

    async def on_arrivals(self, entries: list[Entry]) -> Sequence[bytes]:
        """New tasks, and wake-ups for freed slots. The admit script clears the entries itself."""
        arrivals = [Arrival(entry.fields.get(b"t", b"").decode(), entry.id) for entry in entries]
        for start in range(0, len(arrivals), MAX_ITEMS):
            verdicts = await admit(self._bus, self._shard, arrivals[start : start + MAX_ITEMS])
            self._admitted.inc(verdicts.count("queued"))
            for verdict in verdicts:
                if verdict.startswith("wrongtype"):
                    log.error("a task was dropped from `in`: %s holds a type that is not Headrace's", verdict[10:])
        await self.dispatch()
        return ()

    async def dispatch(self) -> None:
        """Hand out tasks until the credits or the tasks are used up."""
        while True:
            done = await dispatch(self._bus, self._shard, self._limits)
            self._dispatched.inc(done.handed_out)
            if done.handed_out < MAX_ITEMS:
                return
