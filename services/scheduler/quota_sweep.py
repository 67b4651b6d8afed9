"""Reservations of tenants that nobody has settled for a while: what has become of their tasks?

A task that goes on keeps its reservation; one that has ended is settled once more; one that is not there was never made, because
its submitter died between the two steps. All of it may be done by any number of schedulers, and repeated.
"""

import asyncio
import logging

from services.scheduler import metrics
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.config import Config
from shared.errors import InvalidTaskId
from shared.keys import METERED, keys_of
from shared.lifecycle import State
from shared.quota import KEPT_MS, Quotas, overdue

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
PAGE = 100
"""Tenants of one pass, and reservations of one tenant in it: some milliseconds of the server at most."""


class QuotaSweep:
    def __init__(self, bus: Bus, config: Config) -> None:
        self._bus, self._quotas = bus, Quotas(bus, config)
        self._cursor = b"0"

    async def look(self) -> None:
        """One pass. Raises: BusError."""
        at_ms = await self._bus.time_ms()
        self._cursor, flat = await self._bus.commands.call("ZSCAN", METERED, self._cursor, "COUNT", PAGE)
        tenants = [(tenant.decode(), float(noted_ms)) for tenant, noted_ms in zip(flat[::2], flat[1::2], strict=True)]
        await asyncio.gather(*(self._look_at(tenant, noted_ms, at_ms) for tenant, noted_ms in tenants))

    async def _look_at(self, tenant: str, noted_ms: float, at_ms: int) -> None:
        ids = await overdue(self._bus, tenant, at_ms, PAGE)
        await asyncio.gather(*(self._look_at_task(tenant, task_id) for task_id in ids))
        if not ids and noted_ms < now_ms() - KEPT_MS:
            await self._bus.commands.call(
                "ZREM", METERED, tenant
            )  # what it has reserved has expired, or is noted again

    async def _look_at_task(self, tenant: str, task_id: str) -> None:
        state, used = await self._read(task_id)
        if state is not None and not state.terminal:
            await self._quotas.put_off(tenant, task_id)
            return
        await self._quotas.settle(tenant, task_id, used)
        metrics.ORPHANS.labels("ended" if state is not None else "missing").inc()

    async def _read(self, task_id: str) -> tuple[State | None, int]:
        """None: there is no such task."""
        try:
            shard, _ = keys_of(task_id)
        except InvalidTaskId:
            return None, 0
        state, used = await self._bus.commands.call("HMGET", shard.task(task_id), "state", "used")
        return (State(state.decode()) if state is not None else None), int(used or 0)
