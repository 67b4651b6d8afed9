"""The OpenAI API's own routes: the answer comes as if the engine had been asked directly."""

from contextlib import nullcontext

from starlette.types import Receive, Scope, Send

from services.ingress import metrics
from services.ingress.answers import Answer, Waiting, result_of
from services.ingress.attendance import Attendance, Presence
from services.ingress.auth import TENANT_HEADER, Auth
from services.ingress.http import EVENT_STREAM, Endpoint, header, read_body, respond, retry_advice, start
from shared import request
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.chunks import disassemble
from shared.clock import monotonic_s
from shared.config import Config
from shared.errors import ErrorBody
from shared.ids import place_of
from shared.lifecycle import State
from shared.messages import Chunks, Reset, Resumed, encode
from shared.reading import unknown_name
from shared.submit import Submitter
from shared.wishes import NO_WISHES, Wishes

DONE = b"data: [DONE]\n\n"
OURS = b"x-headrace-"
WISHES = {f"x-headrace-{field.replace('_', '-')}": field for field in Wishes.__struct_fields__}
"""Headers that say what a body of the OpenAI API cannot."""


class OpenAI:
    def __init__(
        self, bus: Bus, config: Config, tails: Tails, submitter: Submitter, attendance: Attendance, auth: Auth
    ) -> None:
        self._bus, self._config, self._tails, self._submitter = bus, config, tails, submitter
        self._attendance, self._auth = attendance, auth

    def endpoint(self, route: str) -> Endpoint:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            await self._answer(route, scope, receive, send)

        return Endpoint(route, handle)

    async def _answer(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        asked_at_s = monotonic_s()
        payer = self._auth.payer(scope)
        body = await read_body(scope, receive, self._config.limits.body_bytes)
        key = header(scope, b"idempotency-key")
        asked = request.from_openai(
            self._config, payer, route, body, task_id=key, attached=not key, wishes=wishes_of(scope)
        )
        task_id = self._submitter.new_id(asked)
        decided = not key and not asked.fallbacks
        if not decided:  # the key may be bound to an older task, a full pool gives it to another: it is caught up with
            task_id = (await self._submitter.submit(asked, task_id)).id
        new = asked.task if decided else None
        waiting = Waiting(self._bus, self._tails, task_id, chunks=asked.task.streamed, new=new)
        with waiting as answer, nullcontext() if key else self._attendance.hold(answer):
            if decided:
                await self._submitter.submit(asked, task_id)
            metrics.SUBMITTED.labels(asked.pool if decided else place_of(task_id).pool, asked.task.lane).inc()
            with Presence(receive, answer.abandon):
                if asked.task.streamed:
                    await self._stream(route, answer, send, asked_at_s)
                else:
                    await self._whole(answer, send)
        metrics.ANSWERED.labels(route).observe(monotonic_s() - asked_at_s)

    async def _whole(self, answer: Answer, send: Send) -> None:
        finished = await answer.finished
        result = await result_of(self._bus, answer.task_id, finished)
        await respond(send, finished.status, result, headers=[*answer.served.headers(), *retry_advice(finished.error)])

    async def _stream(self, route: str, answer: Answer, send: Send, asked_at_s: float) -> None:
        """Chunks as they come. A failure before the first one is an ordinary error, as the engine itself answers it."""
        events = await answer.next()
        if not events:
            await self._ended_unstreamed(route, answer, send)
            return
        metrics.FIRST_BYTE.labels(route).observe(monotonic_s() - asked_at_s)
        headers = [*answer.served.headers(), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send(start(200, EVENT_STREAM, headers))
        sent = 0
        while events:
            for event in events:
                match event:
                    case Chunks():
                        sent = event.last
                        frames = b"".join(b"data: %b\n\n" % bytes(chunk) for chunk in event.chunks)
                        await send({"type": "http.response.body", "body": frames, "more_body": True})
                    case Reset() if sent:
                        await self._broken_off(send)
                        return
                    case Reset() | Resumed():
                        pass
            events = await answer.next()
        await self._end(answer, send)

    async def _end(self, answer: Answer, send: Send) -> None:
        finished = answer.finished.result()
        tail = DONE
        if finished.state is not State.COMPLETED and finished.error is not None:
            tail = b"data: %b\n\n%b" % (encode({"error": finished.error}), DONE)
        await send({"type": "http.response.body", "body": tail})

    async def _broken_off(self, send: Send) -> None:
        """An OpenAI stream has no word for starting over; the whole answer can still be had by the task's id."""
        error = ErrorBody(
            message="The worker was lost and the answer starts over; read it whole at /v1/tasks/<x-headrace-task>.",
            type="server_error",
            code="stream_reset",
        )
        await send({"type": "http.response.body", "body": b"data: %b\n\n%b" % (encode({"error": error}), DONE)})

    async def _ended_unstreamed(self, route: str, answer: Answer, send: Send) -> None:
        """It failed before its first chunk, or ended so long ago that its chunks are gone."""
        finished = answer.finished.result()
        result = await result_of(self._bus, answer.task_id, finished)
        if finished.status < 400:
            frames = b"".join(b"data: %b\n\n" % chunk for chunk in disassemble(route, result))
            await send(start(200, EVENT_STREAM, answer.served.headers()))
            await send({"type": "http.response.body", "body": frames + DONE})
        else:
            await respond(
                send, finished.status, result, headers=[*answer.served.headers(), *retry_advice(finished.error)]
            )


def wishes_of(scope: Scope) -> Wishes:
    """Raises: InvalidRequest for a header of ours that is none."""
    said: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name.startswith(OURS):
            word = str(name, "latin-1")
            if word in WISHES:
                said[WISHES[word]] = str(value, "latin-1")
            elif word != TENANT_HEADER:
                raise unknown_name("header", word, [*WISHES, TENANT_HEADER])
    return Wishes(**said) if said else NO_WISHES
