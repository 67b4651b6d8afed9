"""Bad input at every door: a clear error in the shape that clients read, nothing stuck, nothing lost."""

import json
from typing import Any

import httpx
import pytest

from tests.flow.test_task_life import MODEL, chat

Case = tuple[str, Any, int, str, str | None]

DEEP = b'{"model":"%s","messages":%s}' % (MODEL.encode(), b"[" * 100_000 + b"]" * 100_000)

CASES: list[Case] = [
    ("/v1/chat/completions", {"model": "nope", "messages": []}, 404, "model_not_found", "model"),
    ("/v1/chat/completions", b"{oops", 400, "invalid_request", None),
    ("/v1/chat/completions", chat("x", stream="yes"), 400, "invalid_request", "stream"),
    ("/v1/chat/completions", {"model": 3}, 400, "invalid_request", "model"),
    ("/v1/chat/completions", DEEP, 400, "invalid_request", None),
    ("/v1/tasks", b'{"body":' + DEEP + b"}", 400, "invalid_request", None),
    ("/v1/completions", b"\xff", 400, "invalid_request", None),
    ("/v1/tasks", {"body": chat("x"), "prioritee": "high"}, 400, "invalid_request", "prioritee"),
    ("/v1/tasks", {"body": chat("x"), "lane": "fast"}, 400, "invalid_request", "lane"),
    ("/v1/tasks", {"body": chat("x"), "route": "/v1/magic"}, 400, "invalid_request", "route"),
    ("/v1/tasks", {"body": {"model": 3}}, 400, "invalid_request", "body.model"),
    ("/v1/tasks", {"body": chat("x"), "session": "a b"}, 400, "invalid_request", "session"),
    ("/v1/tasks", {"input_text": "x", "template_id": "t9"}, 400, "template_not_found", "template_id"),
    ("/v1/tasks", {"input_text": 7}, 400, "invalid_request", "input_text"),
    ("/v1/tasks", {}, 400, "invalid_request", "body"),
    ("/v1/tasks", {"body": chat("x"), "expires_in": 0}, 400, "invalid_request", "expires_in"),
    ("/v1/tasks", {"input_text": "x", "expires_in": 86_401}, 400, "invalid_request", "expires_in"),
    ("/v1/tasks/nonsense/cancel", {}, 404, "task_not_found", "id"),
    ("/v1/dead/nonsense/requeue", {}, 404, "dead_letter_not_found", "id"),
    ("/v1/dead/drop?kode=x", b"", 400, "invalid_request", "kode"),
    ("/v1/nothing", {}, 404, "unknown_route", None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), CASES)
async def test_a_faulty_request_is_refused_with_its_reason(
    http: httpx.AsyncClient, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await http.post(path, content=data, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("param")) == (status, code, param)
    assert error["message"]
    assert error["type"]


async def test_a_body_over_the_limit_is_refused_before_it_is_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/tasks", content=b"x" * (4 * 1024 * 1024 + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_the_engine_reaches_the_client_as_the_engine_put_it(
    http: httpx.AsyncClient, stream: bool
) -> None:
    answer = await http.post("/v1/chat/completions", json=chat("word " * 3000, stream=stream))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_tokens"
    assert "maximum context length" in answer.json()["error"]["message"]


@pytest.mark.parametrize("task_id", ["nonsense", "smol.0.0.0.00000000000000000000000000", "other.0.0.0." + "0" * 26])
async def test_an_unknown_task_is_not_found(http: httpx.AsyncClient, task_id: str) -> None:
    answer = await http.get(f"/v1/tasks/{task_id}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "task_not_found"


async def test_a_faulty_entry_gets_a_failed_reply_and_the_next_one_is_served(producer: Any) -> None:
    await producer.xadd("hr:requests", {"model": "nope", "input_text": "x", "reply_to": "faults", "task_id": "a"})
    await producer.xadd("hr:requests", {"task": "{oops"})
    await producer.xadd("hr:requests", {"task": b"\xff\xfe"})
    await producer.xadd("hr:requests", {"model": MODEL, "input_text": "fine", "reply_to": "faults", "task_id": "b"})
    replies: list[dict[str, str]] = []
    last = "0"
    while len(replies) < 2:
        for _, entries in await producer.xread({"hr:reply:faults": last}, block=30_000):
            replies += [reply for _, reply in entries]
            last = entries[-1][0]
    by_id = {reply["task_id"]: reply for reply in replies}
    assert json.loads(by_id["a"]["reply"])["error"]["code"] == "model_not_found"
    assert by_id["b"]["text"] == "fine"


async def test_a_faulty_entry_without_a_reply_stream_becomes_a_dead_letter(producer: Any) -> None:
    entry = await producer.xadd("hr:requests", {"input_text": "x", "prioritee": "high"})
    letters: list[dict[str, str]] = []
    while not letters:
        for _, entries in await producer.xread({"hr:refused": "0"}, block=30_000):
            letters += [letter for _, letter in entries if letter["entry"] == entry]
    assert "prioritee" in letters[0]["reason"]
    assert letters[0]["said.input_text"] == "x"


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"cancel": "a b"}, "`cancel` is 'a b'"),
        ({"cancel": "x", "input_text": "y"}, "Beside `cancel`"),
        ({"input_text": "x", "expires_in": "nan"}, "`expires_in` is nan"),
    ],
)
async def test_a_faulty_cancel_or_deadline_at_the_stream_door_becomes_a_dead_letter(
    producer: Any, entry: dict[str, str], word: str
) -> None:
    id = await producer.xadd("hr:requests", entry)
    letters: list[dict[str, str]] = []
    while not letters:
        for _, found in await producer.xread({"hr:refused": "0"}, block=30_000):
            letters += [letter for _, letter in found if letter["entry"] == id]
    assert word in letters[0]["reason"]


async def test_a_reply_stream_of_another_type_makes_a_dead_letter_and_blocks_nobody(
    producer: Any,
) -> None:
    await producer.set("hr:reply:broken", "not a stream")
    await producer.xadd("hr:requests", {"model": MODEL, "input_text": "x", "reply_to": "broken"})
    await producer.xadd("hr:requests", {"model": MODEL, "input_text": "after", "reply_to": "sound"})
    [[_, [[_, reply]]]] = await producer.xread({"hr:reply:sound": "0"}, block=30_000, count=1)
    assert reply["text"] == "after"
    [[_, [[_, letter]]]] = await producer.xread({"hr:{smol.0}:dead": "0"}, block=30_000, count=1)
    assert "type" in letter["reason"]
    await producer.delete("hr:reply:broken")
