"""The Responses API: a response is a task, known by its id, and stays for as long as results are kept.

    POST   /v1/responses                      with `background` it is answered at once, and goes on without its client
    GET    /v1/responses/{id}                 `stream=true&starting_after=N` brings the events behind number N, from the log
    GET    /v1/responses/{id}/input_items     what it was asked, with all that it follows
    POST   /v1/responses/{id}/cancel          of one in the background
    DELETE /v1/responses/{id}                 what was asked and answered is removed

The engine keeps nothing: `background` and `previous_response_id` never reach it. Of the response that one follows, the input and
the output are put before the new input, so any worker can run it, and it is read again from nowhere.
"""

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from services.ingress.answers import Waiting
from services.ingress.attendance import Presence
from services.ingress.auth import Auth, may_see
from services.ingress.http import Endpoint, query, read_body, respond
from services.ingress.input_items import page_of
from services.ingress.openai import OpenAI
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.clock import monotonic_s
from shared.config import Config
from shared.discard import discard
from shared.errors import UNDECODABLE, InvalidRequest, ObjectMissing, ResponseNotFound
from shared.ids import place_of, response_id, task_of_response
from shared.keys import keys_of
from shared.large import Large
from shared.lifecycle import State
from shared.messages import Response, encode
from shared.payer import Payer
from shared.reading import read
from shared.record import FIELDS, Record, parse_record
from shared.routes import RESPONSES

PATH = f"{RESPONSES}/{{id}}"
CANCEL_S = 10.0
"""How long a cancel waits for the worker's word: longer than a step of any engine, shorter than clients wait."""
WORDS = {
    State.PENDING: "queued",
    State.PROCESSING: "in_progress",
    State.COMPLETED: "completed",
    State.CANCELLED: "cancelled",
    State.FAILED: "failed",
    State.EXPIRED: "failed",
}


class Asked(Struct):
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None


class Kept(Struct, frozen=True):
    """A response, as its task's hash holds it; what is too large for that is fetched where it is wanted."""

    task_id: str
    record: Record
    body: bytes
    result: bytes


class _Input(Struct):
    input: str | list[Raw] = []


class _Output(Struct):
    output: list[Raw] = []


_asked = msgspec.json.Decoder(Asked)
_object = msgspec.json.Decoder(dict[str, Raw])
_any = msgspec.json.Decoder(dict[str, Any])
_input = msgspec.json.Decoder(_Input)
_output = msgspec.json.Decoder(_Output)


class Responses:
    def __init__(
        self, bus: Bus, config: Config, tails: Tails, openai: OpenAI, large: Large, canceller: Canceller, auth: Auth
    ) -> None:
        self._bus, self._config, self._tails, self._openai, self._large = bus, config, tails, openai, large
        self._canceller, self._auth = canceller, auth
        self.create = Endpoint(RESPONSES, self._create)
        self.show = Endpoint(PATH, self._show)
        self.delete = Endpoint(PATH, self._delete)
        self.cancel = Endpoint(f"{PATH}/cancel", self._cancel)
        self.input_items = Endpoint(f"{PATH}/input_items", self._input_items)

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        body = await read_body(scope, receive, self._config.limits.body_bytes)
        asked: Asked = read(_asked, body, Asked)
        background, kept = bool(asked.background), asked.store is not False
        if background and not kept:
            raise InvalidRequest(
                "`background` is true and `store` is false: nobody could ask for the response. Leave one of them out.",
                param="background",
            )
        former = task_of_response(asked.previous_response_id or "")
        said = None
        if background or former or not kept:
            previous = asked.previous_response_id if former else None
            said = Response(background=background, previous=previous or "", kept=kept)
            body = await self._for_engine(payer, body, former, background=background)
        wanted = self._openai.asked(RESPONSES, scope, payer, body, attached=not background, response=said)
        if not background or wanted.task.streamed:
            await self._openai.carry_out(wanted, receive, send)
            return
        task_id = await self._openai.submit(wanted)
        made = await self._find(response_id(task_id), payer)
        await self._respond(send, replace(made, body=wanted.body))

    async def _for_engine(self, payer: Payer, body: bytes, former: str, *, background: bool) -> bytes:
        """Without what Headrace sees to. Raises: InvalidRequest, ResponseNotFound."""
        fields = read(_object, body, None)
        if background:
            del fields["background"]
        if former:
            fields["input"] = Raw(encode([*await self._said_before(payer, former), *items_of(body)]))
            del fields["previous_response_id"]
        return encode(fields)

    async def _said_before(self, payer: Payer, former: str) -> list[Raw]:
        """Raises: InvalidRequest, ResponseNotFound."""
        kept = await self._find(response_id(former), payer, param="previous_response_id")
        if kept.record.state is not State.COMPLETED:
            word = WORDS[kept.record.state]
            message = f"The response {response_id(former)} is {word}; only a completed one can be followed."
            raise InvalidRequest(message, param="previous_response_id")
        try:
            kept = await self._with_result(await self._with_body(kept))
            return [*items_of(kept.body), *_output.decode(kept.result).output]
        except (*UNDECODABLE, InvalidRequest):
            message = f"The input or the output of {response_id(former)} is no list of items, so it cannot be followed."
            raise InvalidRequest(message, param="previous_response_id") from None

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        kept = await self._find(scope["path_params"]["id"], payer)
        asked = query(scope, {"stream": "false", "starting_after": ""})
        if asked["stream"] not in ("true", "false"):
            raise InvalidRequest(f"`stream` is {asked['stream'][:40]!r}; allowed: true, false", param="stream")
        if asked["stream"] == "true":
            await self._stream(kept, receive, send, after=_number(asked["starting_after"]))
            return
        if asked["starting_after"]:
            raise InvalidRequest("`starting_after` needs `stream=true`.", param="starting_after")
        await self._respond(send, kept)

    async def _stream(self, kept: Kept, receive: Receive, send: Send, *, after: int) -> None:
        with (
            Waiting(self._bus, self._tails, kept.task_id, chunks=True) as answer,
            Presence(receive, answer.abandon),
        ):
            await self._openai.stream(RESPONSES, answer, send, monotonic_s(), after=after)

    async def _input_items(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        kept = await self._with_body(await self._find(scope["path_params"]["id"], payer))
        await respond(send, 200, encode(page_of(items_of(kept.body), kept.task_id, scope)))

    async def _cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        id = scope["path_params"]["id"]
        kept = await self._find(id, payer)
        if not _said(kept).background:
            raise InvalidRequest(
                f"The response {id} is not in the background: close its connection instead.", param="id"
            )
        if not kept.record.state.terminal:
            with Waiting(self._bus, self._tails, kept.task_id) as answer:
                await self._canceller.cancel(kept.task_id)
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(answer.finished), CANCEL_S)
            kept = await self._find(id, payer)
        await self._respond(send, kept)

    async def _delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        id = scope["path_params"]["id"]
        kept = await self._find(id, payer)
        verdict = await discard(self._bus, kept.task_id)
        if verdict == "unknown":
            raise ResponseNotFound(id)
        if verdict != "discarded":
            raise InvalidRequest(f"The response {id} is {WORDS[State(verdict)]}: cancel it, or let it end.", param="id")
        await self._remove_objects(kept)
        await respond(send, 200, encode({"id": id, "object": "response.deleted", "deleted": True}))

    async def _respond(self, send: Send, kept: Kept) -> None:
        """The response as far as there is one. Raises: as _with_body."""
        if kept.record.state is State.COMPLETED:
            kept = await self._with_result(kept)
        else:
            with suppress(ObjectMissing):  # what has become of it can be told all the same
                kept = await self._with_body(kept)
        await respond(send, 200, seen(kept), headers=[(b"x-headrace-task", kept.task_id.encode())])

    async def _with_body(self, kept: Kept) -> Kept:
        """Raises: NoObjectStore, ObjectMissing, StoreUnavailable."""
        stored = kept.record.task.stored
        if kept.body or stored is None:
            return kept
        return replace(kept, body=await self._large.get(kept.task_id, stored))

    async def _with_result(self, kept: Kept) -> Kept:
        """Raises: as _with_body."""
        stored = kept.record.finished.stored if kept.record.finished is not None else None
        return kept if stored is None else replace(kept, result=await self._large.get(kept.task_id, stored))

    async def _remove_objects(self, kept: Kept) -> None:
        """Of what was deleted. Should they not go, the sweep removes them with the rest of the task."""
        for told in (kept.record.task, kept.record.finished):
            if told is not None and told.stored is not None:
                await self._large.drop(kept.task_id, told.stored)

    async def _find(self, id: str, payer: Payer, *, param: str = "response_id") -> Kept:
        """Raises: ResponseNotFound: also for what is another tenant's, or was not to be kept."""
        task_id = task_of_response(id)
        if not task_id or self._tails.of(place_of(task_id)) is None:
            raise ResponseNotFound(id, param=param)
        keys, _ = keys_of(task_id)
        asked_for = (*FIELDS, "body", "result", "discarded")
        *values, body, result, discarded = await self._bus.read("HMGET", keys.task(task_id), *asked_for)
        record = None if discarded else parse_record(values)
        if record is None or record.task.route != RESPONSES or not may_see(payer, record.task.tenant):
            raise ResponseNotFound(id, param=param)
        kept = Kept(task_id, record, body or b"", result or b"")
        if not _said(kept).kept:
            raise ResponseNotFound(id, param=param)
        return kept


def _said(kept: Kept) -> Response:
    return kept.record.task.response or Response()


def items_of(body: bytes) -> list[Raw]:
    """The input of a request as items. One that is no input at all is the engine's to refuse."""
    try:
        given = _input.decode(body).input
    except UNDECODABLE:
        raise InvalidRequest("`input` is neither a string in UTF-8 nor a list of items.", param="input") from None
    return [Raw(encode({"role": "user", "content": given}))] if isinstance(given, str) else given


def seen(kept: Kept) -> bytes:
    """The response as the engine made it; before its end, and of one that failed, as far as it is known."""
    record = kept.record
    if record.state is State.COMPLETED:
        return kept.result
    fields, task = _fields_of(kept.body), record.task
    said = _said(kept)
    error = record.finished.error if record.finished is not None and record.state is not State.CANCELLED else None
    return encode(
        {
            "id": response_id(kept.task_id),
            "object": "response",
            "created_at": record.created_at_ms // 1000,
            "status": WORDS[record.state],
            "background": said.background,
            "error": {"code": str(error.code or error.type), "message": error.message} if error is not None else None,
            "incomplete_details": None,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "metadata": fields.get("metadata") or {},
            "model": task.model,
            "output": [],
            "parallel_tool_calls": fields.get("parallel_tool_calls", True),
            "previous_response_id": said.previous or None,
            "temperature": fields.get("temperature"),
            "tool_choice": fields.get("tool_choice", "auto"),
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p"),
            "usage": None,
        }
    )


def _fields_of(body: bytes) -> dict[str, Any]:
    """None of a body that cannot be read: whoever took it in passed over the strings, and refusing it is the engine's."""
    try:
        return _any.decode(body)
    except UNDECODABLE:
        return {}


def _number(said: str) -> int:
    """Raises: InvalidRequest."""
    if not said:
        return -1
    if not (said.isascii() and said.isdecimal() and len(said) < 10):
        raise InvalidRequest(f"`starting_after` is {said[:40]!r}; expected a sequence_number", param="starting_after")
    return int(said)
