"""What the echo engine answers in words, in the shape of each route that speaks: whole, or in chunks of one word."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from services.inference.echo_body import Body, last_said, text_of, token, words
from services.inference.engine import Answer, Call, CannotResume, Chunk
from shared.clock import now_ms
from shared.errors import UNDECODABLE
from shared.events import Event, message_events, response_events
from shared.ids import response_id
from shared.routes import CHAT, COMPLETIONS, MESSAGES, RESPONSES

_MARK = "\0"
"""Stands for a word in the one frame that is encoded for all of them: that halves the time of a chunk."""
_encode = msgspec.json.Encoder().encode


class _Dated(Struct):
    created: int


class Reply(ABC):
    """The answer to one body."""

    field: ClassVar[str]
    """That must be there."""

    def __init__(self, call: Call, asked: Body, model: str) -> None:
        self.asked, self.model, self.task_id = asked, model, call.task_id
        said, others = words(self.last_said()), self.others()
        self.prompt_tokens = len(said) + sum(len(words(text)) for text in others)
        self.words = said[: asked.limit]
        self.reason = "stop" if len(self.words) == len(said) else "length"
        self.created = now_ms() // 1000

    @abstractmethod
    def last_said(self) -> str:
        """What is echoed."""

    def others(self) -> Iterable[str]:
        """The rest of the prompt: it only counts."""
        return ()

    @abstractmethod
    def whole(self) -> Answer: ...

    @abstractmethod
    def chunks(self) -> list[Chunk]: ...

    @property
    def first_word(self) -> str:
        return self.words[0].strip() if self.words else ""

    def following(self, published: tuple[Chunk, ...]) -> list[Chunk]:
        """Raises: CannotResume."""
        if not published:
            return self.chunks()
        self.created = _created(published[0])
        made, first = self.chunks(), len(published)
        if [chunk.data for chunk in made[:first]] != [chunk.data for chunk in published]:
            raise CannotResume("the chunks published are not those of this answer")
        return made[first:]


class _Choice(Reply):
    """Chats and completions: chunks of one choice."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    opening: ClassVar[tuple[dict[str, Any], ...]] = ()
    """What is said before the first word."""

    @property
    def usage(self) -> dict[str, int]:
        made = len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + made,
            "completion_tokens": made,
        }

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}-{self.task_id}", "object": kind, "created": self.created, "model": self.model}

    @abstractmethod
    def said(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def piece(self, text: str) -> dict[str, Any]: ...

    def whole(self) -> Answer:
        said = self.said("".join(self.words))
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.reason}
        return Answer(status=200, body=_encode({**self.head(self.kind), "choices": [choice], "usage": self.usage}))

    def chunks(self) -> list[Chunk]:
        head = self.head(self.chunk_kind)
        made = [Chunk(_frame(head, said, None)) for said in self.opening]
        before, after = _frame(head, self.piece(_MARK), None).split(_encode(_MARK))
        made += [Chunk(b"%b%b%b" % (before, _encode(word), after), (token(word),)) for word in self.words]
        made.append(Chunk(_frame(head, self.piece(""), self.reason)))
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            made.append(Chunk(_encode({**head, "choices": [], "usage": self.usage})))
        return made


def _frame(head: dict[str, Any], said: dict[str, Any], reason: str | None) -> bytes:
    return _encode({**head, "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]})


class Chat(_Choice):
    field = "messages"
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening = ({"delta": {"role": "assistant", "content": ""}},)

    def last_said(self) -> str:
        return last_said(self.asked.messages or [])

    def others(self) -> Iterable[str]:
        messages = self.asked.messages or []
        return _without([text_of(message.content) for message in messages], self.last_said()) if messages[1:] else ()

    def said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}


class Completion(_Choice):
    field = "prompt"
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def last_said(self) -> str:
        return self.asked.prompt or ""

    def said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    piece = said


class _Eventful(Reply):
    """Responses and messages: a stream of named events, one of them for each word."""

    @abstractmethod
    def events(self) -> list[Event]: ...

    @abstractmethod
    def built(self) -> dict[str, Any]: ...

    def whole(self) -> Answer:
        return Answer(status=200, body=_encode(self.built()))

    def chunks(self) -> list[Chunk]:
        left, made = list(reversed(self.words)), []
        for event in self.events():
            tells = event["type"] in ("response.output_text.delta", "content_block_delta")
            made.append(Chunk(_encode(event), (token(left.pop()),) if tells else ()))
        return made

    def following(self, published: tuple[Chunk, ...]) -> list[Chunk]:
        if published:
            raise CannotResume("only chats and completions go on where they were cut off")
        return self.chunks()


class Response(_Eventful):
    field = "input"

    def last_said(self) -> str:
        said = self.asked.input
        return said if isinstance(said, str) else last_said(said or [])

    def others(self) -> Iterable[str]:
        items = self.asked.input if isinstance(self.asked.input, list) else []
        return [*_without([text_of(item.content) for item in items], self.last_said()), self.asked.instructions or ""]

    def events(self) -> list[Event]:
        return response_events(self.built(), words)

    def built(self) -> dict[str, Any]:
        made, asked, complete = len(self.words), self.asked, self.reason == "stop"
        part = {"type": "output_text", "text": "".join(self.words), "annotations": [], "logprobs": []}
        status = "completed" if complete else "incomplete"
        item = {
            "type": "message",
            "id": f"msg_{self.task_id}",
            "status": status,
            "role": "assistant",
            "content": [part],
        }
        return {
            "id": response_id(self.task_id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": [item],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": asked.temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": made,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + made,
            },
        }


class Messages(_Eventful):
    field = "messages"

    def last_said(self) -> str:
        return last_said(self.asked.messages or [])

    def others(self) -> Iterable[str]:
        messages = [text_of(message.content) for message in self.asked.messages or ()]
        return [*_without(messages, self.last_said()), text_of(self.asked.system)]

    def events(self) -> list[Event]:
        return message_events(self.built(), words)

    def built(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.task_id}",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "".join(self.words)}],
            "model": self.model,
            "stop_reason": "end_turn" if self.reason == "stop" else "max_tokens",
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": len(self.words)},
        }


REPLIES: dict[str, type[Reply]] = {CHAT: Chat, COMPLETIONS: Completion, RESPONSES: Response, MESSAGES: Messages}


def _without(texts: list[str], said: str) -> list[str]:
    if said in texts:
        texts.remove(said)
    return texts


def _created(first: Chunk) -> int:
    """Raises: CannotResume."""
    try:
        return msgspec.json.decode(first.data, type=_Dated).created
    except UNDECODABLE:
        raise CannotResume("the first chunk published is none of this engine's") from None
