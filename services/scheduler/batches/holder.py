"""Which batches this scheduler feeds: those whose lease it could take, until they end or another one has taken it."""

import asyncio
import logging
import random
from collections import Counter

from msgspec import Struct
from msgspec.structs import replace

from services.scheduler import metrics
from services.scheduler.batches.feeder import Feeder
from services.scheduler.batches.items import reply_name
from services.scheduler.batches.scripts import lease
from services.scheduler.batches.telling import tell_end
from services.scheduler.batches.work import Tools
from shared import keys
from shared.batches import Fence, Status
from shared.clock import monotonic_s
from shared.errors import BatchNotFound, BusError, WrongKeyType
from shared.ids import new_nonce
from shared.periodic import Periodic

log = logging.getLogger(__name__)

INTERVAL_S = 0.5
MOST_HELD = 100
"""Places: batches that a scheduler feeds at once. A tenant gets no more of them than it leaves free, so that its batches keep nobody
else's from beginning. They share one window anyway."""
STILL_S = 10.0
"""A batch in which nothing has moved for so long gives up its place to one that waits: there may be no worker for its model for
days. Its tasks wait on without it; what has ended is gathered when it has a place again."""
TURN_S = 120.0
"""So long a batch that moves keeps its place from tenants that have fewer by more than one: else some that take days would keep all
places. Longer than any segment is gathered, so that each turn brings it on (gathering.LONGEST_SEGMENT_S)."""
LEFT_S = 60.0
"""How long its tasks count against its tenant's window, from when it was last seen to wait: then another scheduler has it."""
WAITS_S = (2.0, 5.0)
"""Until a batch that got no place, or has given it up, is looked at again: it must not hide those behind it. Drawn at random: else a
scheduler without a place might come first each time, and put it off before one that has a place sees it."""
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


class Left(Struct):
    """A batch that has given up its place. Its tasks wait on."""

    tenant: str
    tasks: int
    until_s: float
    ended: int = 0
    """Of its tasks, as far as its reply stream tells."""


class Holder:
    """A loop of the scheduler."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._lease_ms = tools.config.limits.lease_ms
        """A batch whose holder was killed stands still for so long. Renewed every third of it."""
        self._held: dict[str, Held] = {}
        self._left: dict[str, Left] = {}
        self._left_tasks: Counter[str] = Counter()
        """By tenant, counted in each pass: each feeder asks for its window ten times a second."""
        self._ahead_ms = 0.0
        """Redis' clock (Unix) is so far ahead of this process' monotonic one, as the last pass has found. Schedulers share the index, and
        the wall clocks of their machines may differ, or jump."""
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
            await asyncio.gather(*map(self._let_go, list(self._held)))

    async def stop(self) -> None:
        await self._periodic.stop()

    async def look(self) -> None:
        """One pass. Raises: BusError."""
        self._ahead_ms = await self._tools.bus.time_ms() - monotonic_s() * 1000
        over = await self._keep()
        self._left = {batch_id: left for batch_id, left in self._left.items() if left.until_s > monotonic_s()}
        due = await self._tools.bus.commands.call(
            "ZRANGEBYSCORE", keys.BATCHES, "-inf", self._now_ms(), "LIMIT", 0, MOST_HELD
        )
        for batch_id in (*over, *(name.decode() for name in due)):
            if batch_id not in self._held:
                await self._look_at(batch_id)
        self._left_tasks = Counter()
        for left in self._left.values():
            self._left_tasks[left.tenant] += max(0, left.tasks - left.ended)
        self._measure()

    def window(self, batch_id: str) -> int:
        """A tenant's batches share its window, so that many are no more than one; with what those without a place have left in it."""
        window = self._tools.config.limits.batch_window
        if batch_id not in self._held:
            return window
        tenant = self._held[batch_id].tenant
        return max(1, (window - self._left_tasks[tenant]) // self._places()[tenant])

    # -- parts

    async def _keep(self) -> list[str]:
        """Renews the leases; the batches that are held no more. Raises: BusError."""
        over = []
        for batch_id, held in list(self._held.items()):
            if held.running.done():
                del self._held[batch_id]
                over.append(batch_id)
            elif (monotonic_s() - held.renewed_s) * 3000 > self._lease_ms:
                await self._renew(batch_id, held)
        return over

    async def _look_at(self, batch_id: str) -> None:
        """What is wrong with one batch, such as a key of a foreign hand, keeps no other from being looked at. Raises: BusError."""
        try:
            await self._consider(batch_id)
        except Exception as error:
            if isinstance(error, BusError) and not isinstance(error, WrongKeyType):
                raise
            log.error("%s cannot be looked at: %r", batch_id, error)
            await self._put_off(batch_id, _wait_ms())

    async def _consider(self, batch_id: str) -> None:
        """Sweep it, take it if there is a place, or leave it to wait. Raises: BusError."""
        tenant = await self._tenant(batch_id)
        if tenant is None:
            self._left.pop(batch_id, None)
            await self._sweep(batch_id)
            return
        room = self._places()[tenant] < MOST_HELD - len(self._held)
        giver = None if room else self._giver(tenant)
        if not room and giver is None:
            await self._let_wait(batch_id)
            return
        taken = await self._take(batch_id, tenant)
        self._left.pop(batch_id, None)  # here or elsewhere, its holder counts its tasks
        if taken and giver is not None:
            log.info("%s gives up its place to %s", giver, batch_id)
            await self._give_up(giver)

    async def _let_wait(self, batch_id: str) -> None:
        """What has ended since it gave up its place is in its tenant's window no more."""
        if (left := self._left.get(batch_id)) is not None:
            ended = await self._tools.bus.commands.call("XLEN", keys.reply(reply_name(batch_id)))
            self._left[batch_id] = replace(left, ended=ended, until_s=monotonic_s() + LEFT_S)
        await self._put_off(batch_id, _wait_ms())

    async def _give_up(self, batch_id: str) -> None:
        held = self._held[batch_id]
        tasks = len(held.feeder.work.numbers) if held.feeder.work is not None else 0
        self._left[batch_id] = Left(held.tenant, tasks, monotonic_s() + LEFT_S)
        self._left_tasks[held.tenant] += tasks
        await self._let_go(batch_id, _wait_ms())

    async def _tenant(self, batch_id: str) -> str | None:
        """None: the batch has ended, or there is none. Raises: BusError."""
        state = keys.batch(batch_id, "state")
        status, tenant = await self._tools.bus.read("HMGET", state, "status", "tenant")
        return None if status is None or Status(status.decode()).terminal else str(tenant, "utf-8")

    def _places(self) -> Counter[str]:
        """By tenant."""
        return Counter(held.tenant for held in self._held.values())

    def _giver(self, tenant: str) -> str | None:
        """Which batch gives up its place to one of this tenant: one that stands still, or else has had its turn, of who has most
        places. Of others only if they have more places than this tenant, so that they take turns, and nobody loses by having few."""
        places, found = self._places(), []
        for batch_id, held in self._held.items():
            more, feeder = places[held.tenant] - places[tenant], held.feeder
            still = feeder.still_s >= STILL_S
            if (still and (more > 0 or held.tenant == tenant)) or (feeder.turn_s >= TURN_S and more > 1):
                found.append((still, places[held.tenant], feeder.still_s, batch_id))
        return max(found)[-1] if found else None

    async def _take(self, batch_id: str, tenant: str) -> bool:
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
        return verdict == "held"

    async def _renew(self, batch_id: str, held: Held) -> None:
        try:
            verdict = await lease(self._tools.bus, batch_id, held.fence.nonce, self._lease_ms)
        except WrongKeyType as error:
            verdict = str(error)
        if verdict == f"held {held.fence.epoch}":
            held.renewed_s = monotonic_s()
            await self._put_off(batch_id, self._lease_ms)
        elif verdict != "ended":
            # it was out of reach for longer than its lease; the scripts refuse what it still sends
            log.info("%s is held no more: %s", batch_id, verdict)
            await _stopped(held.running)
            del self._held[batch_id]

    async def _put_off(self, batch_id: str, by_ms: int) -> None:
        """Nobody need look at it before. A full Redis may refuse it: it is looked at in vain then."""
        try:
            await self._tools.bus.commands.call("ZADD", keys.BATCHES, "XX", self._now_ms() + by_ms, batch_id)
        except BusError as error:
            log.debug("%s cannot be put off: %s", batch_id, error)

    async def _sweep(self, batch_id: str) -> None:
        """It has ended, which is told, or there is none. After a while nothing is left of it but its record and its files."""
        bus = self._tools.bus
        try:
            batch = await self._tools.batches.read(batch_id)
        except BatchNotFound:  # never made, if the entry is as old as it says; else it is being made
            over_ms = float(await bus.commands.call("ZSCORE", keys.BATCHES, batch_id) or 0) + MADE_MS
        else:
            await tell_end(bus, batch, self._tools.batches.kept_ms)
            over_ms = max(batch.at_ms.values()) + SWEPT_MS
            if self._now_ms() < over_ms:
                await self._put_off(batch_id, over_ms - self._now_ms())
        await bus.commands.call("UNLINK", keys.reply(reply_name(batch_id)))
        if self._now_ms() >= over_ms:
            await bus.commands.call("ZREM", keys.BATCHES, batch_id)

    async def _let_go(self, batch_id: str, for_ms: int = 0) -> None:
        """Nobody takes it before `for_ms`."""
        held = self._held.pop(batch_id)
        await _stopped(held.running)
        try:
            await lease(self._tools.bus, batch_id, held.fence.nonce, 0)
            await self._put_off(batch_id, for_ms)
        except BusError as error:
            log.debug("the lease of %s lapses by itself: %s", batch_id, error)

    def _now_ms(self) -> int:
        return int(self._ahead_ms + monotonic_s() * 1000)

    def _measure(self) -> None:
        works = [held.feeder.work for held in self._held.values() if held.feeder.work is not None]
        metrics.BATCHES.set(len(self._held))
        oldest_ms = min((work.batch.created_at_ms for work in works), default=self._now_ms())
        metrics.BATCH_OLDEST.set((self._now_ms() - oldest_ms) / 1000)


def _wait_ms() -> int:
    return int(random.uniform(*WAITS_S) * 1000)


async def _stopped(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
