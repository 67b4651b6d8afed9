"""Streams of named events: taken apart and put together, they are the same answer."""

from typing import Any

import msgspec
import pytest

from shared.chunks import assemble, deltas, disassemble, first_text
from shared.events import BrokenOff, kind_of
from shared.routes import MESSAGES, RESPONSES

encode = msgspec.json.encode
PART = {"type": "output_text", "text": "Hello you", "annotations": [], "logprobs": []}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 7,
    "status": "completed",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [PART]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
    ],
    "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Hello you"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, 2]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


@pytest.mark.parametrize(("route", "answer"), [(RESPONSES, RESPONSE), (MESSAGES, MESSAGE)])
def test_an_answer_taken_apart_adds_up_to_itself(route: str, answer: dict[str, Any]) -> None:
    events = disassemble(route, encode(answer))
    assembled = assemble(route, events)
    assert msgspec.json.decode(assembled.result) == answer
    assert msgspec.json.decode(assembled.usage) == answer["usage"]
    assert "".join(text for event in events for _, text in deltas(event)) == first_text(encode(answer)) == "Hello you"
    assert all(kind_of(event) for event in events)


def test_why_it_ended_is_told_in_the_routes_own_word() -> None:
    assert assemble(MESSAGES, disassemble(MESSAGES, encode(MESSAGE))).finish_reason == "tool_use"
    assert assemble(RESPONSES, disassemble(RESPONSES, encode(RESPONSE))).finish_reason == "completed"
    cut = RESPONSE | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert assemble(RESPONSES, disassemble(RESPONSES, encode(cut))).finish_reason == "max_output_tokens"


def test_events_of_a_response_are_numbered_from_0() -> None:
    made = [msgspec.json.decode(event) for event in disassemble(RESPONSES, encode(RESPONSE))]
    assert [event["sequence_number"] for event in made] == list(range(len(made)))
    assert [event["type"] for event in made[:2]] == ["response.created", "response.in_progress"]
    assert made[-1] == {"type": "response.completed", "sequence_number": len(made) - 1, "response": RESPONSE}


def test_a_response_that_failed_is_an_error() -> None:
    error = {"code": "server_error", "message": "no"}
    failed = encode({"type": "response.failed", "response": RESPONSE | {"status": "failed", "error": error}})
    assembled = assemble(RESPONSES, [failed])
    assert (assembled.failed, msgspec.json.decode(assembled.result)) == (True, {"error": error})


@pytest.mark.parametrize(("route", "answer"), [(RESPONSES, RESPONSE), (MESSAGES, MESSAGE)])
def test_events_without_their_end_are_no_answer(route: str, answer: dict[str, Any]) -> None:
    with pytest.raises(BrokenOff):
        assemble(route, disassemble(route, encode(answer))[:-1])


@pytest.mark.parametrize("data", [b"", b"no json", b"\xff", b"[]", b'{"type":7}', b"{}"])
def test_what_is_no_event_has_no_name(data: bytes) -> None:
    assert kind_of(data) == ""
