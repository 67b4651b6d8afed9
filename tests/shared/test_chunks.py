"""What a stream of chunks adds up to is what the same request would have got whole."""

from typing import Any

import msgspec
import pytest

from shared.chunks import assemble, deltas, disassemble, first_text, texts
from shared.messages import NULL
from shared.request import CHAT, COMPLETIONS
from shared.routes import INVOCATIONS

HEAD = {"id": "chatcmpl-1", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat(*choices: dict[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({**HEAD, "object": "chat.completion.chunk", "choices": choices, **more})


def text(*choices: dict[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({**HEAD, "object": "text_completion", "choices": choices, **more})


def delta(index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "logprobs": None, "finish_reason": finish_reason}


def whole(route: str, *chunks: bytes) -> Any:
    return msgspec.json.decode(assemble(route, chunks).result)


def test_chat_is_the_answer_that_would_have_come_whole() -> None:
    chunks = [
        chat(delta(role="assistant", content="")),
        chat(delta(content="Hel")),
        chat(delta(content="lo")),
        chat(delta(finish_reason="stop"), usage=None),
        chat(usage=USAGE),
    ]
    assembled = assemble(CHAT, chunks)
    assert msgspec.json.decode(assembled.result) == {
        **HEAD,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert assembled.finish_reason == "stop"
    assert msgspec.json.decode(assembled.usage) == USAGE


def test_completion_is_the_answer_that_would_have_come_whole() -> None:
    chunks = [
        text({"index": 0, "text": "Hel", "finish_reason": None, "stop_reason": None}),
        text({"index": 0, "text": "lo", "finish_reason": "length", "stop_reason": None}),
    ]
    assert whole(COMPLETIONS, *chunks) == {
        **HEAD,
        "object": "text_completion",
        "choices": [{"index": 0, "text": "Hello", "finish_reason": "length", "stop_reason": None}],
    }


def test_choices_are_joined_each_by_itself_and_in_their_order() -> None:
    chunks = [
        chat(delta(1, content="b")),
        chat(delta(0, content="a"), delta(1, content="B")),
        chat(delta(0, content="A")),
    ]
    answer = whole(CHAT, *chunks)
    assert [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]] == [(0, "aA"), (1, "bB")]


def test_what_is_asked_for_by_invocation_is_a_chat_or_a_completion_as_its_chunks_are() -> None:
    told = whole(INVOCATIONS, chat(delta(0, role="assistant", content="a")), chat(delta(0, content="b")))
    assert (told["object"], told["choices"][0]["message"]["content"]) == ("chat.completion", "ab")
    assert texts(msgspec.json.encode(told)) == [(0, "ab")]
    assert whole(INVOCATIONS, *disassemble(INVOCATIONS, msgspec.json.encode(told))) == told
    told = whole(INVOCATIONS, text({"index": 0, "text": "Hel"}), text({"index": 0, "text": "lo"}))
    assert (told["object"], told["choices"][0]["text"]) == ("text_completion", "Hello")


def test_logprobs_of_a_chat_follow_one_another() -> None:
    def said(token: str, logprob: float) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": logprob,
            "bytes": [1],
            "top_logprobs": [{"token": token, "logprob": logprob}],
        }

    chunks = [
        chat({**delta(content="a"), "logprobs": {"content": [said("a", -0.1)]}}),
        chat({**delta(content="b"), "logprobs": {"content": [said("b", -0.2), said("c", -0.3)]}}),
        chat(delta(finish_reason="stop")),
    ]
    (choice,) = whole(CHAT, *chunks)["choices"]
    assert choice["logprobs"] == {"content": [said("a", -0.1), said("b", -0.2), said("c", -0.3)]}


def test_logprobs_of_a_completion_follow_one_another() -> None:
    def said(offset: int, token: str) -> dict[str, Any]:
        return {
            "text_offset": [offset],
            "token_logprobs": [-0.5],
            "tokens": [token],
            "top_logprobs": [{token: -0.5}],
        }

    chunks = [text({"index": 0, "text": t, "logprobs": said(n, t)}) for n, t in enumerate("ab")]
    (choice,) = whole(COMPLETIONS, *chunks)["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["a", "b"],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
    }


def call(index: int, **function: str) -> dict[str, Any]:
    return {"index": index, "function": function}


def test_tool_calls_are_joined_by_their_index() -> None:
    """A whole answer's tool calls carry no `index`: it is the stream's own."""
    chunks = [
        chat(delta(role="assistant", content=None)),
        chat(delta(tool_calls=[{**call(0, name="sum", arguments=""), "id": "call_1", "type": "function"}])),
        chat(delta(tool_calls=[call(0, arguments='{"a"')])),
        chat(delta(tool_calls=[{**call(1, name="product", arguments="{"), "id": "call_2", "type": "function"}])),
        chat(delta(tool_calls=[call(1, arguments="}"), call(0, arguments=":1}")])),
        chat(delta(finish_reason="tool_calls")),
    ]
    (choice,) = whole(CHAT, *chunks)["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "sum", "arguments": '{"a":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "product", "arguments": "{}"}},
        ],
    }


def test_role_said_with_every_chunk_is_said_once() -> None:
    chunks = [chat(delta(role="assistant", content=word)) for word in ("a", "b")]
    assert whole(CHAT, *chunks)["choices"][0]["message"] == {"role": "assistant", "content": "ab"}


def test_reasoning_is_text_of_its_own() -> None:
    chunks = [chat(delta(reasoning_content="th")), chat(delta(reasoning_content="ink")), chat(delta(content="said"))]
    message = whole(CHAT, *chunks)["choices"][0]["message"]
    assert message == {"reasoning_content": "think", "content": "said"}


def test_stream_of_nothing_is_an_answer_without_choices() -> None:
    assembled = assemble(CHAT, [])
    assert msgspec.json.decode(assembled.result) == {"object": "chat.completion", "choices": []}
    assert (assembled.finish_reason, assembled.usage) == (None, NULL)


def test_chunks_are_not_changed_by_being_assembled() -> None:
    chunks = [chat(delta(content="a")), chat(delta(content="b"))]
    assert whole(CHAT, *chunks) == whole(CHAT, *chunks)


@pytest.mark.parametrize(
    ("data", "added"),
    [
        (chat(delta(content="a"), delta(1, content="b")), [(0, "a"), (1, "b")]),
        (text({"index": 0, "text": "a"}), [(0, "a")]),
        (chat(delta(role="assistant", content="")), []),
        (chat(delta(tool_calls=[])), []),
        (chat(usage=USAGE), []),
        (b"no json", []),
        (b'{"choices":7}', []),
    ],
)
def test_text_that_a_chunk_adds(data: bytes, added: list[tuple[int, str]]) -> None:
    assert deltas(data) == added


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            b'{"choices":[{"index":0,"message":{"content":"a"}},{"index":1,"message":{"content":"b"}}]}',
            [(0, "a"), (1, "b")],
        ),
        (b'{"choices":[{"index":0,"text":"a"}]}', [(0, "a")]),
        (b'{"choices":[{"index":0,"message":{"content":null,"tool_calls":[]}}]}', []),
        (b'{"data":[]}', []),
        (b"no json", []),
    ],
)
def test_texts_of_a_whole_answer(result: bytes, said: list[tuple[int, str]]) -> None:
    assert texts(result) == said
    assert first_text(result) == next((text for index, text in said if index == 0), None)


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_a_whole_answer_taken_apart_adds_up_to_itself(route: str) -> None:
    if route == CHAT:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        said: dict[str, Any] = {"message": {"role": "assistant", "content": "Hello", "tool_calls": [call]}}
    else:
        said = {"text": "Hello"}
    kind = "chat.completion" if route == CHAT else "text_completion"
    answer = {**HEAD, "object": kind, "choices": [{"index": 0, **said, "finish_reason": "stop"}], "usage": USAGE}
    assert whole(route, *disassemble(route, msgspec.json.encode(answer))) == answer
