"""One task's events, without gap or repeat, from any cursor, live.

The log and the bus carry the same events under the same entry ids, written in one step. So: listen first, read the hash
and the log from the cursor, deliver, then deliver what came live meanwhile with a higher id, and go on live. An id that is
not above the last one delivered is dropped. Source of the merge: Centrifuge's subscribe-then-recover, here bounded.
"""

import asyncio
import logging
import re
from enum import Enum
from typing import Protocol

import msgspec
from msgspec import Struct

from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.bus.tail import Tail
from shared.errors import BusError, HeadraceError, InvalidRequest
from shared.ids import GENERATION
from shared.messages import Event, Finished, Pending, Started, decode_event
from shared.record import FIELDS, Record, parse_record

log = logging.getLogger(__name__)

PAGE = 500
"""Log entries of one read: under 0.2 ms of the server."""
BUFFER = 256
"""Live events kept while the log is read; more than that, and it is read once more."""

EntryId = tuple[int, int]
START: EntryId = (0, 0)
_CURSOR = re.compile(r"(\d{1,4})\.(\d{1,9})\.(\d{1,16})-(\d{1,16})\.(\d{1,9})\.(\d{1,9})")


class Cursor(Struct, frozen=True):
    """A place in a task's log, and what had been delivered up to there."""

    position: EntryId = START
    attempt: int = 0
    last: int = 0
    """Number of the last chunk."""

    def __str__(self) -> str:
        """Opaque to clients: generation, incarnation, entry id, attempt, chunk."""
        ms, sequence = self.position
        return f"{GENERATION}.0.{ms}-{sequence}.{self.attempt}.{self.last}"


def entry_id(entry: bytes) -> EntryId:
    ms, _, sequence = entry.partition(b"-")
    return int(ms), int(sequence)


def parse_cursor(cursor: str) -> Cursor:
    """Raises: InvalidRequest."""
    if cursor in ("", "0"):
        return Cursor()
    match = _CURSOR.fullmatch(cursor)
    if match is None or int(match[1]) != GENERATION:
        raise InvalidRequest(f"{cursor[:80]!r} is not a cursor of this server; use '0' to start over.", param="after")
    return Cursor((int(match[3]), int(match[4])), int(match[5]), int(match[6]))


class Sink(Protocol):
    """Who a subscription delivers to. Nothing here may block."""

    def on_sync(self, record: Record | None) -> None:
        """Before the first event, and after every gap: the task as it stands; None: it is unknown or gone."""

    def on_event(self, position: EntryId, event: Event) -> None:
        """The next event; Finished is the last."""

    def on_live(self, position: EntryId) -> None:
        """Caught up."""


class Phase(Enum):
    SYNCING = "syncing"
    LIVE = "live"
    ENDED = "ended"


class Subscription:
    """Delivers to its sink from `open` until Finished or `close`."""

    def __init__(self, bus: Bus, tail: Tail, task_id: str, sink: Sink, *, after: EntryId = START) -> None:
        self._bus, self._tail, self._sink = bus, tail, sink
        self.task_id, self.position = task_id, after
        self.phase = Phase.SYNCING
        self._buffer: list[tuple[bytes, Event]] = []
        self._overflowed = False
        self._to_come = False
        """The task may not be submitted yet: not finding it means nothing."""
        self._syncing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Listen, then catch up from the log."""
        self._tail.listen(self, task=self.task_id)
        self._resync()

    def open_new(self) -> None:
        """For a task that is not submitted yet, or whose Pending was the event just read: nothing to catch up with."""
        self._tail.listen(self, task=self.task_id)
        self.phase = Phase.LIVE
        self._to_come = True

    def close(self) -> None:
        self.phase = Phase.ENDED
        self._tail.unlisten(self, task=self.task_id)
        if self._syncing is not None:
            self._syncing.cancel()

    # -- from the tail

    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        if self.phase is Phase.LIVE:
            self._deliver(entry, event)
        elif not self._overflowed and len(self._buffer) < BUFFER:
            self._buffer.append((entry, event))
        else:
            self._overflowed = True

    def on_gap(self) -> None:
        if self.phase is Phase.LIVE:
            self._resync()
        else:
            self._overflowed = True

    # -- catching up

    def _resync(self) -> None:
        self.phase = Phase.SYNCING
        self._syncing = asyncio.create_task(self._sync())

    async def _sync(self) -> None:
        while self.phase is Phase.SYNCING:
            try:
                await self._catch_up()
            except BusError as error:
                log.warning("cannot replay %s: %s", self.task_id, error)
                await asyncio.sleep(0.2)
            except HeadraceError as error:
                log.error("cannot replay %s: %s", self.task_id, error)
                self._sink.on_sync(None)
                self.close()

    async def _catch_up(self) -> None:
        self._overflowed = False
        bulk, keys = self._bus.bulk, self._tail.keys
        values = bulk.send("HMGET", keys.task(self.task_id), *FIELDS)
        page = await self._page()
        record = parse_record(await values)
        if record is None and self._to_come:
            self._go_live()
            return
        self._sink.on_sync(record)
        while page:
            self._deliver_page(page)
            page = await self._page() if len(page) == PAGE else []
        if self.phase is not Phase.SYNCING:
            return
        if record is None:
            self.close()
        elif record.finished is not None:  # the log has expired, or its end was delivered before
            self._finish(record.finished)
        else:
            self._go_live()

    async def _page(self) -> Reply:
        start = f"({self.position[0]}-{self.position[1]}"
        return await self._bus.bulk.call("XRANGE", self._tail.keys.log(self.task_id), start, "+", "COUNT", PAGE)

    def _deliver_page(self, page: Reply) -> None:
        for entry, fields in page:
            if self.phase is not Phase.SYNCING:
                return
            try:
                self._deliver(entry, decode_event(fields[1]))
            except (UnicodeDecodeError, msgspec.DecodeError) as error:
                log.error("passed over the entry %s of the log of %s: %s", entry, self.task_id, error)
                self.position = entry_id(entry)

    def _go_live(self) -> None:
        buffered, self._buffer = self._buffer, []
        for entry, event in buffered:
            if self.phase is Phase.SYNCING:
                self._deliver(entry, event)
        if self.phase is Phase.SYNCING and not self._overflowed:
            self.phase = Phase.LIVE
            self._sink.on_live(self.position)

    def _deliver(self, entry: bytes, event: Event) -> None:
        if isinstance(event, Pending | Started):  # not in the log, so no position of their own
            self._sink.on_event(self.position, event)
            return
        position = entry_id(entry)
        if position <= self.position:
            return
        self.position = position
        if isinstance(event, Finished):
            self._finish(event)
        else:
            self._sink.on_event(position, event)

    def _finish(self, event: Finished) -> None:
        self.phase = Phase.ENDED
        self._tail.unlisten(self, task=self.task_id)
        self._sink.on_event(self.position, event)
