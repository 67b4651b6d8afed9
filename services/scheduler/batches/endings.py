"""How items end, and the lines that say so, in the shape of the OpenAI API's output and error files."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from services.scheduler.batches.items import Item
from shared.batches import End
from shared.lifecycle import State


class Ending(Struct, frozen=True):
    """An item that has ended, and is in no segment yet."""

    number: int
    end: End
    line: bytes
    """With its line feed. Only that of a completed item belongs to the output, the others to the errors."""
    task_id: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cached: bool = False
    """Item.cached."""


class Usage(Struct):
    """As either family of routes tells it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Body(Struct):
    usage: Usage | None = None


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
_NO_USAGE = Usage()


def answered(batch_id: str, number: int, item: Item, state: State, status: int, body: bytes) -> Ending:
    """The engine has answered, well or not. A task that was cancelled or has expired has an error instead of an answer."""
    end = ENDS[state]
    if end in STOPPED:
        return stopped(batch_id, number, item, end)
    usage = usage_of(body)
    response = {"status_code": status, "request_id": item.task_id, "body": Raw(one_line(body))}
    return Ending(
        number,
        end,
        _line(batch_id, number, item, response, None),
        item.task_id,
        usage.prompt_tokens or usage.input_tokens or 0,
        usage.completion_tokens or usage.output_tokens or 0,
        item.cached,
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
    message = "The request was done, but its result is not kept any more (limits.results_kept_s)."
    error = {"code": "result_lost", "message": message, "line": item.line}
    return Ending(number, End.FAILED, _line(batch_id, number, item, None, error), item.task_id)


def usage_of(body: bytes) -> Usage:
    """Of an answer without one: nothing."""
    try:
        return _body.decode(body).usage or _NO_USAGE
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _NO_USAGE


def one_line(body: bytes) -> bytes:
    """An engine may indent its answers; a line of the output is one line."""
    if b"\n" not in body and b"\r" not in body:
        return body
    return msgspec.json.format(body, indent=-1)


def _line(batch_id: str, number: int, item: Item, response: Any, error: Any) -> bytes:
    told = {
        "id": f"batch_req_{batch_id.removeprefix('batch_')}_{number}",
        "custom_id": item.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(told) + b"\n"
