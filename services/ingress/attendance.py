"""Tasks that are worth something only while their client waits: plain calls of the OpenAI API, which nobody can take up again.

Their lease (`attached`) is renewed here for as long as the client's connection stands. A client that goes cancels its task
at once; if this process goes, the lease lapses and the scheduler cancels it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from starlette.types import Receive

from services.ingress.answers import Answer
from shared.bus.client import Bus
from shared.bus.script import Script
from shared.cancel import Canceller
from shared.errors import HeadraceError, MemoryFull, RequestError, StoreUnavailable
from shared.ids import place_of
from shared.keys import shard_keys
from shared.submit import ATTACHED_MS

log = logging.getLogger(__name__)

ATTEND = Script("services.ingress", "attend")
INTERVAL_S = ATTACHED_MS / 4000
WATCH_AFTER_S = 0.25
"""Most calls are answered sooner, and need not pay for being watched."""
REFUSALS = (RequestError, MemoryFull, StoreUnavailable)
"""After these there is no task to cancel, and a note of it would be kept for days."""
PAGE = 1000
"""Tasks of one renewal: 1 ms of the server."""


class Attendance:
    """The attached tasks of this replica."""

    def __init__(self, bus: Bus, canceller: Canceller) -> None:
        self._bus, self._canceller = bus, canceller
        self._held: set[str] = set()
        self._cancelling: set[asyncio.Task[None]] = set()

    def hold(self, answer: Answer) -> "Hold":
        return Hold(self, answer)

    def enter(self, task_id: str) -> None:
        self._held.add(task_id)

    def leave(self, task_id: str, *, cancel: bool) -> None:
        self._held.discard(task_id)
        if cancel:
            task = asyncio.create_task(self._cancel(task_id))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def renew(self) -> None:
        """Raises: BusError."""
        by_shard: dict[str, list[str]] = defaultdict(list)
        for task_id in self._held:
            place = place_of(task_id)
            by_shard[shard_keys(place.pool, place.shard).attached].append(task_id)
        for key, ids in by_shard.items():
            for first in range(0, len(ids), PAGE):
                await self._bus.run(ATTEND, [key], [ATTACHED_MS, *ids[first : first + PAGE]])

    async def _cancel(self, task_id: str) -> None:
        try:
            await self._canceller.cancel(task_id)
        except HeadraceError as error:  # its lease lapses
            log.warning("cannot cancel %s, whose client has gone: %s", task_id, error)


class Hold:
    """`with`: the task is attached to the client that waits for `answer`."""

    def __init__(self, attendance: Attendance, answer: Answer) -> None:
        self._attendance, self._answer = attendance, answer

    def __enter__(self) -> None:
        self._attendance.enter(self._answer.task_id)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        refused = kind is not None and issubclass(kind, REFUSALS)
        self._attendance.leave(self._answer.task_id, cancel=not refused and not self._answer.has_ended)


class Presence:
    """`with`: calls `on_gone` when the client of a request closes its connection."""

    def __init__(self, receive: Receive, on_gone: Callable[[], None]) -> None:
        self._receive, self._on_gone = receive, on_gone
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch)

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._on_gone()
