"""What an answer means, whatever its route calls things: why it ended, and what is charged."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from services.inference.ending import conclude, used
from services.inference.engine import Answer, Chunk
from services.inference.run import Run
from services.inference.scripts import Hand, Running
from shared.events import BrokenOff, message_events, response_events
from shared.lifecycle import State
from shared.messages import Task, encode
from shared.routes import EMBEDDINGS, MESSAGES, RESPONSES
from tests.shared.test_events import MESSAGE, RESPONSE


def run(route: str) -> Run:
    spec = encode(Task(route=route, model="m", tenant="t"))
    return Run(Hand("smol.0.0.0.x", 1, b"1-0"), Running(attempt=1, spec=spec, body=b"{}", waited_ms=0, published=0))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, 5),
        ({"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}, 3),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_tokens_details": {"cached_tokens": 1}}, 5),
        ({"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 10, "cache_creation_input_tokens": None}, 15),
        ({"total_tokens": 7}, 7),
        ({"prompt_tokens": -3}, 0),
        ({}, 0),
    ],
)  # fmt: skip
def test_every_shape_of_usage_is_read(usage: dict[str, Any], tokens: int) -> None:
    assert used(run(EMBEDDINGS), Raw(encode(usage))) == tokens


def test_without_usage_the_tokens_of_the_chunks_count() -> None:
    made = run(EMBEDDINGS)
    made.chunks.append(Chunk(b"{}", (1, 2), (3,)))
    assert used(made) == used(made, Raw(b'{"prompt_tokens":"x"}')) == 3


@pytest.mark.parametrize(
    ("route", "answer", "reason"), [(RESPONSES, RESPONSE, "completed"), (MESSAGES, MESSAGE, "tool_use")]
)
def test_whole_and_streamed_answers_end_alike(route: str, answer: dict[str, Any], reason: str) -> None:
    events = response_events(answer) if route == RESPONSES else message_events(answer)
    streamed = run(route)
    streamed.chunks += (Chunk(encode(event)) for event in events)
    made = [
        conclude(run(route), Answer(status=200, body=encode(answer)), 10_000),
        conclude(streamed, Answer(status=200, body=b""), 10_000),
    ]
    for conclusion in made:
        assert (conclusion.state, conclusion.finish_reason) == (State.COMPLETED, reason)
        assert msgspec.json.decode(conclusion.result) == answer
        assert used(streamed, conclusion.usage) == 5


def test_a_response_that_failed_in_its_stream_fails_the_task() -> None:
    failed = run(RESPONSES)
    response = RESPONSE | {"status": "failed", "error": {"code": "server_error", "message": "no"}}
    failed.chunks.append(Chunk(encode({"type": "response.failed", "response": response})))
    conclusion = conclude(failed, Answer(status=200, body=b""), 10_000)
    assert conclusion.error is not None
    assert (conclusion.state, conclusion.status, conclusion.error.message) == (State.FAILED, 500, "no")


def test_events_that_break_off_are_no_answer() -> None:
    with pytest.raises(BrokenOff):
        conclude(run(MESSAGES), Answer(status=200, body=b""), 10_000)


def test_a_result_that_is_not_json_keeps_its_type_and_its_limit() -> None:
    sound = Answer(status=200, body=b"\xff" * 100, content_type="audio/wav")
    conclusion = conclude(run(EMBEDDINGS), sound, 100)
    assert (conclusion.state, conclusion.content_type) == (State.COMPLETED, "audio/wav")
    assert conclude(run(EMBEDDINGS), sound, 99).state is State.FAILED
