"""Bodies and answers that are too large for Redis: objects of their task, in the object store.

An object has a name of its own for every write, and what names it (the spec of the task, its terminal event) is written behind
it. So what is named is never overwritten: not by a repeat of the submission, nor by a worker that wakes from the dead. First an
object stands in an index, with the time of the first look at it, then it is put, then it is named. Whatever was begun and left,
and whatever has outlived its task, is found by that entry: services/scheduler/object_sweep.py removes it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from shared import keys
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.errors import HeadraceError, NoObjectStore, StoreUnavailable
from shared.ids import new_nonce
from shared.messages import Stored
from shared.objects import Objects

log = logging.getLogger(__name__)

LOOK_MS = 3600 * 1000
"""From before the put to the first look at what names the object. Far longer than a submission or an end takes: an object that has
no task by then never gets one. Shorter could take it from a task that is being made."""
PATIENCE_S = 120.0
"""For one object, or one piece of it that is streamed. A store that hangs must not hold a client or a worker's slot for ever; large
objects on a slow line need minutes."""

_FOLDER = "tasks/"


class Large:
    """Whatever stores or reads raises BusError besides what it names."""

    def __init__(self, bus: Bus, objects: Objects | None, inline_bytes: int) -> None:
        """`objects` None: nothing is large. `inline_bytes`: what goes through Redis all the same."""
        self._bus, self._objects, self._inline_bytes = bus, objects, inline_bytes

    def takes(self, data: bytes) -> bool:
        return len(data) > self._inline_bytes and self._objects is not None

    async def put(self, task_id: str, data: bytes) -> Stored:
        """Raises: NoObjectStore, StoreUnavailable."""
        stored = Stored(name=new_nonce(), bytes=len(data))
        key = object_key(task_id, stored)
        await self._bus.commands.call("ZADD", keys.OBJECTS, now_ms() + LOOK_MS, key)
        async with self._patience():
            await self._store.put(key, data)
        return stored

    async def get(self, task_id: str, stored: Stored) -> bytes:
        """Raises: NoObjectStore, ObjectMissing, StoreUnavailable."""
        async with self._patience():
            return await self._store.get(object_key(task_id, stored))

    async def read(self, task_id: str, stored: Stored) -> AsyncGenerator[bytes, None]:
        """In pieces. Raises: as get."""
        async with aclosing(self._store.read(object_key(task_id, stored), size=stored.bytes)) as pieces:
            while True:
                async with self._patience():
                    piece = await anext(pieces, b"")
                if not piece:
                    return
                yield piece

    async def drop(self, task_id: str, stored: Stored) -> None:
        """Remove what nobody needs any more. Should it not go, the sweep finds it."""
        key = object_key(task_id, stored)
        try:
            async with self._patience():
                await self._store.delete(key)
            await self._bus.commands.call("ZREM", keys.OBJECTS, key)
        except HeadraceError as error:
            log.warning("%s stays for now: %s", key, error)

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Raises: StoreUnavailable, if the block takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield
        except TimeoutError:
            raise StoreUnavailable(self._store.url, f"it has not answered within {PATIENCE_S:g} s") from None

    @property
    def _store(self) -> Objects:
        if self._objects is None:
            raise NoObjectStore
        return self._objects


def object_key(task_id: str, stored: Stored) -> str:
    return f"{_FOLDER}{task_id}/{stored.name}"


def task_of(key: str) -> str:
    """The task that an object belongs to; of a key that is none of ours, no id of a task."""
    return key.removeprefix(_FOLDER).partition("/")[0]
