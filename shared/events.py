"""Streams whose events have names: the Responses API's, and the Messages API's of Anthropic. Taken apart, and put together.

response.created, response.in_progress, then per output item: added, its parts, done; at last response.completed (whole)
message_start, then per content block: start, deltas, stop; message_delta (why it stopped, usage), message_stop
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from shared.errors import UNDECODABLE

Event = dict[str, Any]
Cut = Callable[[str], list[str]]
"""A text, in the pieces that are told one by one."""


class BrokenOff(Exception):
    """The events end before the one that ends the answer."""


class Failed(Exception):
    """The answer ended with an error: the engine's object for it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = error


def in_one(text: str) -> list[str]:
    return [text] if text else []


def data_of(event: bytes) -> bytes:
    """Of a server-sent event whose JSON may be indented: every line needs the name of the field. No string in JSON has a line break."""
    return b"data: %b" % event.replace(b"\r", b"").replace(b"\n", b"\ndata: ")


# -- responses

ENDS = {"response.completed", "response.incomplete", "response.failed"}


class _Kind(Struct):
    type: str = ""


_kind = msgspec.json.Decoder(_Kind)


def kind_of(data: bytes) -> str:
    """The name of an event, from its JSON; empty: it has none."""
    try:
        return _kind.decode(data).type
    except UNDECODABLE:
        return ""


def response_of(chunks: Iterable[bytes]) -> dict[str, Any]:
    """The whole response. Raises: BrokenOff, Failed."""
    for data in reversed(list(chunks)):
        if kind_of(data) in ENDS:
            response: dict[str, Any] = msgspec.json.decode(data)["response"]
            if response.get("status") == "failed":
                raise Failed(response.get("error") or {"message": "The response failed."})
            return response
    raise BrokenOff("the events end before the response")


def response_events(response: dict[str, Any], cut: Cut = in_one) -> list[Event]:
    """Those that a stream of this response would have brought, numbered from 0."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    end = "response.completed" if response.get("status") == "completed" else "response.incomplete"
    events: list[Event] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(response.get("output") or ()):
        events += _item_events(index, item, cut)
    events.append({"type": end, "response": response})
    return [
        {"type": event["type"], "sequence_number": number} | {k: v for k, v in event.items() if k != "type"}
        for number, event in enumerate(events)
    ]


def _item_events(index: int, item: dict[str, Any], cut: Cut) -> Iterator[Event]:
    parts = item.get("content") if item.get("type") == "message" else None
    begun = {**item, "status": "in_progress"} if "status" in item else item
    yield {
        "type": "response.output_item.added",
        "output_index": index,
        "item": begun | ({"content": []} if parts else {}),
    }
    for number, part in enumerate(parts or ()):
        at = {"output_index": index, "content_index": number, "item_id": item.get("id", "")}
        text = part.get("text")
        if not isinstance(text, str):
            yield {"type": "response.content_part.added", **at, "part": part}
            yield {"type": "response.content_part.done", **at, "part": part}
            continue
        yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
        for piece in cut(text):
            yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **at, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


# -- messages

_GROWING = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def message_of(chunks: Iterable[bytes]) -> dict[str, Any]:
    """The whole message. Raises: BrokenOff."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    arguments: dict[int, str] = {}
    for data in chunks:
        event = msgspec.json.decode(data)
        match event.get("type"):
            case "message_start":
                message = event["message"]
            case "content_block_start":
                blocks[event["index"]] = event["content_block"]
            case "content_block_delta":
                _grow(blocks[event["index"]], arguments, event)
            case "message_delta":
                message |= {key: value for key, value in event["delta"].items() if value is not None}
                message["usage"] = (message.get("usage") or {}) | (event.get("usage") or {})
            case "message_stop":
                for index, written in arguments.items():
                    blocks[index]["input"] = msgspec.json.decode(written) if written else {}
                return {**message, "content": [blocks[index] for index in sorted(blocks)]}
    raise BrokenOff("the events end before the message")


def _grow(block: dict[str, Any], arguments: dict[int, str], event: Event) -> None:
    delta, index = event["delta"], event["index"]
    kind = delta.get("type")
    if kind == "input_json_delta":
        arguments[index] = arguments.get(index, "") + delta["partial_json"]
    elif kind in _GROWING:
        name = _GROWING[kind]
        block[name] = (block.get(name) or "") + (delta.get(name) or "")


def message_events(message: dict[str, Any], cut: Cut = in_one) -> list[Event]:
    """Those that a stream of this message would have brought."""
    usage = message.get("usage") or {}
    begun = {
        **message,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }
    events: list[Event] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(message.get("content") or ()):
        begin, deltas = _block_events(block, cut)
        events.append({"type": "content_block_start", "index": index, "content_block": begin})
        events += ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        events.append({"type": "content_block_stop", "index": index})
    why = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    return [*events, {"type": "message_delta", "delta": why, "usage": usage}, {"type": "message_stop"}]


def _block_events(block: dict[str, Any], cut: Cut) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block.get("type"):
        case "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in cut(block.get("text") or "")]
            return {**block, "text": ""}, deltas
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": block.get("thinking") or ""}]
            if block.get("signature"):
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {**block, "thinking": "", "signature": ""}, deltas
        case "tool_use":
            written = msgspec.json.encode(block.get("input") or {}).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": written}]
    return block, []
