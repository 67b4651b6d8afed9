"""One shard's arrivals: admitted into the waiting order, then handed to workers as far as there are credits."""

import asyncio
import logging
from collections.abc import Sequence

from services.scheduler import metrics
from services.scheduler.pacing import Pacing
from services.scheduler.scripts import Arrival, admit, dispatch, follow
from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.bus.consume import Entry
from shared.bus.script import MAX_ITEMS
from shared.config import Config
from shared.errors import UNDECODABLE, RateLimited, TokensOverLimit, WrongKeyType
from shared.keys import ShardKeys
from shared.messages import decode_task
from shared.quota import Quotas
from shared.submit import MADE_UNKNOWN

log = logging.getLogger(__name__)

ASKED = ("spec", "tokens_in", "tokens_out")
LOWERED_MS = 60_000
"""Until a task is looked at again that is larger than its tenant's limit, or whose tenant's quota cannot be read."""

CACHED = ("hit", "followed", "miss", "refresh")
"""Verdicts of admit on tasks whose answer may be that of another one; the last two are queued."""


class Intake:
    def __init__(self, bus: Bus, shard: ShardKeys, config: Config) -> None:
        self._bus, self._shard, self._config, self._quotas = bus, shard, config, Quotas(bus, config)
        self._pacing = Pacing()
        labels = (shard.pool, str(shard.shard))
        self._admitted, self._dispatched = metrics.ADMITTED.labels(*labels), metrics.DISPATCHED.labels(*labels)
        self._cached = {outcome: metrics.CACHE.labels(*labels, outcome) for outcome in CACHED}

    async def on_arrivals(self, entries: list[Entry]) -> Sequence[bytes]:
        """New tasks, ends that others wait for, and wake-ups for freed slots. The admit script clears the entries itself."""
        for entry in entries:
            if digest := _said(entry, b"lead"):
                await self._follow(digest, _said(entry, b"of"))
        arrivals = [Arrival(_said(entry, b"t"), entry.id) for entry in entries]
        for start in range(0, len(arrivals), MAX_ITEMS):
            await self._admit(arrivals[start : start + MAX_ITEMS])
        await self.dispatch()
        return ()

    async def _follow(self, digest: str, ended_id: str) -> None:
        """Those that waited for the answer of a task that has ended get it, or one of them leads. Raises: BusError."""
        try:
            while (await follow(self._bus, self._shard, self._config.limits, digest, ended_id)).more:
                pass
        except WrongKeyType as error:  # the repair takes them in again when the key is gone
            log.error("nobody sees to those that follow %s: %s", ended_id, error)

    async def _admit(self, arrivals: Sequence[Arrival]) -> None:
        verdicts = await admit(self._bus, self._shard, self._config.limits, arrivals)
        self._admitted.inc(sum(verdict in ("queued", "miss", "refresh") for verdict in verdicts))
        for verdict in verdicts:
            if verdict in self._cached:
                self._cached[verdict].inc()
        for verdict in verdicts:
            if verdict.startswith("wrongtype"):
                log.error("a task cannot be admitted: %s holds a type that is not Headrace's", verdict[10:])
        owing = [arrival for arrival, verdict in zip(arrivals, verdicts, strict=True) if verdict == "owes"]
        if owing:
            asked = await asyncio.gather(*(self._bus.read("HMGET", self._shard.task(a.id), *ASKED) for a in owing))
            await self._admit(await asyncio.gather(*map(self._take, owing, asked)))

    async def _take(self, arrival: Arrival, asked: Sequence[Reply]) -> Arrival:
        """Reserve what a task may use that waits for its tenant's rates, or learn when to ask again. Raises: BusError."""
        spec, *tokens = asked
        if spec is None:  # it has expired meanwhile, which admit will find
            return Arrival(arrival.id, arrival.entry, "taken")
        try:
            tokens_in, tokens_out = (int(value or 0) for value in tokens)
            task, most = decode_task(spec), tokens_in + (tokens_out or MADE_UNKNOWN)
        except (*UNDECODABLE, ValueError) as error:  # it is written over, which its worker deals with
            log.error("the quota of %s is not asked: it cannot be read: %s", arrival.id, error)
            return Arrival(arrival.id, arrival.entry, "taken")
        try:
            await self._quotas.take(task, arrival.id, most)
        except RateLimited as refused:
            wait_s = self._pacing.wait_s(task.tenant, most, refused, *self._quotas.rates(task.tenant, task.key))
            return Arrival(arrival.id, arrival.entry, str(int(wait_s * 1000)))
        except TokensOverLimit:  # a reload has lowered the limit: it waits for it to come back, or for its own deadline
            return Arrival(arrival.id, arrival.entry, str(LOWERED_MS))
        except WrongKeyType as error:  # one tenant's key must not hold up the others
            log.error("%s waits for its quota: %s", arrival.id, error)
            return Arrival(arrival.id, arrival.entry, str(LOWERED_MS))
        return Arrival(arrival.id, arrival.entry, "taken")

    async def dispatch(self) -> None:
        """Hand out tasks until the credits or the tasks are used up."""
        while True:
            done = await dispatch(self._bus, self._shard, self._config)
            self._dispatched.inc(done.handed_out)
            if done.handed_out < MAX_ITEMS:
                return


def _said(entry: Entry, field: bytes) -> str:
    """Empty: nothing. What is not ours is looked for under a name that nothing has, and holds up no other entry."""
    return entry.fields.get(field, b"").decode(errors="replace")
