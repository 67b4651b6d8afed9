"""Anti-entropy: every unfinished task must be somewhere. Lost data or a foreign hand can make one be nowhere."""

import logging

from services.scheduler import metrics
from services.scheduler.scripts import Look, repair
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.clock import monotonic_s
from shared.config import Limits
from shared.keys import ShardKeys

log = logging.getLogger(__name__)

PAGE = 200
"""Tasks of one pass, a second apart: 1 ms of the server."""
LEASES = 2
"""Between the first look and the repair: longer than any task is on its way between two places."""


class Repair:
    """Walks over all unfinished tasks of a shard, a page a pass."""

    def __init__(self, bus: Bus, shard: ShardKeys, limits: Limits) -> None:
        self._bus, self._shard, self._limits = bus, shard, limits
        self._cursor = b"0"
        self._astray: dict[str, tuple[str, float]] = {}
        """The epoch that a task was astray with, and since when."""

    async def look(self) -> None:
        """One pass. Raises: BusError."""
        self._cursor, flat = await self._bus.commands.call("ZSCAN", self._shard.expiry, self._cursor, "COUNT", PAGE)
        ids = list(dict.fromkeys([*self._astray, *(id.decode() for id in flat[::2])]))
        for first in range(0, len(ids), MAX_ITEMS):
            looks = [self._look(id) for id in ids[first : first + MAX_ITEMS]]
            for look, verdict in zip(looks, await repair(self._bus, self._shard, self._limits, looks), strict=True):
                self._note(look.id, verdict)

    def _look(self, id: str) -> Look:
        epoch, since_s = self._astray.get(id, ("", 0.0))
        due = monotonic_s() - since_s > LEASES * self._limits.lease_s
        return Look(id, epoch if due else "")

    def _note(self, id: str, verdict: str) -> None:
        if verdict in ("well", "repaired"):
            self._astray.pop(id, None)
        elif self._astray.get(id, ("", 0.0))[0] != verdict:
            self._astray[id] = verdict, monotonic_s()
        if verdict == "repaired":
            metrics.REPAIRED.labels(self._shard.pool, str(self._shard.shard)).inc()
            log.error("%s was nowhere: repaired", id)
