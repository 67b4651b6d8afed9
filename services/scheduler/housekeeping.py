"""What must happen even if nobody asks: silent workers lose their tasks, left-behind bus groups go, gauges are read."""

import asyncio
import logging

from services.scheduler import metrics
from services.scheduler.intake import Intake
from services.scheduler.scripts import reap
from shared.bus.client import Bus
from shared.errors import CommandRefused
from shared.keys import ShardKeys
from shared.lifecycle import LEASE_MS, Lane

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""A lost worker is noticed within a lease and this."""


class Housekeeping:
    def __init__(self, bus: Bus, shard: ShardKeys, partitions: int, intake: Intake) -> None:
        self._bus, self._shard, self._intake = bus, shard, intake
        self._buses = [shard.bus(partition) for partition in range(partitions)]
        self._labels = (shard.pool, str(shard.shard))

    async def tidy(self) -> None:
        """One pass. Raises: BusError."""
        reaped = await reap(self._bus, self._shard)
        for stage, count in (("running", reaped.running), ("unstarted", reaped.unstarted)):
            metrics.TAKEN_BACK.labels(*self._labels, stage).inc(count)
        if reaped.workers or reaped.running or reaped.unstarted:
            log.warning("%s: took back %d running and %d unstarted tasks, removed %d silent workers",
                        self._shard.tag, reaped.running, reaped.unstarted, reaped.workers)  # fmt: skip
        await self._intake.dispatch()
        await self._remove_readers()
        await self._measure()

    async def _remove_readers(self) -> None:
        """Bus groups of replicas that died without leaving."""
        seconds, _ = await self._bus.commands.call("TIME")
        now_ms = int(seconds) * 1000
        left = await self._bus.commands.call("ZRANGEBYSCORE", self._shard.readers, "-inf", now_ms, "LIMIT", 0, 10)
        for group in left:
            for stream in self._buses:
                try:
                    await self._bus.commands.call("XGROUP", "DESTROY", stream, group)
                except CommandRefused as error:
                    log.debug("no group to remove: %s", error)
            await self._bus.commands.call("ZREM", self._shard.readers, group)
            log.info("removed the bus group %s: its reader is gone", group.decode())

    async def _measure(self) -> None:
        call, shard = self._bus.commands.send, self._shard
        seconds, _ = await call("TIME")
        now_ms = int(seconds) * 1000
        for lane, key in zip(Lane, shard.backlogs, strict=True):
            waiting, oldest = await asyncio.gather(call("ZCARD", key), call("ZRANGE", key, 0, 0, "WITHSCORES"))
            metrics.BACKLOG.labels(*self._labels, lane).set(waiting)
            age_ms = now_ms - float(oldest[1]) if oldest else 0
            metrics.OLDEST.labels(*self._labels, lane).set(max(0.0, age_ms / 1000))
        metrics.ARRIVALS.labels(*self._labels).set(await call("XLEN", shard.arrivals))
        await self._measure_workers(now_ms)

    async def _measure_workers(self, now_ms: int) -> None:
        announced = await self._bus.commands.call("HGETALL", self._shard.workers)
        live, slots, busy = 0, 0, 0
        for worker, said in zip(announced[::2], announced[1::2], strict=True):
            beat_ms, announced_slots, _ = said.split(b" ", 2)
            if now_ms - int(beat_ms) <= LEASE_MS:
                live, slots = live + 1, slots + int(announced_slots)
                busy += await self._bus.commands.call("XLEN", self._shard.work(worker.decode()))
        for gauge, value in ((metrics.WORKERS, live), (metrics.SLOTS, slots), (metrics.BUSY, busy)):
            gauge.labels(*self._labels).set(value)
