import msgspec
import pytest
from msgspec import Raw

from shared.errors import ErrorBody
from shared.lifecycle import Lane, State
from shared.messages import (
    NULL,
    Chunks,
    Finished,
    Reset,
    Started,
    Task,
    decode_event,
    decode_task,
    encode,
    is_json_elsewhere,
)
from tests.support.tasks import chunks_event

TASK = Task(route="/v1/completions", model="m", tenant="t", lane=Lane.BATCH, metadata=Raw(b'{"k":[1, 2]}'))


def test_json_of_the_producer_is_carried_byte_for_byte() -> None:
    carried = decode_task(encode(TASK))
    assert bytes(carried.metadata) == b'{"k":[1, 2]}'
    assert carried.context == NULL


def test_chunks_are_carried_byte_for_byte() -> None:
    frames = [Raw(b'{"choices": [ ]}'), Raw(b'{"a":1.0}')]
    event = decode_event(encode(Chunks(attempt=1, first=1, last=2, chunks=frames)))
    assert isinstance(event, Chunks)
    assert [bytes(chunk) for chunk in event.chunks] == [b'{"choices": [ ]}', b'{"a":1.0}']


def test_defaults_are_not_written() -> None:
    assert encode(Started(attempt=1, worker="w")) == b'{"type":"started.v1","attempt":1,"worker":"w"}'
    assert b"context" not in encode(TASK)


def test_event_is_told_apart_by_its_tag() -> None:
    assert isinstance(decode_event(chunks_event(1, 2)), Chunks)
    assert decode_event(encode(Reset(attempt=2, why="retry"))) == Reset(attempt=2, why="retry")


def test_task_is_no_event() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(encode(TASK))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b'{"type":"chunks.v1"}', b"{}", b"\x00"])
def test_what_is_no_message_raises_a_decode_error(data: bytes) -> None:
    for decode in (decode_event, decode_task):
        with pytest.raises(msgspec.DecodeError):
            decode(data)


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TASK.model = "other"  # type: ignore[misc]


def test_error_is_carried_whole() -> None:
    error = ErrorBody(message="no", type="t", param="p", code=7)
    event = decode_event(encode(Finished(attempt=1, last=0, state=State.FAILED, status=500, error=error)))
    assert isinstance(event, Finished)
    assert event.error == error


@pytest.mark.parametrize(
    ("said", "is_elsewhere"),
    [
        (b'{"content_type":"application/json","bytes":9,"url":"/v1/tasks/t/result"}', True),
        (b'{"content_type":"audio/wav","bytes":9,"url":"/v1/tasks/t/result"}', False),
        (b'{"content_type":"application/json","bytes":9,"url":"/v1/tasks/other/result"}', False),
        (b'{"content_type":"\xff","bytes":9,"url":"/v1/tasks/t/result"}', False),
        (b'{"content_type":"application/json"}', False),
        (b"[" * 300, False),
        (b"null", False),
    ],
)
def test_only_the_place_of_a_large_answer_in_json_stands_for_it(said: bytes, is_elsewhere: bool) -> None:
    assert is_json_elsewhere("t", Raw(said)) is is_elsewhere
