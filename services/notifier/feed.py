"""One task's events, as messages of one subscription: the sink between shared/bus/subscription.py and a client."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, assert_never

from services.notifier import metrics
from services.notifier.frames import Data, Done, Err, Fail, Live, Outbound, Reset, Status, Sync, place_info
from services.notifier.line import Line, has_changed
from shared.bus.client import Bus
from shared.bus.cursor import Cursor, EntryId
from shared.bus.subscription import Subscription
from shared.bus.tail import Tail
from shared.chunks import deltas, first_text
from shared.clock import monotonic_s
from shared.errors import BusError, ErrorBody
from shared.lifecycle import State
from shared.messages import NULL, Chunks, Event, Finished, Pending, Resumed, Started, result_in_json
from shared.messages import Reset as ResetEvent
from shared.place import Outlook
from shared.record import Record

log = logging.getLogger(__name__)

Push = Callable[[Outbound], None]


class Feed:
    """`cursor` is how far the client is told; `on_end` is called once, when nothing more will come."""

    def __init__(
        self,
        bus: Bus,
        tail: Tail,
        line: Line,
        task_id: str,
        push: Push,
        *,
        id: int,
        cursor: Cursor,
        form: str,
        named: bool = False,
        on_end: Callable[["Feed"], None] = lambda feed: None,
    ) -> None:
        """`named`: the subscription has many tasks, so every message tells which one."""
        self.task_id, self.cursor = task_id, cursor
        self.waits, self.moves = False, 0
        self._bus, self._tail, self._line, self._push = bus, tail, line, push
        self._id, self._form, self._on_end = id, form, on_end
        self._told: tuple[Outlook, float] | None = None
        """The place that the client knows, and since when (monotonic)."""
        self._name = task_id if named else ""
        self._resumed = cursor != Cursor()
        self._ending: asyncio.Task[None] | None = None
        self._subscription = Subscription(bus, tail, task_id, self, after=cursor)

    def open(self) -> None:
        metrics.SUBSCRIPTIONS.inc()
        self._subscription.open()

    def open_new(self, event: Pending) -> None:
        """The task's first event has just come: it is told from there, without a look at its hash and log."""
        metrics.SUBSCRIPTIONS.inc()
        self._subscription.open_new()
        self._subscription.exists()
        self._tell_start(State.PENDING, 0)
        self.on_event(self.cursor.position, event)

    def close(self) -> None:
        metrics.SUBSCRIPTIONS.dec()
        self._line.leave(self)
        self._subscription.close()
        if self._ending is not None:
            self._ending.cancel()

    # -- from the line

    def on_outlook(self, outlook: Outlook | None) -> None:
        self.waits = outlook is not None
        if outlook is None:
            self._told = None
            return
        now_s = monotonic_s()
        if self._told is not None:
            before, at_s = self._told
            if not has_changed(before, outlook, (now_s - at_s) * 1000):
                return
        self._told = outlook, now_s
        self._push(Status(**self._head(), status=State.PENDING, info=place_info(outlook)))

    # -- from the subscription

    def on_sync(self, record: Record | None) -> None:
        if record is None:
            message = f"The task {self.task_id} does not exist, or its result has expired."
            self._push(Err(id=self._id, code="not_found", msg=message))
            self._on_end(self)
            return
        self._tell_start(record.state, record.attempt)

    def _tell_start(self, state: State, attempt: int) -> None:
        mode = "resume" if self._resumed else "replay"
        metrics.REPLAYS.labels(mode).inc()
        cursor = self.cursor
        self._push(
            Sync(id=self._id, task=self.task_id, c=str(cursor), status=state, a=attempt, n=cursor.last, mode=mode)
        )
        self.waits, self._told = state is State.PENDING, None
        self._line.join(self)

    def on_live(self, position: EntryId) -> None:
        self._push(Live(id=self._id, task=self._name, c=str(self.cursor)))

    def on_event(self, position: EntryId, event: Event) -> None:
        self.moves += 1
        self.waits, self._told = isinstance(event, Pending), None
        match event:
            case Chunks():
                self._on_chunks(position, event)
            case Finished():
                self._on_finished(position, event)
            case ResetEvent():
                self.cursor = Cursor(position, event.attempt, 0)
                self._push(Reset(**self._head(), a=event.attempt, n=0, why=event.why))
            case Resumed():
                self.cursor = Cursor(position, event.attempt, event.last)
                self._push(
                    Status(
                        **self._head(), status=State.PROCESSING, info={"attempt": event.attempt, "resumed": event.last}
                    )
                )
            case Started():
                info = {"worker": event.worker, "attempt": event.attempt}
                self._push(Status(**self._head(), status=State.PROCESSING, info=info))
            case Pending():
                self._push(
                    Status(**self._head(), status=State.PENDING, info={"lane": event.lane, "model": event.model})
                )
            case _:
                assert_never(event)

    def _on_chunks(self, position: EntryId, event: Chunks) -> None:
        if event.first != self.cursor.last + 1:
            metrics.GAPS.inc()
            log.error("%s: chunks %d..%d after %d", self.task_id, event.first, event.last, self.cursor.last)
        self.cursor = Cursor(position, event.attempt, event.last)
        head = self._head()
        if self._form == "chunks":
            self._push(Data(**head, f=event.first, n=event.last, chunks=event.chunks))
            return
        for first, last, index, text in runs(event):
            self._push(Data(**head, f=first, n=last, i=index, d=text))

    def _on_finished(self, position: EntryId, event: Finished) -> None:
        missed = event.last > self.cursor.last
        self.cursor = Cursor(max(position, self.cursor.position), event.attempt, event.last)
        if event.state is State.COMPLETED and (missed or not event.streamed):
            self._ending = asyncio.create_task(self._end_whole(event))
        else:
            self._end(event, None)

    async def _end_whole(self, event: Finished) -> None:
        """The pieces were never made, or their log is gone: the end brings the whole."""
        result = b"" if event.stored is not None else bytes(event.result)
        while event.result is NULL and event.stored is None:
            try:
                result = await self._bus.bulk.call("HGET", self._tail.keys.task(self.task_id), "result") or b"null"
                break
            except BusError as error:
                log.warning("cannot read the result of %s: %s", self.task_id, error)
                await asyncio.sleep(0.5)
        self._end(event, result)

    def _end(self, event: Finished, result: bytes | None) -> None:
        head = self._head()
        if event.state is State.COMPLETED:
            done = Done(**head, n=event.last, finish=event.finish_reason, usage=event.usage)
            if result is not None and (self._form == "chunks" or event.content_type or event.stored is not None):
                done.result = result_in_json(self.task_id, result, event)
            elif result is not None:
                done.text = first_text(result) or ""
            self._push(done)
        else:
            error = event.error or ErrorBody(message=f"The task ended as {event.state}.", type="server_error")
            self._push(Fail(**head, n=event.last, status=event.state, error=error))
        self._on_end(self)

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "task": self._name, "c": str(self.cursor)}


def runs(event: Chunks) -> list[tuple[int, int, int, str]]:
    """Stretches of chunks that add to one choice: (first, last, index, text). Together they cover the event's range."""
    made: list[tuple[int, int, int, str]] = []
    for number, chunk in enumerate(event.chunks, event.first):
        for index, text in deltas(bytes(chunk)) or [(-1, "")]:
            if made and (index in (-1, made[-1][2]) or made[-1][3] == ""):
                first, _, before, said = made[-1]
                made[-1] = (first, number, before if index == -1 else index, said + text)
            else:
                made.append((number if not made else made[-1][1] + 1, number, max(index, 0), text))
    return made
