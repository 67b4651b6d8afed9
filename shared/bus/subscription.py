"""One task's events, without gap or repeat, from any cursor, live.

The log and the bus carry the same events under the same entry ids, written in one step. So: listen first, read the hash
and the log from the cursor, deliver, then deliver what came live meanwhile with a higher id, and go on live. An id that is
not above the last one delivered is dropped. Source of the merge: Centrifuge's subscribe-then-recover, here bounded.

Entry ids tell the order, chunk numbers tell the content: chunk n of a task is the same chunk for every reader, until a Reset.
So what Redis has forgotten and a worker writes again is dropped by its number, and a reader that has seen more than Redis
remembers (a failover loses the newest entries) is given a Reset and all there is. A subscription that hears nothing asks the
hash now and then, so not even a lost wake-up or a clock that went back leaves it waiting for ever.
"""

import asyncio
import logging
from enum import Enum
from typing import Protocol

from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.bus.cursor import START, Cursor, EntryId, entry_id
from shared.bus.tail import Tail
from shared.clock import monotonic_s
from shared.errors import UNDECODABLE, BusError, HeadraceError
from shared.lifecycle import State
from shared.messages import Chunks, Event, Finished, Pending, Reset, Resumed, Started, decode_event
from shared.record import FIELDS, Record, parse_record

log = logging.getLogger(__name__)

PAGE = 500
"""Log entries of one read: under 0.2 ms of the server."""
SILENT_S = 15.0
"""After so long without an event a live subscription asks whether it has missed one."""
BUFFER = 256
"""Live events kept while the log is read; more than that, and it is read once more."""


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

    def __init__(self, bus: Bus, tail: Tail, task_id: str, sink: Sink, *, after: Cursor | None = None) -> None:
        self._bus, self._tail, self._sink = bus, tail, sink
        after = after or Cursor()
        self.task_id, self.position, self.last = task_id, after.position, after.last
        """`last`: number of the last chunk delivered."""
        self.phase = Phase.SYNCING
        self._buffer: list[tuple[bytes, Event]] = []
        self._overflowed = self._from_start = False
        self._to_come = False
        """The task may not be submitted yet: not finding it means nothing."""
        self._syncing: asyncio.Task[None] | None = None
        self._heard_at_s = monotonic_s()
        self._alarm: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen, then catch up from the log."""
        self._tail.listen(self, task=self.task_id)
        self._watch()
        self._resync()

    def open_new(self) -> None:
        """For a task that is not submitted yet, or whose Pending was the event just read: nothing to catch up with."""
        self._tail.listen(self, task=self.task_id)
        self._watch()
        self.phase = Phase.LIVE
        self._to_come = True

    def exists(self) -> None:
        """The task is submitted by now: if it is not found, it is gone."""
        self._to_come = False

    def close(self) -> None:
        self._end()
        if self._syncing is not None:
            self._syncing.cancel()

    def _end(self) -> None:
        self.phase = Phase.ENDED
        self._tail.unlisten(self, task=self.task_id)
        if self._alarm is not None:
            self._alarm.cancel()

    # -- from the tail

    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        self._heard_at_s, self._to_come = monotonic_s(), False
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

    def _watch(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(SILENT_S, self._on_alarm)

    def _on_alarm(self) -> None:
        self._watch()
        if self.phase is Phase.LIVE and monotonic_s() - self._heard_at_s >= SILENT_S:
            self._syncing = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        try:
            task = self._tail.keys.task(self.task_id)
            state, last = await self._bus.bulk.call("HMGET", task, "state", "last")
        except BusError as error:
            log.debug("asked %s in vain: %s", self.task_id, error)
            return
        if self.phase is not Phase.LIVE or (state is None and self._to_come):
            return
        if state is None or State(state.decode()).terminal or int(last or 0) != self.last:
            log.warning("%s: events were missed, reading its log", self.task_id)
            self._resync()

    def _resync(self) -> None:
        self.phase = Phase.SYNCING
        self._heard_at_s = monotonic_s()
        self._syncing = asyncio.create_task(self._sync())

    async def _sync(self) -> None:
        while self.phase is Phase.SYNCING:
            try:
                await self._catch_up()
            except _Hole as hole:
                self._start_over(hole.attempt)
            except BusError as error:
                log.warning("cannot replay %s: %s", self.task_id, error)
                await asyncio.sleep(0.2)
            except HeadraceError as error:
                log.error("cannot replay %s: %s", self.task_id, error)
                self._sink.on_sync(None)
                self.close()

    async def _catch_up(self) -> None:
        """Raises: _Hole, if what Redis has does not join what was delivered."""
        self._overflowed, to_come = False, self._to_come  # as it stands when the hash is read
        task = self._tail.keys.task(self.task_id)
        values, page = await asyncio.gather(self._bus.bulk.send("HMGET", task, *FIELDS), self._page())
        record = parse_record(values)
        if record is None and to_come:
            self._go_live()
            return
        if record is not None and record.state.terminal and record.finished is None:
            record = None  # its end was discarded, so it is gone for whoever asks
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
        elif record.last != self.last and not self._from_start and await self._is_elsewhere():
            raise _Hole(record.attempt)
        else:
            self._go_live()

    async def _is_elsewhere(self) -> bool:
        """The task's chunks are not those delivered, and it is not that some came in this moment: the buffer has those."""
        task = self._tail.keys.task(self.task_id)
        last, page = await asyncio.gather(self._bus.bulk.send("HGET", task, "last"), self._page())
        return not page and int(last or 0) != self.last

    def _page(self) -> asyncio.Future[Reply]:
        start = f"({self.position[0]}-{self.position[1]}"
        return self._bus.bulk.send("XRANGE", self._tail.keys.log(self.task_id), start, "+", "COUNT", PAGE)

    def _deliver_page(self, page: Reply) -> None:
        for entry, fields in page:
            if self.phase is not Phase.SYNCING:
                return
            try:
                event = decode_event(fields[1])
            except UNDECODABLE as error:
                log.error("passed over the entry %s of the log of %s: %s", entry, self.task_id, error)
                self.position = entry_id(entry)
            else:
                self._deliver(entry, event)

    def _go_live(self) -> None:
        buffered, self._buffer = self._buffer, []
        for entry, event in buffered:
            if self.phase is Phase.SYNCING:
                self._deliver(entry, event)
        if self.phase is Phase.SYNCING and not self._overflowed:
            self.phase, self._from_start = Phase.LIVE, False
            self._sink.on_live(self.position)

    def _start_over(self, attempt: int) -> None:
        """Once in a catching-up: what is not whole from its start cannot be made whole."""
        self._from_start = True
        self.position, self.last = START, 0
        self._sink.on_event(START, Reset(attempt=attempt, why="lost"))

    # -- one event

    def _deliver(self, entry: bytes, event: Event) -> None:
        """Raises: _Hole, while catching up."""
        if isinstance(event, Pending | Started):  # not in the log, so no position of their own
            self._sink.on_event(self.position, event)
            return
        position = entry_id(entry)
        if position <= self.position:
            return
        if not self._joins(event):
            if self.phase is Phase.LIVE:
                self._resync()  # the log has what was missed
                return
            if not self._from_start:
                raise _Hole(event.attempt)
            log.error("the log of %s has a hole before %s", self.task_id, event)
        self.position = position
        self._apply(event)

    def _joins(self, event: Event) -> bool:
        match event:
            case Chunks():
                return event.first <= self.last + 1
            case Resumed() | Finished():
                return event.last == self.last
        return True

    def _apply(self, event: Event) -> None:
        match event:
            case Finished():
                self._finish(event)
                return
            case Chunks() if event.last <= self.last:  # written again, after Redis had forgotten it
                return
            case Chunks():
                event, self.last = event.after(self.last), event.last
            case Reset():
                self.last = 0
            case Resumed():
                self.last = event.last
        self._sink.on_event(self.position, event)

    def _finish(self, event: Finished) -> None:
        self._end()
        if event.last < self.last:
            self._sink.on_event(self.position, Reset(attempt=event.attempt, why="lost"))
        self._sink.on_event(self.position, event)


class _Hole(Exception):
    """Chunks are missing, or there are more than Redis knows of."""

    def __init__(self, attempt: int) -> None:
        super().__init__(f"attempt {attempt}")
        self.attempt = attempt
