"""Reading the engine's chunks: what text they add, and what whole answer a stream adds up to.

Shapes are those of the routes: `chat.completion.chunk` with `choices[].delta`, `text_completion` with `choices[].text`, and the
events of responses and messages (shared/events.py).
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.errors import UNDECODABLE
from shared.events import Failed, message_events, message_of, response_events, response_of
from shared.messages import NULL
from shared.routes import CHAT, INVOCATIONS, ROUTES, Shape


class Delta(Struct):
    content: str | None = None
    text: str | None = None
    """Of a message's content block."""


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    text: str | None = None


class Chunk(Struct):
    choices: list[Choice] = []
    type: str = ""
    delta: str | Delta | None = None
    """Of an event of a response, or of a message."""


class Part(Struct):
    text: str | None = None


class Message(Struct):
    content: str | None = None


class Item(Struct):
    """Of a response's output."""

    type: str = ""
    content: list[Part] | None = None


class WholeChoice(Struct):
    index: int = 0
    message: Message | None = None
    text: str | None = None


class Whole(Struct):
    choices: list[WholeChoice] = []
    output: list[Item] = []
    content: list[Part] | None = None
    """Of a message."""
    text: Any = None
    """Of a transcription; a response has settings there."""


_chunk = msgspec.json.Decoder(Chunk)
_whole = msgspec.json.Decoder(Whole)


_TEXTS = ("response.output_text.delta", "content_block_delta", "transcript.text.delta")


def deltas(data: bytes) -> list[tuple[int, str]]:
    """The text that one chunk adds, per choice: (index, text). Empty for chunks of roles, tools, usage."""
    try:
        chunk = _chunk.decode(data)
    except UNDECODABLE:
        return []
    choices = chunk.choices
    if chunk.type in _TEXTS:
        said = chunk.delta.text if isinstance(chunk.delta, Delta) else chunk.delta
        return [(0, said)] if said else []
    added = []
    for choice in choices:
        text = choice.delta.content if choice.delta is not None else choice.text
        if text:
            added.append((choice.index, text))
    return added


def texts(result: bytes) -> list[tuple[int, str]]:
    """The texts of a whole answer, per choice: (index, text)."""
    try:
        whole = _whole.decode(result)
    except UNDECODABLE:
        return []
    choices = whole.choices
    if not choices:
        parts = [part for item in whole.output if item.type == "message" for part in item.content or ()]
        joined = "".join(part.text or "" for part in parts or whole.content or ())
        joined = joined or (whole.text if isinstance(whole.text, str) else "")
        return [(0, joined)] if joined else []
    said = ((c.index, c.message.content if c.message is not None else c.text) for c in choices)
    return [(index, text) for index, text in said if text]


def first_text(result: bytes) -> str | None:
    for index, text in texts(result):
        if index == 0:
            return text
    return None


class Assembled(Struct, frozen=True):
    result: bytes
    """An error in its JSON, should the events have ended with one."""
    finish_reason: str | None = None
    usage: Raw = NULL
    failed: bool = False


class EndedChoice(Struct):
    finish_reason: str | None = None


class Ending(Struct):
    """What whole answers tell of their end, whatever their shape."""

    choices: list[EndedChoice] = []
    usage: Raw = NULL
    stop_reason: Any = None
    """Of a message."""
    object: Any = None
    status: Any = None
    incomplete_details: Any = None
    """Of a response, as is its status."""

    @property
    def finish_reason(self) -> str | None:
        if self.choices:
            return self.choices[0].finish_reason
        said = self.stop_reason
        if self.object == "response":
            details = self.incomplete_details
            said = (details.get("reason") if isinstance(details, dict) else None) or self.status
        return said if isinstance(said, str) else None


_ending = msgspec.json.Decoder(Ending)


def ending_of(result: bytes) -> Ending:
    """Of an answer whose shape is another one: nothing."""
    try:
        return _ending.decode(result)
    except UNDECODABLE:
        return Ending()


def assemble(route: str, chunks: Iterable[bytes]) -> Assembled:
    """The answer that the same request would have got unstreamed. Raises: BrokenOff, if the events end before their end."""
    shape = ROUTES[route].shape if route in ROUTES else Shape.CHOICES
    if shape is Shape.CHOICES:
        return _join_choices(route, chunks)
    try:
        match shape:
            case Shape.RESPONSE:
                whole = response_of(chunks)
            case Shape.MESSAGE:
                whole = message_of(chunks)
            case Shape.LAST:
                *_, whole = map(msgspec.json.decode, chunks)
    except Failed as failure:
        return Assembled(msgspec.json.encode({"error": failure.error}), failed=True)
    result = msgspec.json.encode(whole)
    ending = ending_of(result)
    return Assembled(result, ending.finish_reason, ending.usage)


def _join_choices(route: str, chunks: Iterable[bytes]) -> Assembled:
    """Texts, tool calls and logprobs joined, choice by choice."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for data in chunks:
        chunk = msgspec.json.decode(data)
        for part in chunk.pop("choices", None) or []:
            _add(choices.setdefault(part.get("index", 0), {}), part)
        head |= {key: value for key, value in chunk.items() if value is not None or key not in head}
    whole = [choices[index] for index in sorted(choices)]
    if route == CHAT or (route == INVOCATIONS and any("delta" in choice for choice in whole)):
        head["object"] = "chat.completion"
        for choice in whole:
            choice["message"] = message = choice.pop("delta", {})
            for call in message.get("tool_calls") or ():
                call.pop("index", None)  # the stream's own
    usage = head.get("usage")
    return Assembled(
        msgspec.json.encode({**head, "choices": whole}),
        whole[0].get("finish_reason") if whole else None,
        Raw(msgspec.json.encode(usage)) if usage else NULL,
    )


def disassemble(route: str, result: bytes) -> list[bytes]:
    """A whole answer as the few chunks that add up to it: for who asked for a stream whose pieces are gone."""
    head: dict[str, Any] = msgspec.json.decode(result)
    match ROUTES[route].shape if route in ROUTES else Shape.CHOICES:
        case Shape.RESPONSE:
            return [msgspec.json.encode(event) for event in response_events(head)]
        case Shape.MESSAGE:
            return [msgspec.json.encode(event) for event in message_events(head)]
        case Shape.LAST:
            return [result]
    choices, usage = head.pop("choices", []), head.pop("usage", None)
    if route == CHAT or (route == INVOCATIONS and any("message" in choice for choice in choices)):
        head["object"] = "chat.completion.chunk"
        for choice in choices:
            choice["delta"] = message = choice.pop("message", {})
            for index, call in enumerate(message.get("tool_calls") or ()):
                call["index"] = index
    chunks = [msgspec.json.encode({**head, "choices": choices})]
    if usage is not None:
        chunks.append(msgspec.json.encode({**head, "choices": [], "usage": usage}))
    return chunks


_REPLACED = {"index", "role", "type", "id", "finish_reason", "stop_reason"}
"""Fields that are said once or anew; other strings are pieces to be joined."""


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        before = whole.get(key)
        if before is None or key in _REPLACED:
            whole[key] = value if value is not None else before
        elif isinstance(value, str) and isinstance(before, str):
            whole[key] = before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            _add(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            _extend(before, value)
        elif value is not None:
            whole[key] = value


def _extend(whole: list[Any], parts: list[Any]) -> None:
    """Tool calls carry an index and are joined by it; tokens and logprobs follow one another."""
    for part in parts:
        index = part.get("index") if isinstance(part, dict) else None
        known = next((item for item in whole if isinstance(item, dict) and item.get("index") == index), None)
        if index is None or known is None:
            whole.append(part)
        else:
            _add(known, part)
