"""The SSE twin of a task subscription, for curl and for proxies that do not let WebSockets through.

    GET /v1/tasks/<id>/events?after=<cursor>&form=text|chunks        or the header Last-Event-ID

Each message is an event: `event:` its kind, `id:` its cursor, `data:` the message itself.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.notifier.frames import FORMS, Done, Err, Fail, OfTask, Outbound, Sub
from services.notifier.line import Line
from services.notifier.outgoing import Outgoing, TooSlow
from services.notifier.subscriptions import follow_task
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.errors import BusError, ErrorBody, InvalidRequest, InvalidTaskId, RequestError, TaskNotFound
from shared.events import data_of
from shared.ids import place_of

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
PARAMETERS = ("after", "form")


class Events:
    def __init__(self, bus: Bus, tails: Tails, line: Line, heartbeat_s: float) -> None:
        self._bus, self._tails, self._line, self._heartbeat_s = bus, tails, line, heartbeat_s
        self.stopping = asyncio.Event()

    async def endpoint(self, request: Request) -> Response:
        try:
            sub = self._asked(request)
            await self._check_exists(sub.task)
            outgoing = Outgoing()
            feed = follow_task(self._bus, self._tails, self._line, sub, outgoing.push)
        except RequestError as error:
            return _refuse(error.status, error.body)
        except BusError as error:
            return _refuse(503, ErrorBody(message=f"Redis is out of reach: {error}", type="server_error"))

        async def stream() -> AsyncIterator[bytes]:
            feed.open()
            try:
                async for message in self._messages(outgoing):
                    yield message
            finally:
                feed.close()

        return StreamingResponse(stream(), media_type="text/event-stream", headers=HEADERS)

    def _asked(self, request: Request) -> Sub:
        for name in request.query_params:
            if name not in PARAMETERS:
                raise InvalidRequest(f"The parameter `{name}` is unknown; known: {', '.join(PARAMETERS)}.", param=name)
        form = request.query_params.get("form", "text")
        if form not in FORMS:
            raise InvalidRequest(f"`form` is {form[:40]!r}; allowed: {', '.join(FORMS)}", param="form")
        after = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        return Sub(id=0, task=request.path_params["id"], after=after, form=form)

    async def _check_exists(self, task_id: str) -> None:
        tail = self._tails.of(place_of(task_id))
        if tail is None:
            raise InvalidTaskId(task_id)
        if await self._bus.bulk.call("HGET", tail.keys.task(task_id), "state") is None:
            raise TaskNotFound(task_id)

    async def _messages(self, outgoing: Outgoing) -> AsyncIterator[bytes]:
        """Until the end of the task, of the replica, or of the client's patience."""
        yield b"retry: 1000\n\n"
        stopping, taking = asyncio.create_task(self.stopping.wait()), asyncio.create_task(outgoing.take())
        either: list[asyncio.Task[Any]] = [taking, stopping]
        try:
            while not self.stopping.is_set():
                await asyncio.wait(either, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    yield b": ping\n\n"
                    continue
                messages = taking.result()
                for message in messages:
                    yield encode(message)
                if isinstance(messages[-1], Done | Fail | Err):
                    return
                either[0] = taking = asyncio.create_task(outgoing.take())
        except TooSlow:
            return
        finally:  # whoever leaves in the middle leaves nothing that waits for ever
            for task in either:
                task.cancel()


def encode(message: Outbound) -> bytes:
    kind = str(type(message).__struct_config__.tag).encode()
    cursor = b"id: %b\n" % message.c.encode() if isinstance(message, OfTask) and message.c else b""
    return b"event: %b\n%b%b\n\n" % (kind, cursor, data_of(msgspec.json.encode(message)))


def _refuse(status: int, body: ErrorBody) -> Response:
    return Response(msgspec.json.encode({"error": body}), status_code=status, media_type="application/json")
