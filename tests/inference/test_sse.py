import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.sse import Frames, fault_in

BODY = b'data: {"a": 1}\n\nevent: response.created\ndata: {"b":"x y"}\n\n: ping\n\ndata:{"c":\ndata: 2}\n\ndata: [DONE]\n\n'
PAYLOADS = [b'{"a": 1}', b'{"b":"x y"}', b'{"c":\n2}']


@given(st.lists(st.integers(0, len(BODY)), max_size=8))
def test_payloads_are_the_same_wherever_the_body_is_cut(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(BODY)]
    frames = Frames()
    pieces = [BODY[start:end] for start, end in itertools.pairwise(bounds)]
    assert [payload for piece in pieces for payload in frames.feed(piece)] == PAYLOADS


def test_a_frame_without_its_end_is_kept_back() -> None:
    frames = Frames()
    assert frames.feed(b"data: 1\n") == []
    assert frames.feed(b"\ndata: 2") == [b"1"]


@pytest.mark.parametrize(
    ("payload", "status", "error"),
    [
        (b'{"error":{"message":"no","type":"t","code":404}}', 404, {"message": "no", "type": "t", "code": 404}),
        (b'{"error":{"message":"no","code":"busy"}}', 500, {"message": "no", "type": "server_error", "code": "busy"}),
        (b'{"error": {"message": "no", "type": "t"}}', 500, {"message": "no", "type": "t"}),
        (b'{ "type" : "error", "message": "no"}', 500, {"message": "no", "type": "server_error", "param": None}),
        (b'{"type":"error","error":{"type":"t","message":"no"}}', 500, {"message": "no", "type": "t"}),
        (b'{"type":"error","code":"c","message":"no","param":null}', 500, {"message": "no", "type": "server_error", "code": "c", "param": None}),
    ],
)  # fmt: skip
def test_a_failure_is_told_in_the_shape_of_an_answer_whatever_the_route(
    payload: bytes, status: int, error: dict[str, Any]
) -> None:
    answer = fault_in(payload)
    assert answer is not None
    assert (answer.status, msgspec.json.decode(answer.body)) == (status, {"error": error})


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"error":7}', b'{"error":', b'{"type":"response.created"}', b"[]"])
def test_other_frames_are_no_failure(payload: bytes) -> None:
    assert fault_in(payload) is None
