"""Whether there is room for new tasks.

Above a share of `maxmemory` new tasks are refused, though Redis would still take them: what waits and runs needs the rest to
drain (results, logs, replies).
"""

import logging

from shared.bus.check import parse_info
from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.errors import BusError, MemoryFull

log = logging.getLogger(__name__)

FULL = 0.8
LOOK_EVERY_S = 1.0


class Memory:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._look_at_s = 0.0
        self.used = 0.0
        """Share of maxmemory, as of the last look; 0: no limit is set."""

    async def check(self) -> None:
        """Raises: MemoryFull."""
        if monotonic_s() >= self._look_at_s:
            self._look_at_s = monotonic_s() + LOOK_EVERY_S  # before the await: the others go by the last look meanwhile
            await self._look()
        if self.used > FULL:
            raise MemoryFull(f"Redis uses {self.used:.0%} of its maxmemory; above {FULL:.0%} it accepts no new tasks")

    async def _look(self) -> None:
        try:
            info = parse_info(await self._bus.commands.call("INFO", "memory"))
        except BusError as error:
            log.debug("no look at the memory: %s", error)
            self.used = 0.0
            return
        limit = int(info.get("maxmemory", 0))
        used = int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))
        self.used = used / limit if limit else 0.0
