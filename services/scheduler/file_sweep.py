"""Files that have expired, uploads that were never finished, and what killed writers left in the object store.

A file that was begun and not entered into the list of its tenant, because its maker died between the two, is entered. All of it
may be done by any number of schedulers, and repeated.
"""

import asyncio
import logging

from shared import keys
from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.errors import StoreUnavailable
from shared.files import Files

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
"""Nobody sees a file that has expired; this only frees its place."""
PAGE = 100
PARTS_EVERY_S = 3600.0
PARTS_OLDER_S = 24 * 3600.0
"""No write takes so long: what it has left belongs to a process that is gone."""


class FileSweep:
    def __init__(self, bus: Bus, files: Files) -> None:
        self._bus, self._files = bus, files
        self._parts_at_s = 0.0

    async def look(self) -> None:
        """One pass. A store out of reach ends it: the next one comes again. Raises: NoObjectStore, BusError."""
        try:
            while len(due := await self._due()) == PAGE:
                await self._look_at(due)
            await self._look_at(due)
            if monotonic_s() >= self._parts_at_s:
                self._parts_at_s = monotonic_s() + PARTS_EVERY_S
                await self._files.objects.forget_parts(PARTS_OLDER_S)
        except StoreUnavailable as error:
            log.warning("files wait to be removed: %s", error)

    async def _due(self) -> list[tuple[str, int]]:
        """Files, and the present time (Unix ms)."""
        at_ms = await self._bus.time_ms()
        page = await self._bus.commands.call("ZRANGEBYSCORE", keys.FILES, "-inf", at_ms, "LIMIT", 0, PAGE)
        return [(file_id.decode(), at_ms) for file_id in page]

    async def _look_at(self, due: list[tuple[str, int]]) -> None:
        await asyncio.gather(*(self._settle(file_id, at_ms) for file_id, at_ms in due))

    async def _settle(self, file_id: str, at_ms: int) -> None:
        file = await self._files.record(file_id)
        if file is None or file.expires_at_ms <= at_ms:
            await self._files.remove(file_id)
        else:
            await self._files.enter(file)
