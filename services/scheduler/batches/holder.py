"""Which batches this scheduler feeds: those whose lease it could take, until they end or another one has taken it."""

import asyncio
import logging

from msgspec import Struct

from services.scheduler import metrics
from services.scheduler.batches.feeder import Feeder
from services.scheduler.batches.items import reply_name
from services.scheduler.batches.scripts import lease
from services.scheduler.batches.work import Tools
from shared import keys
from shared.batches import Fence, Status
from shared.clock import monotonic_s, now_ms
from shared.errors import BatchNotFound, BusError
from shared.ids import new_nonce
from shared.periodic import Periodic

log = logging.getLogger(__name__)

INTERVAL_S = 0.5
MOST_HELD = 100
"""Batches that a scheduler feeds at once. The others wait, the longest first; a tenant has no more places than it leaves free, so
that its batches, which may have to wait for days, keep nobody else's from beginning. They share one window anyway."""
CROWDED_MS = 30_000
"""Until a batch whose tenant has its places is looked at again: it must not hide those behind it."""
SWEPT_MS = 600_000
"""From the end of a batch: replies that come later than that were lost for good. Then its reply stream goes once more."""
MADE_MS = 60_000
"""An entry of the index without a batch is dropped after so long: whoever wrote it died before the batch was made."""


class Held(Struct):
    tenant: str
    feeder: Feeder
    fence: Fence
    running: asyncio.Task[None]
    renewed_s: float


class Holder:
    """A loop of the scheduler."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._lease_ms = tools.config.limits.lease_ms
        """A batch whose holder was killed stands still for so long. Renewed every third of it."""
        self._held: dict[str, Held] = {}
        self._periodic = Periodic("the batches", INTERVAL_S, self.look)
        self.name = self._periodic.name

    @property
    def last_pass_s(self) -> float | None:
        return self._periodic.last_pass_s

    @property
    def fault(self) -> str | None:
        return self._periodic.fault

    async def run(self) -> None:
        """Until `stop`. A batch that was held may be taken by another one at once, unless this process was killed."""
        try:
            await self._periodic.run()
        finally:
            for batch_id in list(self._held):
                await self._let_go(batch_id)

    async def stop(self) -> None:
        await self._periodic.stop()

    async def look(self) -> None:
        """One pass. Raises: BusError."""
        for batch_id, held in list(self._held.items()):
            if held.running.done():
                del self._held[batch_id]
                await self._put_off(batch_id, 0)
            elif (monotonic_s() - held.renewed_s) * 3000 > self._lease_ms:
                await self._renew(batch_id, held)
        due = await self._tools.bus.commands.call(
            "ZRANGEBYSCORE", keys.BATCHES, "-inf", now_ms(), "LIMIT", 0, MOST_HELD
        )
        for batch_id in (name.decode() for name in due):
            if batch_id not in self._held and len(self._held) < MOST_HELD:
                tenant = await self._tenant(batch_id)
                if self._places(tenant) < MOST_HELD - len(self._held):
                    await self._take(batch_id, tenant)
                else:
                    await self._put_off(batch_id, CROWDED_MS)
        self._measure()

    def window(self, batch_id: str) -> int:
        """A tenant's batches share its window, so that many are no more than one."""
        alike = self._places(self._held[batch_id].tenant) if batch_id in self._held else 1
        return max(1, self._tools.config.limits.batch_window // alike)

    # -- parts

    async def _tenant(self, batch_id: str) -> str:
        """Of a batch that goes on; else empty, and it is only swept. Raises: BusError."""
        state = keys.batch(batch_id, "state")
        status, tenant = await self._tools.bus.read("HMGET", state, "status", "tenant")
        return "" if status is None or Status(status.decode()).terminal else str(tenant, "utf-8")

    def _places(self, tenant: str) -> int:
        return [held.tenant for held in self._held.values()].count(tenant)

    async def _take(self, batch_id: str, tenant: str) -> None:
        """Unless another one holds it. One that has ended is swept away."""
        nonce = new_nonce()
        verdict, _, epoch = (await lease(self._tools.bus, batch_id, nonce, self._lease_ms)).partition(" ")
        match verdict:
            case "held":
                fence = Fence(int(epoch), nonce)
                feeder = Feeder(self._tools, batch_id, fence, lambda: self.window(batch_id))
                self._held[batch_id] = Held(tenant, feeder, fence, asyncio.create_task(feeder.run()), monotonic_s())
                await self._put_off(batch_id, self._lease_ms)
            case "taken":
                await self._put_off(batch_id, self._lease_ms // 3)
            case "ended" | "unknown":
                await self._sweep(batch_id)

    async def _renew(self, batch_id: str, held: Held) -> None:
        verdict = await lease(self._tools.bus, batch_id, held.fence.nonce, self._lease_ms)
        if verdict == f"held {held.fence.epoch}":
            held.renewed_s = monotonic_s()
            await self._put_off(batch_id, self._lease_ms)
        elif (
            verdict != "ended"
        ):  # it was out of reach for longer than its lease; the scripts refuse what it still sends
            log.info("%s has another holder", batch_id)
            await _stopped(held.running)
            del self._held[batch_id]

    async def _put_off(self, batch_id: str, by_ms: int) -> None:
        """Nobody need look at it before. A full Redis may refuse it: it is looked at in vain then."""
        try:
            await self._tools.bus.commands.call("ZADD", keys.BATCHES, "XX", now_ms() + by_ms, batch_id)
        except BusError as error:
            log.debug("%s cannot be put off: %s", batch_id, error)

    async def _sweep(self, batch_id: str) -> None:
        """It has ended some time ago, or there is none: nothing is left of it but its record and its files."""
        bus = self._tools.bus
        try:
            batch = await self._tools.batches.read(batch_id)
        except BatchNotFound:  # never made, if the entry is as old as it says; else it is being made
            over_ms = float(await bus.commands.call("ZSCORE", keys.BATCHES, batch_id) or 0) + MADE_MS
        else:
            over_ms = max(batch.at_ms.values()) + SWEPT_MS
            if now_ms() < over_ms:
                await self._put_off(batch_id, over_ms - now_ms())
        await bus.commands.call("UNLINK", keys.reply(reply_name(batch_id)))
        if now_ms() >= over_ms:
            await bus.commands.call("ZREM", keys.BATCHES, batch_id)

    async def _let_go(self, batch_id: str) -> None:
        held = self._held.pop(batch_id)
        await _stopped(held.running)
        try:
            await lease(self._tools.bus, batch_id, held.fence.nonce, 0)
            await self._put_off(batch_id, 0)
        except BusError as error:
            log.debug("the lease of %s lapses by itself: %s", batch_id, error)

    def _measure(self) -> None:
        held = [held.feeder.batch for held in self._held.values() if held.feeder.batch is not None]
        metrics.BATCHES.set(len(self._held))
        oldest_ms = min((batch.created_at_ms for batch in held), default=now_ms())
        metrics.BATCH_OLDEST.set((now_ms() - oldest_ms) / 1000)


async def _stopped(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
