"""A deterministic engine: it answers with the words of the last user message. It ships, for tests and for load.

Answers and errors have the shape of vLLM's. What it cannot honour it refuses, so a test that passes here means something.

With `faults` a message whose first word is one of these makes trouble instead, for testing clients and retries:

    !exit       this process ends            \
    !dead       the engine dies               | after the first chunk of every attempt;
    !hang       the answer never ends         | at once if the answer is not streamed
    !error      it ends with a 500           /
    !busy       it is refused with a 429, always
    !busy-once  the first attempt in this process is refused with a 503

and the engine counts as one over HTTP, whose refusals open its circuit breaker (breaker.py).
"""

import asyncio
import os
import re
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from msgspec import Struct

from services.inference.engine import Answer, Call, CannotResume, Capacity, Chunk, EngineDead
from shared.clock import now_ms
from shared.request import CHAT, COMPLETIONS

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
    messages: list[Message] | None = None
    prompt: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    n: int | None = 1
    logprobs: bool | int | None = None
    stop: Any = None
    tools: Any = None
    response_format: Any = None
    echo: bool | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class _Dated(Struct):
    created: int


_bodies = msgspec.json.Decoder(Body)
_encode = msgspec.json.Encoder().encode


class EchoEngine:
    name = "echo"

    def __init__(
        self,
        *,
        model: str,
        tokens_per_s: float,
        first_token_ms: int,
        max_model_len: int,
        slots: int,
        faults: bool = False,
    ) -> None:
        self._model, self._max_model_len = model, max_model_len
        self._faults, self._refused, self._dead = faults, set[str](), False
        self.remote = faults  # so that what guards engines over HTTP can be tested on command
        self._pause_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._first_s = first_token_ms / 1000
        self._slots, self._running, self._steps = slots or SLOTS, 0, 0

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def health(self) -> None:
        if self._dead:
            raise EngineDead("the echo engine was told to die")

    def capacity(self) -> Capacity:
        return Capacity(slots=self._slots, running=self._running, steps=self._steps)

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        await self.health()
        self._running += 1
        self._steps += 1
        try:
            reply = self._read(call)
            if isinstance(reply, Answer):
                yield reply
                return
            await _pause(self._first_s)
            fault = reply.first_word if self._faults else ""
            if not reply.asked.stream:
                failed = await self._strike(fault)
                await _pause(self._pause_s * len(reply.words))
                yield failed or reply.whole()
                return
            for chunk in reply.following(call.published):
                self._steps += 1
                yield chunk
                if failed := await self._strike(fault):
                    yield failed
                    return
                if chunk.tokens:
                    await _pause(self._pause_s)
            yield Answer(status=200, body=b"")
        finally:
            self._running -= 1

    async def _strike(self, fault: str) -> Answer | None:
        """Raises: EngineDead."""
        match fault:
            case "!exit":
                os._exit(1)
            case "!dead":
                self._dead = True
                await self.health()
            case "!hang":
                await asyncio.Event().wait()
            case "!error":
                return _refuse(500, "The echo engine was told to fail.", "InternalServerError", None)
        return None

    def _busy(self, fault: str, task_id: str) -> int:
        """The status to refuse the task with, or 0."""
        if fault == "!busy-once" and task_id not in self._refused:
            self._refused.add(task_id)
            return 503
        self._refused.discard(task_id)
        return 429 if fault == "!busy" else 0

    def _read(self, call: Call) -> "_Reply | Answer":
        try:
            asked = _bodies.decode(call.body)
        except msgspec.DecodeError as error:  # wrong types too, and then with the field's path
            text, _, path = str(error).partition(" - at `$.")
            return _refuse(400, text, "Bad Request", f"body.{path.rstrip('`')}" if path else None)
        if asked.model != self._model:
            message = f"The model `{asked.model}` does not exist. Valid aliases: {self._model}."
            return _refuse(404, message, "NotFoundError", "model")
        if fault := _missing(call.route, asked) or _not_honoured(asked):
            return _refuse(400, *fault)
        reply = _Reply(call, asked)
        if self._faults and (status := self._busy(reply.first_word, call.task_id)):
            return _refuse(status, "The echo engine was told to be busy.", "OverloadedError", None)
        return self._fit(reply)

    def _fit(self, reply: "_Reply") -> "_Reply | Answer":
        limit, length = reply.asked.limit, reply.prompt_tokens
        if limit is not None and limit > self._max_model_len:
            message = f"max_tokens={limit} cannot be greater than max_model_len={self._max_model_len}."
            return _refuse(400, message, "BadRequestError", "max_tokens")
        if length + (limit or 1) > self._max_model_len:
            message = (
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt contains at "
                f"least {length} input tokens. (parameter=input_tokens, value={length})"
            )
            return _refuse(400, message, "BadRequestError", "input_tokens")
        return reply


class _Reply:
    """The answer to one body, whole or in chunks of one word."""

    def __init__(self, call: Call, asked: Body) -> None:
        self.asked, self._chat = asked, call.route == CHAT
        prompts = [_text(message) for message in asked.messages or ()] if self._chat else [asked.prompt or ""]
        said = _WORD.findall(_last_said(asked.messages or []) if self._chat else prompts[0])
        self.prompt_tokens = len(said) if len(prompts) == 1 else sum(len(_WORD.findall(text)) for text in prompts)
        self.words = said[: asked.limit]
        self.reason = "stop" if len(self.words) == len(said) else "length"
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{call.task_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": _created(call.published[0]) if call.published else now_ms() // 1000,
            "model": asked.model,
        }

    @property
    def first_word(self) -> str:
        return self.words[0].strip() if self.words else ""

    @property
    def usage(self) -> dict[str, int]:
        made = len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + made,
            "completion_tokens": made,
        }

    def whole(self) -> Answer:
        text = "".join(self.words)
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.reason}
        kind = "chat.completion" if self._chat else "text_completion"
        body = _encode({**self._head, "object": kind, "choices": [choice], "usage": self.usage})
        return Answer(status=200, body=body)

    def chunks(self) -> list[Chunk]:
        made = [Chunk(self._frame({"role": "assistant", "content": ""}, None))] if self._chat else []
        for word in self.words:
            said = {"content": word} if self._chat else word
            made.append(Chunk(self._frame(said, None), (_token(word),)))
        made.append(Chunk(self._frame({"content": ""} if self._chat else "", self.reason)))
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            made.append(Chunk(_encode({**self._head, "choices": [], "usage": self.usage})))
        return made

    def following(self, published: tuple[Chunk, ...]) -> list[Chunk]:
        """Raises: CannotResume."""
        made, first = self.chunks(), len(published)
        if [chunk.data for chunk in made[:first]] != [chunk.data for chunk in published]:
            raise CannotResume("the chunks published are not those of this answer")
        return made[first:]

    def _frame(self, said: object, reason: str | None) -> bytes:
        name = "delta" if self._chat else "text"
        choice = {"index": 0, name: said, "logprobs": None, "finish_reason": reason}
        return _encode({**self._head, "choices": [choice]})


def _created(first: Chunk) -> int:
    """Raises: CannotResume."""
    try:
        return msgspec.json.decode(first.data, type=_Dated).created
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CannotResume("the first chunk published is none of this engine's") from None


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def _text(message: Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _last_said(messages: list[Message]) -> str:
    return next((_text(message) for message in reversed(messages) if message.role == "user"), _text(messages[-1]))


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) & 0xFFFF


def _missing(route: str, asked: Body) -> tuple[str, str, str] | None:
    field = {CHAT: "messages", COMPLETIONS: "prompt"}.get(route)
    if field is None:
        return f"The echo engine does not serve {route}.", "BadRequestError", "route"
    if getattr(asked, field) in (None, []):
        return f"Field required: {field}", "Bad Request", f"body.{field}"
    return None


def _not_honoured(asked: Body) -> tuple[str, str, str] | None:
    """(message, type, param) of the first parameter that would have to be ignored."""
    if asked.stream_options is not None and not asked.stream:
        return "Stream options can only be defined when `stream=True`.", "BadRequestError", "stream_options"
    if asked.limit is not None and asked.limit < 1:
        return f"max_tokens must be at least 1, got {asked.limit}.", "BadRequestError", "max_tokens"
    if asked.n not in (None, 1):
        return "The echo engine makes one choice: n must be 1.", "BadRequestError", "n"
    for name in ("logprobs", "stop", "tools", "response_format", "echo"):
        value = getattr(asked, name)
        if value and value != {"type": "text"}:
            return f"The echo engine does not support {name}.", "BadRequestError", name
    return None


def _refuse(status: int, message: str, kind: str, param: str | None) -> Answer:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return Answer(status=status, body=_encode({"error": error}))
