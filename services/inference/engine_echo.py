"""A deterministic engine: it answers with the words it was asked. It ships, for tests and for load without a GPU."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from services.inference.engine import Answer, Call, Capacity, Chunk
from shared.clock import now_ms
from shared.request import CHAT

SLOTS = 256
"""Enough to hide a round trip to Redis at 5,000 tasks/s."""
_WORD = re.compile(r"\s*\S+|\s+")


class Part(Struct):
    text: str = ""


class Message(Struct):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class Body(Struct):
    model: str
    messages: list[Message] = []
    prompt: str | list[str] = ""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    n: int | None = 1


_bodies = msgspec.json.Decoder(Body)
_encode = msgspec.json.Encoder().encode


class EchoEngine:
    name = "echo"

    def __init__(self, *, model: str, tokens_per_s: float, first_token_ms: int, max_model_len: int, slots: int) -> None:
        self._model, self._max_model_len = model, max_model_len
        self._pause_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._first_s = first_token_ms / 1000
        self._slots, self._running = slots or SLOTS, 0

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def health(self) -> None:
        return

    def capacity(self) -> Capacity:
        return Capacity(slots=self._slots, running=self._running)

    async def run(self, call: Call) -> AsyncIterator[Chunk | Answer]:
        self._running += 1
        try:
            asked = self._read(call)
            if isinstance(asked, Answer):
                yield asked
                return
            reply = _Reply(call, asked)
            await self._pause(self._first_s)
            if not asked.stream:
                await self._pause(self._pause_s * len(reply.words))
                yield reply.whole()
                return
            for chunk in reply.chunks():
                yield chunk
                await self._pause(self._pause_s)
            yield Answer(status=200, body=b"")
        finally:
            self._running -= 1

    async def _pause(self, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)

    def _read(self, call: Call) -> Body | Answer:
        try:
            asked = _bodies.decode(call.body)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$.")
            return _refuse(400, text, "Bad Request", f"body.{path.rstrip('`')}" if path else None)
        if asked.model != self._model:
            return _refuse(404, f"The model `{asked.model}` does not exist.", "NotFoundError", "model")
        if (asked.n or 1) != 1:
            return _refuse(400, "The echo engine makes one choice; n must be 1.", "BadRequestError", "n")
        length = len(_WORD.findall(_said(call.route, asked)))
        if length >= self._max_model_len:
            message = (
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt contains at "
                f"least {length} input tokens. (parameter=input_tokens, value={length})"
            )
            return _refuse(400, message, "BadRequestError", "input_tokens")
        return asked


class _Reply:
    """The answer to one body, whole or in chunks of one word."""

    def __init__(self, call: Call, asked: Body) -> None:
        said = _WORD.findall(_said(call.route, asked))
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        self.words = said if limit is None else said[:limit]
        self.reason = "stop" if len(self.words) == len(said) else "length"
        self._asked, self._chat, self._prompt_tokens = asked, call.route == CHAT, len(said)
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{call.task_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": now_ms() // 1000,
            "model": asked.model,
        }

    @property
    def usage(self) -> dict[str, int]:
        made = len(self.words)
        return {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + made,
            "completion_tokens": made,
        }

    def whole(self) -> Answer:
        text = "".join(self.words)
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.reason}
        kind = "chat.completion" if self._chat else "text_completion"
        return Answer(
            status=200, body=_encode({**self._head, "object": kind, "choices": [choice], "usage": self.usage})
        )

    def chunks(self) -> list[Chunk]:
        made = [Chunk(self._frame({"role": "assistant", "content": ""}, None))] if self._chat else []
        for word in self.words:
            said = {"content": word} if self._chat else word
            made.append(Chunk(self._frame(said, None), (_token(word),)))
        made.append(Chunk(self._frame({} if self._chat else "", self.reason)))
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            made.append(Chunk(_encode({**self._head, "choices": [], "usage": self.usage})))
        return made

    def _frame(self, said: object, reason: str | None) -> bytes:
        name = "delta" if self._chat else "text"
        choice = {"index": 0, name: said, "logprobs": None, "finish_reason": reason}
        return _encode({**self._head, "choices": [choice]})


def _said(route: str, asked: Body) -> str:
    if route == CHAT:
        content = asked.messages[-1].content if asked.messages else ""
        return content if isinstance(content, str) else "".join(part.text for part in content or [])
    return asked.prompt if isinstance(asked.prompt, str) else "".join(asked.prompt)


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) & 0xFFFF


def _refuse(status: int, message: str, kind: str, param: str | None) -> Answer:
    return Answer(
        status=status, body=_encode({"error": {"message": message, "type": kind, "param": param, "code": status}})
    )
