"""What two servers may say differently of one call: what they draw, when it was, how a stream is cut, and the last digits."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest
from msgspec import Struct

DRAWN = {"id", "created", "created_at", "completed_at", "system_fingerprint", "item_id", "call_id", "request_id"}
"""Ids and times. Masked, not left out: both have them, of the same type."""
TEXT = {"content", "text", "reasoning", "arguments", "partial_json", "thinking", "delta", "refusal"}
"""Strings that a stream brings in pieces."""
WIDTH = 576
"""Numbers of a vector of EMBEDDER."""
CLOSE = 1e-3
"""Of log probabilities and numbers of a vector: engines may put other tokens into one step."""


class Told(Struct):
    """An answer, as far as two servers must agree on it."""

    status: int
    kind: str
    """The content type without its parameters."""
    body: Any


def told(response: httpx.Response) -> Told:
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind == "text/event-stream":
        return Told(response.status_code, kind, joined(frames(response.text)))
    if kind == "application/json":
        return Told(response.status_code, kind, masked(response.json()))
    if kind == "application/octet-stream":
        return Told(response.status_code, kind, _numbers(response.content))
    return Told(response.status_code, kind, response.text)


def close_to(value: Any) -> Any:
    """The same, with numbers that equal those nearby."""
    if isinstance(value, dict):
        return {name: close_to(item) for name, item in value.items()}
    if isinstance(value, list):
        return [close_to(item) for item in value]
    return pytest.approx(value, abs=CLOSE) if isinstance(value, float) else value


def masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: type(item).__name__ if name in DRAWN else _plain(name, item) for name, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value


def _plain(name: str, value: Any) -> Any:
    """A packed vector as its numbers."""
    if name == "embedding" and isinstance(value, str):
        return _numbers(base64.b64decode(value))
    return masked(value)


def _numbers(packed: bytes) -> Any:
    return numpy.frombuffer(packed, "float32" if len(packed) == 4 * WIDTH else "float16").tolist()


# -- streams


def frames(text: str) -> Iterator[tuple[str, Any]]:
    """(name, data) of each event; a name is empty where events have none."""
    for frame in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.split("\n"))
        data = lines.pop("data")
        yield lines.pop("event", ""), data if data == "[DONE]" else json.loads(data)
        assert not lines


def joined(events: Iterator[tuple[str, Any]]) -> Any:
    """What a stream adds up to: the same text may come in other pieces."""
    parts: list[list[Any]] = []
    number = 0
    for name, data in events:
        if isinstance(data, dict) and "sequence_number" in data:
            assert data.pop("sequence_number") == number
            number += 1
        last, whole = parts[-1] if parts else ("", None)
        piece = masked(data)
        if whole is not None and name == last and _goes_on(piece) and _goes_on(whole):
            parts[-1][1] = _merged(whole, piece)
        else:
            parts.append([name, piece])
    return parts


def _goes_on(data: Any) -> bool:
    """A piece of what others bring the rest of."""
    return isinstance(data, dict) and ("delta" in data or bool(data.get("choices")))


def _merged(whole: Any, piece: Any, name: str = "") -> Any:
    if isinstance(whole, dict) and isinstance(piece, dict):
        return {key: _merged(whole.get(key), piece.get(key), key) for key in whole | piece}
    if isinstance(whole, list) and isinstance(piece, list):
        return _lists(whole, piece)
    if name in TEXT and isinstance(whole, str) and isinstance(piece, str):
        return whole + piece
    return whole if piece is None else piece


def _lists(whole: list[Any], piece: list[Any]) -> list[Any]:
    """By `index` where the items have one, else one behind the other."""
    if not all(isinstance(item, dict) and "index" in item for item in whole + piece):
        return whole + piece
    items = {item["index"]: item for item in whole}
    for item in piece:
        items[item["index"]] = _merged(items.get(item["index"]), item) if item["index"] in items else item
    return [items[index] for index in sorted(items)]
