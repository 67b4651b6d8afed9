import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.inference.sse import Frames

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
