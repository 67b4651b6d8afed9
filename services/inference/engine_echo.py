"""A deterministic engine: it answers with the words of the last user message. It ships, for tests and for load.

Answers and errors have the shape of vLLM's. What it cannot honour it refuses, so a test that passes here means something.
Beside chats and completions it serves responses and messages (echo_answers.py), and vectors, counts and sounds (echo_media.py).

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
from collections.abc import AsyncGenerator, Collection

import msgspec

from services.inference.echo_answers import REPLIES, Reply
from services.inference.echo_body import PLAIN, REFUSED, Body
from services.inference.echo_media import Refused, make
from services.inference.engine import Answer, Call, Capacity, Chunk, EngineDead
from shared.errors import UNDECODABLE, InvalidRequest

SLOTS = 256
"""Enough to hide a round trip to Redis at 5,000 tasks/s."""
_encode = msgspec.json.Encoder().encode
_bodies = msgspec.json.Decoder(Body)


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
        adapters: Collection[str] = (),
        faults: bool = False,
    ) -> None:
        """`adapters`: further names, under which it answers the same."""
        self._names = (model, *adapters)
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

    def _read(self, call: Call) -> Reply | Answer:
        try:
            kind = REPLIES.get(call.route)
            if kind is None:
                return self._make(call)
            asked = _bodies.decode(call.body)
        except UNDECODABLE as error:  # wrong types too, and then with the field's path
            text, _, path = str(error).partition(" - at `$.")
            return _refuse(400, text, "Bad Request", f"body.{path.rstrip('`')}" if path else None)
        if asked.model not in (None, *self._names):
            message = f"The model `{asked.model}` does not exist. Valid aliases: {', '.join(self._names)}."
            return _refuse(404, message, "NotFoundError", "model")
        if fault := _missing(kind, asked) or _not_honoured(asked):
            return _refuse(400, *fault)
        reply = kind(call, asked, asked.model or self._model)
        if self._faults and (status := self._busy(reply.first_word, call.task_id)):
            return _refuse(status, "The echo engine was told to be busy.", "OverloadedError", None)
        return self._fit(reply)

    def _make(self, call: Call) -> Answer:
        """What is not made of words. Raises: msgspec.DecodeError."""
        try:
            made = make(call, self._model, self._max_model_len)
        except Refused as refused:
            return _refuse(400, str(refused), "BadRequestError", refused.param)
        except InvalidRequest as error:
            return _refuse(400, str(error), "Bad Request", error.param)
        return made or _refuse(404, f"The echo engine does not serve {call.route}.", "NotFoundError", "route")

    def _fit(self, reply: Reply) -> Reply | Answer:
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


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def _missing(kind: type[Reply], asked: Body) -> tuple[str, str, str] | None:
    field = kind.field
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
    for name in REFUSED:
        value = getattr(asked, name)
        if value and value not in PLAIN:
            return f"The echo engine does not support {name}.", "BadRequestError", name
    return None


def _refuse(status: int, message: str, kind: str, param: str | None) -> Answer:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return Answer(status=status, body=_encode({"error": error}))
