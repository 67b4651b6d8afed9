"""Waiting for a task's events on behalf of an HTTP client."""

import asyncio
from contextlib import aclosing

from starlette.types import Send

from services.ingress import metrics
from services.ingress.http import JSON, ClientGone, Headers, ahead, respond, start
from services.ingress.served import Served
from shared.bus.client import Bus
from shared.bus.cursor import EntryId
from shared.bus.subscription import Subscription
from shared.bus.tail import Tails
from shared.errors import InvalidTaskId, TaskNotFound
from shared.ids import place_of
from shared.keys import keys_of
from shared.large import Large
from shared.messages import NULL, Chunks, Event, Finished, Reset, Task
from shared.record import Record


class Answer:
    """The sink of one waiting client: the end as a future, and on the way there the chunks, if they are wanted."""

    def __init__(self, served: Served, *, chunks: bool) -> None:
        self.task_id, self.served = served.task_id, served
        self.finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._wants_chunks = chunks
        self._events: list[Chunks | Reset] = []
        self._given = False
        self._news = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """The task has, or Redis has lost it: not just its client's patience."""
        finished = self.finished
        return finished.done() and not finished.cancelled() and not isinstance(finished.exception(), ClientGone)

    def abandon(self) -> None:
        """Nobody reads the answer any more."""
        if not self.finished.done():
            self.finished.set_exception(ClientGone())
            self._news.set()

    def on_sync(self, record: Record | None) -> None:
        if record is not None:
            self.served.on_sync(record)
        elif not self.finished.done():
            self.finished.set_exception(TaskNotFound(self.task_id))
            self._news.set()

    def on_event(self, position: EntryId, event: Event) -> None:
        if isinstance(event, Reset):
            self._events.clear()  # what the attempts before made, and nobody has read
        if not self._events:  # what is delivered next is the first of them
            self.served.on_event(event)
        if isinstance(event, Finished) and not self.finished.done():
            self.finished.set_result(event)
        elif self._wants_chunks and isinstance(event, Chunks | Reset) and (self._given or isinstance(event, Chunks)):
            self._events.append(event)
        else:
            return
        self._news.set()

    def on_live(self, position: EntryId) -> None:
        pass

    async def next(self) -> list[Chunks | Reset]:
        """The events since the last call, as soon as there are any, the first of all being chunks; empty: the task has ended."""
        while not self._events and not self.finished.done():
            await self._news.wait()
            self._news.clear()
        events, self._events = self._events, []
        self._given = self._given or bool(events)
        return events


class Waiting:
    """`with`: an Answer that is fed while the block runs."""

    def __init__(self, bus: Bus, tails: Tails, task_id: str, *, chunks: bool = False, new: Task | None = None) -> None:
        """`new`: the task, if it is not submitted yet, so that there is nothing to catch up with. Raises: InvalidTaskId."""
        tail = tails.of(place_of(task_id))
        if tail is None:
            raise InvalidTaskId(task_id)
        self.answer = Answer(Served(task_id, new), chunks=chunks)
        self._subscription = Subscription(bus, tail, task_id, self.answer)
        self._new = new is not None

    def __enter__(self) -> Answer:
        metrics.WAITING.inc()
        if self._new:
            self._subscription.open_new()
        else:
            self._subscription.open()
        return self.answer

    def submitted(self) -> None:
        """The task is; should Redis lose it, its client is not to wait for ever."""
        self._subscription.exists()

    def __exit__(self, *_: object) -> None:
        metrics.WAITING.dec()
        self._subscription.close()
        if self.answer.finished.done() and not self.answer.finished.cancelled():
            self.answer.finished.exception()


async def result_of(bus: Bus, large: Large, task_id: str, finished: Finished) -> bytes:
    """The whole result: from the event if it came along, else from the object store or the hash.

    Raises: TaskNotFound if it has expired; NoObjectStore, ObjectMissing, StoreUnavailable.
    """
    if finished.result is not NULL:
        return bytes(finished.result)
    if finished.stored is not None:
        return await large.get(task_id, finished.stored)
    keys, _ = keys_of(task_id)
    result = await bus.read("HGET", keys.task(task_id), "result")
    if result is None:
        raise TaskNotFound(task_id)
    return bytes(result)


async def respond_result(
    send: Send, bus: Bus, large: Large, task_id: str, finished: Finished, headers: Headers
) -> None:
    """Answer with the result, with its status and content type; from the object store it comes piece by piece.

    Raises: as result_of, and then nothing was sent; Cut.
    """
    content_type = finished.content_type.encode("latin-1") or JSON
    if (stored := finished.stored) is None:
        result = await result_of(bus, large, task_id, finished)
        await respond(send, finished.status, result, content_type=content_type, headers=headers)
        return
    async with aclosing(large.read(task_id, stored)) as pieces:
        first = await anext(pieces, b"")  # while an error can still be told as one
        length = (b"content-length", b"%d" % stored.bytes)
        await send(start(finished.status, content_type, [length, *headers]))
        async for piece in ahead(first, pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
