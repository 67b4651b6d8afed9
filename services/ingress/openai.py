"""The engine's own routes: the answer comes as if the engine had been asked directly."""

from contextlib import nullcontext

from starlette.types import Receive, Scope, Send

from services.ingress import metrics
from services.ingress.answers import Answer, Waiting, respond_result, result_of
from services.ingress.attendance import Attendance, Presence
from services.ingress.auth import TENANT_HEADER, Auth
from services.ingress.http import EVENT_STREAM, Endpoint, header, read_body, respond, retry_advice, start
from services.ingress.streams import DONE, error_frames, frames_of, typed
from shared import request
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.chunks import disassemble
from shared.clock import monotonic_s
from shared.config import Config
from shared.errors import ErrorBody, TaskNotFound
from shared.ids import place_of
from shared.large import Large
from shared.lifecycle import State
from shared.messages import Chunks, Finished, Reset, Response
from shared.payer import Payer
from shared.reading import unknown_name
from shared.request import Request
from shared.routes import ROUTES
from shared.submit import Submitter
from shared.wishes import NO_WISHES, Wishes

OURS = b"x-headrace-"
OUR_ENDS = (State.CANCELLED, State.EXPIRED)
"""No engine has worded them."""
WISHES = {f"x-headrace-{field.replace('_', '-')}": field for field in Wishes.__struct_fields__}
"""Headers that say what a body of the OpenAI API cannot."""


class OpenAI:
    def __init__(
        self,
        bus: Bus,
        config: Config,
        tails: Tails,
        submitter: Submitter,
        large: Large,
        attendance: Attendance,
        auth: Auth,
    ) -> None:
        self._bus, self._config, self._tails, self._submitter, self._large = bus, config, tails, submitter, large
        self._attendance, self._auth = attendance, auth

    def endpoint(self, route: str) -> Endpoint:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            await self._answer(route, scope, receive, send)

        return Endpoint(route, handle)

    async def _answer(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        body = await read_body(scope, receive, self._config.limits.body_bytes)
        asked = self.asked(route, scope, payer, body)
        await self.carry_out(asked, receive, send)

    def asked(
        self,
        route: str,
        scope: Scope,
        payer: Payer,
        body: bytes,
        *,
        attached: bool = True,
        response: Response | None = None,
    ) -> Request:
        """What a body and the headers beside it ask for. Raises: RequestError."""
        key = header(scope, b"idempotency-key")
        return request.from_openai(
            self._config, payer, route, body, task_id=key, attached=attached and not key, wishes=wishes_of(scope),
            content_type=header(scope, b"content-type"), response=response,
        )  # fmt: skip

    async def submit(self, asked: Request) -> str:
        """The id of the task, whose client does not wait. Raises: RequestError."""
        submitted = await self._submitter.submit(asked, self._submitter.new_id(asked))
        if submitted.new:
            metrics.SUBMITTED.labels(place_of(submitted.id).pool, asked.task.lane).inc()
        return submitted.id

    async def carry_out(self, asked: Request, receive: Receive, send: Send) -> None:
        """Make the task, and answer with what it brings."""
        asked_at_s = monotonic_s()
        task = asked.task
        task_id = self._submitter.new_id(asked)
        decided = not task.task_id and not asked.fallbacks
        if not decided:  # the key may be bound to an older task, a full pool gives it to another: it is caught up with
            task_id = (await self._submitter.submit(asked, task_id)).id
        waiting = Waiting(self._bus, self._tails, task_id, chunks=task.streamed, new=task if decided else None)
        with waiting as answer, self._attendance.hold(answer) if task.attached else nullcontext():
            if decided:
                await self._submitter.submit(asked, task_id)
                waiting.submitted()
            metrics.SUBMITTED.labels(asked.pool if decided else place_of(task_id).pool, task.lane).inc()
            with Presence(receive, answer.abandon):
                if task.streamed:
                    await self.stream(task.route, answer, send, asked_at_s)
                else:
                    await self._whole(task.route, answer, send)
        metrics.ANSWERED.labels(task.route).observe(monotonic_s() - asked_at_s)

    async def _whole(self, route: str, answer: Answer, send: Send) -> None:
        finished = await answer.finished
        await self._respond(route, answer, finished, send)

    async def _respond(self, route: str, answer: Answer, finished: Finished, send: Send) -> None:
        headers = [*answer.served.headers(), *retry_advice(finished.error)]
        if finished.state in OUR_ENDS and ROUTES[route].typed_errors:
            result = await result_of(self._bus, self._large, answer.task_id, finished)
            await respond(send, finished.status, typed(result), headers=headers)
        else:
            await respond_result(send, self._bus, self._large, answer.task_id, finished, headers)

    async def stream(self, route: str, answer: Answer, send: Send, asked_at_s: float, *, after: int = -1) -> None:
        """Chunks as they come. A failure before the first one is an ordinary error, as the engine itself answers it.

        `after`: only events of a higher `sequence_number` (Responses API).
        """
        events = await answer.next()
        if not events:
            await self._ended_unstreamed(route, answer, send, after)
            return
        metrics.FIRST_BYTE.labels(route).observe(monotonic_s() - asked_at_s)
        headers = [*answer.served.headers(), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send(start(200, EVENT_STREAM, headers))
        while events:
            for event in events:
                match event:
                    case Chunks():
                        frames = frames_of(route, map(bytes, event.chunks), after=after)
                        await send({"type": "http.response.body", "body": frames, "more_body": True})
                    case Reset():
                        await self._end(send, error_frames(route, BROKEN_OFF))
                        return
            events = await answer.next()
        try:
            finished = answer.finished.result()
        except TaskNotFound as error:  # Redis has lost it
            await self._end(send, error_frames(route, error.body))
            return
        failed = finished.error if finished.state is not State.COMPLETED else None
        await self._end(
            send, error_frames(route, failed) if failed is not None else DONE if ROUTES[route].done else b""
        )

    async def _end(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body})

    async def _ended_unstreamed(self, route: str, answer: Answer, send: Send, after: int) -> None:
        """It failed before its first chunk, or ended so long ago that its chunks are gone; or its answer is none in JSON."""
        finished = answer.finished.result()
        if finished.status >= 400 or finished.content_type:
            await self._respond(route, answer, finished, send)
            return
        result = await result_of(self._bus, self._large, answer.task_id, finished)
        frames = frames_of(route, disassemble(route, result), after=after, whole=True)
        await send(start(200, EVENT_STREAM, answer.served.headers()))
        await self._end(send, frames + (DONE if ROUTES[route].done else b""))


BROKEN_OFF = ErrorBody(
    message="The worker was lost and the answer starts over; read it whole at /v1/tasks/<x-headrace-task>.",
    type="server_error",
    code="stream_reset",
)
"""These streams have no word for starting over; the whole answer can still be had by the task's id."""


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
