"""Server-sent events as each route has them."""

import json

import pytest

from services.ingress.streams import DONE, error_frames, frames_of, typed
from shared.errors import ErrorBody
from shared.routes import CHAT, MESSAGES, RESPONSES

ERROR = ErrorBody(message="no", type="server_error", code="stream_reset")


def event(number: int) -> bytes:
    return b'{"type":"e%d","sequence_number":%d}' % (number, number)


def test_frames_are_named_where_the_route_names_them() -> None:
    assert frames_of(RESPONSES, [event(0)]) == b"event: e0\ndata: " + event(0) + b"\n\n"
    assert frames_of(CHAT, [b"{}", b"[]"]) == b"data: {}\n\ndata: []\n\n"


def read(frames: bytes) -> list[str]:
    """The data of each event, as the HTML standard has it read."""
    lines = [frame.splitlines() for frame in frames.decode().split("\n\n") if frame]
    assert all(line.startswith(("data: ", "event: ")) for frame in lines for line in frame)
    return ["\n".join(line[6:] for line in frame if line.startswith("data: ")) for frame in lines]


@pytest.mark.parametrize("route", [RESPONSES, CHAT])
def test_an_event_that_is_indented_is_read_as_one(route: str) -> None:
    chunk = b'{\r\n  "type": "e",\n  "said": "a\\nb"\n}'
    told = read(frames_of(route, [chunk, b"{}"]))
    assert [json.loads(data) for data in told] == [{"type": "e", "said": "a\nb"}, {}]


@pytest.mark.parametrize(("after", "numbers"), [(-1, [0, 1, 2]), (0, [1, 2]), (1, [2]), (2, []), (9, [])])
def test_a_stream_goes_on_behind_a_number(after: int, numbers: list[int]) -> None:
    events = [event(number) for number in range(3)]
    assert frames_of(RESPONSES, events, after=after) == frames_of(RESPONSES, [events[n] for n in numbers])
    whole = [events[n] for n in numbers or [2]]
    assert frames_of(RESPONSES, events, after=after, whole=True) == frames_of(RESPONSES, whole)


def test_a_failure_is_told_as_the_route_tells_it() -> None:
    told = {route: error_frames(route, ERROR) for route in (CHAT, RESPONSES, MESSAGES)}
    data = {route: json.loads(frames.split(b"data: ")[1].split(b"\n")[0]) for route, frames in told.items()}
    assert data[CHAT]["error"]["code"] == "stream_reset"
    assert (data[RESPONSES]["type"], data[RESPONSES]["code"]) == ("error", "stream_reset")
    assert (data[MESSAGES]["type"], data[MESSAGES]["error"]["message"]) == ("error", "no")
    assert [frames.endswith(DONE) for frames in told.values()] == [True, False, False]
    assert [frames.startswith(b"event: error\n") for frames in told.values()] == [False, True, True]


def test_an_error_gets_its_type_once() -> None:
    assert json.loads(typed(b'{"error":{}}')) == {"type": "error", "error": {}}
    for told in (b'{"type":"error","error":{}}', b"no json"):
        assert typed(told) == told
