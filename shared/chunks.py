"""Reading the engine's chunks: what text they add, and what whole answer a stream adds up to.

Shapes are those of the OpenAI API: `chat.completion.chunk` with `choices[].delta`, `text_completion` with `choices[].text`.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.messages import NULL
from shared.request import CHAT


class Delta(Struct):
    content: str | None = None


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    text: str | None = None


class Chunk(Struct):
    choices: list[Choice] = []


class Message(Struct):
    content: str | None = None


class WholeChoice(Struct):
    index: int = 0
    message: Message | None = None
    text: str | None = None


class Whole(Struct):
    choices: list[WholeChoice] = []


_chunk = msgspec.json.Decoder(Chunk)
_whole = msgspec.json.Decoder(Whole)


def deltas(data: bytes) -> list[tuple[int, str]]:
    """The text that one chunk adds, per choice: (index, text). Empty for chunks of roles, tools, usage."""
    try:
        choices = _chunk.decode(data).choices
    except msgspec.DecodeError:
        return []
    added = []
    for choice in choices:
        text = choice.delta.content if choice.delta is not None else choice.text
        if text:
            added.append((choice.index, text))
    return added


def texts(result: bytes) -> list[tuple[int, str]]:
    """The texts of a whole answer, per choice: (index, text)."""
    try:
        choices = _whole.decode(result).choices
    except msgspec.DecodeError:
        return []
    said = ((c.index, c.message.content if c.message is not None else c.text) for c in choices)
    return [(index, text) for index, text in said if text]


def first_text(result: bytes) -> str | None:
    for index, text in texts(result):
        if index == 0:
            return text
    return None


class Assembled(Struct, frozen=True):
    result: bytes
    finish_reason: str | None
    usage: Raw


def assemble(route: str, chunks: Iterable[bytes]) -> Assembled:
    """The answer that the same request would have got unstreamed: texts, tool calls and logprobs joined, choice by choice."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for data in chunks:
        chunk = msgspec.json.decode(data)
        for part in chunk.pop("choices", None) or []:
            _add(choices.setdefault(part.get("index", 0), {}), part)
        head |= {key: value for key, value in chunk.items() if value is not None or key not in head}
    whole = [choices[index] for index in sorted(choices)]
    if route == CHAT:
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
    choices, usage = head.pop("choices", []), head.pop("usage", None)
    if route == CHAT:
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
