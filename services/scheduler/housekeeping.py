"""What must happen even if nobody asks: silent workers lose their tasks, time passes, left-behind bus groups go."""

import logging

from services.scheduler import metrics
from services.scheduler.grace import Grace
from services.scheduler.intake import Intake
from services.scheduler.repairing import Repair
from services.scheduler.scripts import due, reap
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.config import Config
from shared.errors import CommandRefused
from shared.keys import ShardKeys
from shared.lifecycle import Lane
from shared.place import lane_etas
from shared.submit import ATTACHED_MS

log = logging.getLogger(__name__)

PAGES = 50
"""Of 100 tasks, at most in one pass: a worker may have had thousands, and is given up at once; then others have their turn."""
BUS_KEPT_MS = 120_000
INTERVAL_S = 1.0
"""A lost worker is noticed within a lease and this."""


class Housekeeping:
    def __init__(self, bus: Bus, shard: ShardKeys, config: Config, partitions: int, intake: Intake) -> None:
        self._bus, self._shard, self._limits, self._intake = bus, shard, config.limits, intake
        self._buses = [shard.bus(partition) for partition in range(partitions)]
        self._labels = (shard.pool, str(shard.shard))
        self._workers_grace, self._waiters_grace = Grace(config.limits.lease_s), Grace(ATTACHED_MS / 1000)
        self._repair = Repair(bus, shard, config.limits)

    async def tidy(self) -> None:
        """One pass. Raises: BusError."""
        at_ms = await self._bus.time_ms()
        if self._workers_grace.is_over(at_ms / 1000, INTERVAL_S):
            await self._reap()
            await self._repair.look()
        await self._pass_time(waiters=self._waiters_grace.is_over(at_ms / 1000, INTERVAL_S))
        await self._intake.dispatch()
        await self._remove_readers(at_ms)
        await self._trim(at_ms)
        await self._measure(at_ms)

    async def _reap(self) -> None:
        for _ in range(PAGES):
            reaped = await reap(self._bus, self._shard, self._limits)
            for stage, count in (("running", reaped.running), ("unstarted", reaped.unstarted)):
                metrics.TAKEN_BACK.labels(*self._labels, stage).inc(count)
            metrics.QUARANTINED.labels(*self._labels).inc(reaped.quarantined)
            if reaped.workers or reaped.running or reaped.unstarted:
                log.warning("%s: took back %d running and %d unstarted tasks, removed %d silent workers",
                            self._shard.tag, reaped.running, reaped.unstarted, reaped.workers)  # fmt: skip
            if max(reaped.running, reaped.unstarted) < MAX_ITEMS:
                return

    async def _pass_time(self, *, waiters: bool) -> None:
        for _ in range(PAGES):
            passed = await due(self._bus, self._shard, self._limits, waiters=waiters)
            for what in ("expired", "cancelled", "told", "back"):
                metrics.DUE.labels(*self._labels, what).inc(getattr(passed, what))
            if max(passed.expired, passed.cancelled, passed.told, passed.back) < MAX_ITEMS:
                return

    async def _remove_readers(self, now_ms: int) -> None:
        """Bus groups of replicas that died without leaving."""
        left = await self._bus.commands.call("ZRANGEBYSCORE", self._shard.readers, "-inf", now_ms, "LIMIT", 0, 10)
        for group in left:
            for stream in self._buses:
                try:
                    await self._bus.commands.call("XGROUP", "DESTROY", stream, group)
                except CommandRefused as error:
                    log.debug("no group to remove: %s", error)
            await self._bus.commands.call("ZREM", self._shard.readers, group)
            log.info("removed the bus group %s: its reader is gone", group.decode())

    async def _trim(self, now_ms: int) -> None:
        """Scripts trim the bus when they write; when nobody writes any more it must empty too."""
        for stream in self._buses:
            await self._bus.commands.call("XTRIM", stream, "MINID", now_ms - BUS_KEPT_MS)

    async def _measure(self, now_ms: int) -> None:
        call, shard = self._bus.commands.send, self._shard
        waiting = await call("HMGET", shard.waiting, *(f"l:{lane}" for lane in Lane))
        for lane, turns, tasks in zip(Lane, shard.turns, waiting, strict=True):
            metrics.BACKLOG.labels(*self._labels, lane).set(int(tasks or 0))
            metrics.TENANTS.labels(*self._labels, lane).set(await call("ZCARD", turns))
            metrics.OLDEST.labels(*self._labels, lane).set(await self._oldest_s(lane, turns, now_ms))
        for lane, eta_ms in (await lane_etas(self._bus, shard, self._limits)).items():
            metrics.BACKLOG_ETA.labels(*self._labels, lane).set(eta_ms / 1000 if eta_ms >= 0 else -1)
        metrics.ARRIVALS.labels(*self._labels).set(await call("XLEN", shard.arrivals))
        await self._measure_workers(now_ms)

    async def _oldest_s(self, lane: Lane, turns: str, now_ms: int) -> float:
        """Age of the first task of the tenant whose turn is next: what waits longest, as far as shares permit."""
        tenants = await self._bus.commands.call("ZRANGE", turns, 0, 0)
        if not tenants:
            return 0.0
        backlog = self._shard.backlog(lane, tenants[0].decode())
        oldest = await self._bus.commands.call("ZRANGE", backlog, 0, 0, "WITHSCORES")
        return max(0.0, (now_ms - float(oldest[1])) / 1000) if oldest else 0.0

    async def _measure_workers(self, now_ms: int) -> None:
        announced = await self._bus.commands.call("HGETALL", self._shard.workers)
        live, busy, room = 0, 0, [0, 0, 0]
        for worker, said in zip(announced[::2], announced[1::2], strict=True):
            beat_ms, *slots, _ = said.split(b" ", 4)
            if now_ms - int(beat_ms) <= self._limits.lease_ms:
                live, room = live + 1, [sum(pair) for pair in zip(room, map(int, slots), strict=True)]
                busy += await self._bus.commands.call("XLEN", self._shard.work(worker.decode()))
        await self._tell_estimates(" ".join(map(str, room)).encode())
        for gauge, value in ((metrics.WORKERS, live), (metrics.BUSY, busy)):
            gauge.labels(*self._labels).set(value)
        for lane, most in zip(Lane, room, strict=True):
            metrics.SLOTS.labels(*self._labels, lane).set(most)

    async def _tell_estimates(self, slots: bytes) -> None:
        """Of live workers, for predictions of waiting times: a dispatch writes it too, but only one that hands out something."""
        if slots != await self._bus.commands.call("HGET", self._shard.fair, "slots"):
            await self._bus.commands.call("HSET", self._shard.fair, "slots", slots)
