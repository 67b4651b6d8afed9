"""Large bodies and answers that have outlived their tasks, or never got one.

An object is looked at some time after it was put (shared/large.py), and goes if the hash of its task is gone. If the task has become
a dead letter, the object stays as long as that: its entry in the index is then followed by the letter's. May be done by any number of
schedulers, and repeated.
"""

import asyncio
import logging

from shared import keys
from shared.bus.client import Bus
from shared.errors import InvalidTaskId, StoreUnavailable
from shared.keys import keys_of
from shared.large import task_of
from shared.objects import Objects

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
"""What has no task takes up room, and nothing else."""
PAGE = 100
AGAIN_MS = 3600 * 1000
"""Between two looks at an object whose task has not ended, or whose dead letter is still there. The hash of a task that became a
letter stays for twice as long (shared/lua/lib/task.lua), so somebody looks while it tells of the letter."""
LONGEST_MS = 24 * 3600 * 1000
"""To the next look at an object whose task has ended: the task may go sooner than was said at its end, as those of batches do."""
LATER_MS = 300 * 1000
"""To the next try to remove an object that could not be: others are looked at before it."""
GONE_MS, LIVES_ON_MS = -2, -1
"""What PTTL says of a key that is not there, and of one that does not expire."""


class ObjectSweep:
    def __init__(self, bus: Bus, objects: Objects) -> None:
        self._bus, self._objects = bus, objects

    async def look(self) -> None:
        """One pass. A store out of reach ends it, behind a page. Raises: BusError."""
        more = True
        while more:
            at_ms, due = await self._due()
            away = [error for error in await asyncio.gather(*(self._settle(entry, at_ms) for entry in due)) if error]
            if away:
                log.warning("%d objects wait to be removed: %s", len(away), away[0])
            more = len(due) == PAGE and not away

    async def _due(self) -> tuple[int, list[str]]:
        """The present time (Unix ms), and entries of objects to look at."""
        at_ms = await self._bus.time_ms()
        page = await self._bus.commands.call("ZRANGEBYSCORE", keys.OBJECTS, "-inf", at_ms, "LIMIT", 0, PAGE)
        return at_ms, [entry.decode() for entry in page]

    async def _settle(self, entry: str, at_ms: int) -> StoreUnavailable | None:
        """What keeps it from being removed."""
        key, _, letter = entry.partition(" ")
        task_id = task_of(key)
        try:
            shard, _ = keys_of(task_id)
        except InvalidTaskId:
            log.error("%s lists %r, which is no object of a task", keys.OBJECTS, entry[:200])
            await self._forget(entry)
            return None
        try:
            if letter:
                is_there = await self._bus.commands.call("XRANGE", shard.dead, letter, letter)
                await (self._put_off(entry, at_ms + AGAIN_MS) if is_there else self._remove(entry, key))
            else:
                await self._look_at_task(entry, at_ms, shard.task(task_id))
        except StoreUnavailable as error:
            await self._put_off(entry, at_ms + LATER_MS)
            return error
        return None

    async def _look_at_task(self, key: str, at_ms: int, task: str) -> None:
        """Raises: StoreUnavailable."""
        left_ms = int(await self._bus.commands.call("PTTL", task))
        if left_ms == GONE_MS:
            await self._remove(key, key)
        elif left_ms == LIVES_ON_MS:
            await self._put_off(key, at_ms + AGAIN_MS)
        elif letter := await self._bus.commands.call("HGET", task, "dead"):
            await self._bus.commands.call("ZADD", keys.OBJECTS, at_ms + left_ms, f"{key} {letter.decode()}")
            await self._forget(key)
        else:
            await self._put_off(key, at_ms + min(left_ms + 1, LONGEST_MS))

    async def _remove(self, entry: str, key: str) -> None:
        await self._objects.delete(key)
        await self._forget(entry)

    async def _put_off(self, entry: str, until_ms: int) -> None:
        await self._bus.commands.call("ZADD", keys.OBJECTS, "XX", until_ms, entry)

    async def _forget(self, entry: str) -> None:
        await self._bus.commands.call("ZREM", keys.OBJECTS, entry)
