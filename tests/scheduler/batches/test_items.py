"""A line is a request, or a fault that says where and what is right."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.scheduler.batches import items
from services.scheduler.batches.endings import answered, one_line
from services.scheduler.batches.items import Item, Reader, Refused, custom_id_of, longest_line
from services.scheduler.batches.lines import Line
from shared import request
from shared.batches import End
from shared.bus.client import Bus
from shared.lifecycle import Lane, State
from shared.messages import elsewhere
from shared.routes import SPEECH
from tests.support import tasks
from tests.support.batches import CHAT, CONFIG, line, made


@pytest.fixture
async def reader(bus: Bus, tmp_path: Path) -> Reader:
    return Reader(CONFIG, await made(bus, tmp_path, [line(0)]))


def of(text: bytes | None) -> Line:
    return Line(7, 100, 100 + len(text or b""), text)


async def test_line_is_a_request_of_the_lane_batch_that_answers_to_the_batch(reader: Reader) -> None:
    asked = reader.request(of(line(1)), 60)
    task = asked.task
    assert (task.route, task.lane, task.tenant, task.expires_in_s) == (CHAT, Lane.BATCH, "acme", 60)
    assert task.reply_to.startswith("batch.batch_")
    assert asked.body == b'{"model":"echo-1","messages":[{"role":"user","content":"text 1"}]}'
    assert reader.check(of(line(1))) == ("item-1", tasks.MODEL)


async def test_window_longer_than_a_task_may_wait_is_cut(reader: Reader) -> None:
    assert reader.request(of(line(1)), 10**6).task.expires_in_s == CONFIG.limits.waiting_s


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"{}", "missing_required_parameter", "custom_id"),
        (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}', "missing_required_parameter", "body"),
        (line(1, custom_id=5), "invalid_type", "custom_id"),
        (line(1, custom_id=""), "invalid_custom_id", "custom_id"),
        (line(1, custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        (line(1, method="GET"), "invalid_method", "method"),
        (line(1, url="/v1/completions"), "invalid_url", "url"),
        (line(1, body={"model": "nope"}), "model_not_found", "model"),
        (line(1, body={"model": tasks.MODEL, "stream": True}), "invalid_request", "body.stream"),
        (line(1, body=[1]), "invalid_request", "body"),
        (None, "line_too_long", None),
    ],
)
async def test_faulty_line_says_what_is_wrong(reader: Reader, text: bytes | None, code: str, param: str | None) -> None:
    for read in (reader.check, lambda given: reader.request(given, 60)):
        with pytest.raises(Refused) as refused:
            read(of(text))
        fault = refused.value.fault
        assert (fault.code, fault.param, fault.line) == (code, param, 7)
        assert fault.message


async def test_a_line_that_breaks_its_reader_is_a_fault_of_that_line(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(request, "from_json", broken)
    monkeypatch.setattr(items, "peek_into", broken)
    for read in (reader.check, lambda given: reader.request(given, 60)):
        with pytest.raises(Refused, match="unforeseen") as refused:
            read(of(line(1)))
        fault = refused.value.fault
        assert (fault.code, fault.line) == ("invalid_request", 7)


async def test_a_speech_of_a_batch_does_not_stream_either(bus: Bus, tmp_path: Path) -> None:
    body = {"model": tasks.MODEL, "input": "do", "stream_format": "sse"}
    text = line(1, url=SPEECH, body=body)
    batch = await made(bus, tmp_path, [text])
    reader = Reader(CONFIG, msgspec.structs.replace(batch, endpoint=SPEECH))
    for read in (reader.check, lambda given: reader.request(given, 60)):
        with pytest.raises(Refused, match="do not stream"):
            read(of(text))


async def test_custom_id_is_read_from_faulty_lines_too() -> None:
    assert custom_id_of(of(line(1, method="GET"))) == "item-1"
    for text in (b"{", line(1, custom_id=5), line(1, custom_id=""), None):
        assert custom_id_of(of(text)) is None


async def test_body_over_the_limit_is_refused_at_its_line(reader: Reader) -> None:
    text = line(1, "x" * CONFIG.limits.body_bytes)
    assert len(text) < longest_line(CONFIG)
    with pytest.raises(Refused) as refused:
        reader.request(of(text), 60)
    assert refused.value.fault.code == "body_too_large"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3}, (3, 0)),
        ("many", (0, 0)),
    ],
)
def test_tokens_are_read_from_answers_of_either_family(usage: Any, tokens: tuple[int, int]) -> None:
    body = msgspec.json.encode({"usage": usage})
    ending = answered("batch_x", 1, Item(1, 0, 1, "a", "t"), State.COMPLETED, 200, body)
    assert (ending.end, ending.tokens_in, ending.tokens_out) == (End.COMPLETED, *tokens)


def test_answer_that_is_indented_becomes_one_line() -> None:
    assert one_line(b'{\n  "a": "b c",\r\n  "d": [1, 2]\n}') == b'{"a":"b c","d":[1,2]}'
    assert one_line(b'{"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize("body", [b"ID3\n\xff\xfb", b"[" * 5000 + b"\n"], ids=["no JSON", "deep"])
def test_answer_that_cannot_be_read_is_a_string_in_its_line(body: bytes) -> None:
    ending = answered("batch_x", 1, Item(1, 0, 1, "a", "t"), State.COMPLETED, 200, body)
    assert ending.line.count(b"\n") == 1
    assert msgspec.json.decode(ending.line)["response"]["body"] == body.decode(errors="replace")


def test_task_is_kept_while_its_line_only_says_where_the_answer_is() -> None:
    item = Item(1, 0, 1, "a", "smol.0.0.0.x")
    for body, kept in (
        (elsewhere(item.task_id, 5, "image/png"), True),
        (elsewhere("another", 5, ""), False),
        ({}, False),
    ):
        assert answered("batch_x", 1, item, State.COMPLETED, 200, msgspec.json.encode(body)).kept is kept
