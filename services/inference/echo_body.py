"""What the echo engine reads of a request, and how it cuts texts into words, each of which is a token."""

import re
import zlib
from typing import Any

from msgspec import Struct

_WORD = re.compile(r"\s*\S+|\s+")


class Part(Struct):
    text: str = ""


class Message(Struct):
    role: str = ""
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class Body(Struct):
    """Of all routes: each reads its own fields."""

    model: str | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    input: str | list[Message] | None = None
    instructions: str | None = None
    system: str | list[Part] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    n: int | None = 1
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    stop: Any = None
    stop_sequences: Any = None
    tools: Any = None
    response_format: Any = None
    text: Any = None
    thinking: Any = None
    echo: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    metadata: Any = None

    @property
    def limit(self) -> int | None:
        for most in (self.max_completion_tokens, self.max_output_tokens):
            if most is not None:
                return most
        return self.max_tokens


REFUSED = (
    *("logprobs", "top_logprobs", "stop", "stop_sequences", "tools", "response_format", "text", "thinking", "echo"),
    *("background", "previous_response_id"),
)
"""Fields that would have to be ignored."""
PLAIN: tuple[Any, ...] = ({"type": "text"}, {"format": {"type": "text"}}, {"type": "disabled"})
"""Values of theirs that ask for nothing else than what comes anyway."""


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def token(word: str) -> int:
    return zlib.crc32(word.encode()) & 0xFFFF


def text_of(content: str | list[Part] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def last_said(messages: list[Message]) -> str:
    """By the user; if nobody spoke as one, by whoever spoke last."""
    texts = [text_of(message.content) for message in messages if message.role == "user"]
    return texts[-1] if texts else text_of(messages[-1].content)
