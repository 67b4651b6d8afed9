"""Work that must be done again and again, whatever Redis does meanwhile."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from shared.clock import monotonic_s
from shared.errors import BusError

log = logging.getLogger(__name__)


class Periodic:
    """Calls `work` at once and then every `interval_s`, until `stop`. Errors are told and waited out."""

    def __init__(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self.name, self.interval_s = name, interval_s
        self._work = work
        self._stopping, self._awake = asyncio.Event(), asyncio.Event()
        self.last_pass_s: float | None = None
        self.fault: str | None = None

    async def run(self) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            try:
                await self._work()
                self.last_pass_s, self.fault = monotonic_s(), None
            except Exception as error:  # noqa: BLE001 - a bug in the work must not end the loop
                self.fault = f"{self.name}: {error}"
                (log.warning if isinstance(error, BusError) else log.exception)("%s", self.fault)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), self.interval_s)

    def wake(self) -> None:
        """Do not wait for the next time."""
        self._awake.set()

    async def stop(self) -> None:
        self._stopping.set()
        self.wake()
