"""How items end, and the lines that say so, in the shape of the OpenAI API's output and error files."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from services.scheduler.batches.items import Item
from shared.batches import End
from shared.errors import UNDECODABLE
from shared.lifecycle import State
from shared.messages import elsewhere


class Ending(Struct, frozen=True):
    """An item that has ended, and is in no segment yet."""

    number: int
    end: End
    line: bytes
    """With its line feed. Only that of a completed item belongs to the output, the others to the errors."""
    task_id: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    kept: bool = False
    """Its task is kept for as long as any: others may be given its answer, or its line only says where that is; or it failed, and its
    body is in the object store (object_sweep.py)."""


class Usage(Struct):
    """As either family of routes tells it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Body(Struct):
    usage: Usage | None = None
    url: Any = None
    """Where the answer is, if that is not JSON (messages.Elsewhere)."""


ENDS = {
    State.COMPLETED: End.COMPLETED,
    State.FAILED: End.FAILED,
    State.CANCELLED: End.CANCELLED,
    State.EXPIRED: End.EXPIRED,
}
STOPPED = {
    End.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was done."),
    End.EXPIRED: ("batch_expired", "This request could not be done before the completion window of its batch ended."),
}
"""Codes and messages of items that were not done."""

_body = msgspec.json.Decoder(Body)
_NO_BODY, _NO_USAGE = Body(), Usage()


def answered(batch_id: str, number: int, item: Item, state: State, status: int, body: bytes) -> Ending:
    """The engine has answered, well or not. A task that was cancelled or has expired has an error instead of an answer."""
    end = ENDS[state]
    if end in STOPPED:
        return stopped(batch_id, number, item, end)
    said = _said(body)
    usage = said.usage or _NO_USAGE
    response = {"status_code": status, "request_id": item.task_id, "body": Raw(one_line(body))}
    return Ending(
        number,
        end,
        _line(batch_id, number, item, response, None),
        item.task_id,
        usage.prompt_tokens or usage.input_tokens or 0,
        usage.completion_tokens or usage.output_tokens or 0,
        item.cached or said.url == elsewhere(item.task_id, 0, "").url,
    )


def stopped(batch_id: str, number: int, item: Item, end: End) -> Ending:
    code, message = STOPPED[end]
    return Ending(number, end, _line(batch_id, number, item, None, {"code": code, "message": message}), item.task_id)


def faulty(batch_id: str, number: int, item: Item) -> Ending:
    """It never became a task."""
    if item.fault is None:
        return stopped(batch_id, number, item, item.end or End.FAILED)
    return Ending(number, End.FAILED, _line(batch_id, number, item, None, msgspec.to_builtins(item.fault)))


def lost(batch_id: str, number: int, item: Item) -> Ending:
    """Its task has completed, and the answer is gone."""
    message = "The request was done, but its answer is in Redis or in the object store no more."
    error = {"code": "result_lost", "message": message, "line": item.line}
    return Ending(number, End.FAILED, _line(batch_id, number, item, None, error), item.task_id)


def one_line(body: bytes) -> bytes:
    """An engine may indent its answers; a line of the output is one line. What cannot be read as JSON becomes a string: one
    answer must not hold up its batch for ever."""
    if b"\n" not in body and b"\r" not in body:
        return body
    try:
        return msgspec.json.format(body, indent=-1)
    except UNDECODABLE:
        return msgspec.json.encode(body.decode(errors="replace"))


def _said(body: bytes) -> Body:
    """Of an answer in another shape: nothing."""
    try:
        return _body.decode(body)
    except UNDECODABLE:
        return _NO_BODY


def _line(batch_id: str, number: int, item: Item, response: Any, error: Any) -> bytes:
    told = {
        "id": f"batch_req_{batch_id.removeprefix('batch_')}_{number}",
        "custom_id": item.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(told) + b"\n"
