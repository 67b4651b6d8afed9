"""How `headrace submit` shapes and sends tasks."""

from collections.abc import Callable

import httpx
import msgspec
import pytest

from services.cli import requests
from services.cli.failure import Failure
from services.cli.requests import Refused, Sender, make_task

Handler = Callable[[httpx.Request], httpx.Response]
TASK = make_task(b'{"input_text": "x"}')


def test_an_openai_body_is_wrapped_and_kept_as_it_is() -> None:
    body = b'{"model": "m",  "messages": [], "seed": 12345678901234567890123, "top_p": 1.0}'
    asked = make_task(body, "ann")
    assert body in asked.payload
    assert msgspec.json.decode(asked.payload, type=dict[str, msgspec.Raw]).keys() == {"route", "body", "session"}


def test_a_task_of_our_own_keeps_its_session_and_id() -> None:
    asked = make_task(b'{"input_text":"x","session":"bob","task_id":"t1"}', "ann")
    assert msgspec.json.decode(asked.payload) == {"input_text": "x", "session": "bob", "task_id": "t1"}
    assert asked.key == ""


def test_a_task_without_an_id_gets_a_key_so_that_sending_again_is_harmless() -> None:
    assert TASK.key != make_task(b'{"input_text": "x"}').key


async def test_who_watches_is_given_the_task_as_it_waits_and_runs() -> None:
    """Looks follow one another faster while it waits: its place changes without an event."""
    answers = iter(["pending", "pending", "processing", "completed"])
    waits: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"id": "t", "status": "pending"})
        waits.append(request.url.params["wait"])
        return httpx.Response(200, json={"id": "t", "status": next(answers), "created_at_ms": 1})

    seen: list[str] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        await Sender(client, wait=True, on_view=lambda view: seen.append(view["status"])).send(TASK)
    assert waits == ["1.0", "1.0", "1.0", "30"]
    assert seen == ["pending", "pending", "processing", "completed"]


NO_TASKS = [
    (b"{", "not a JSON object"),
    (b"[]", "not a JSON object"),
    (b"1", "not a JSON object"),
    (b"", "not a JSON object"),
    (b"[" * 100_000, "not a JSON object"),
    (b'{"foo": 1}', "neither an envelope"),
    (b'{"input_text": "\xff"}', "not UTF-8: invalid start byte at byte 17"),
    (b'{"url": "/v1/x"}', "no `body`"),
    (b'{"url": "/v1/x", "body": {}, "method": "GET"}', "`method` is 'GET'"),
    (b'{"url": "/v1/x", "body": {}, "custom_id": 1}', "are strings"),
    (b'{"url": "/v1/x", "body": {}, "lane": "batch"}', "has no `lane`"),
]


@pytest.mark.parametrize(("line", "why"), NO_TASKS)
def test_what_is_no_task_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        make_task(line)


def test_a_line_of_an_openai_batch_becomes_an_envelope_and_keeps_its_custom_id() -> None:
    line = b'{"custom_id": "a-1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m",  "input": 1e400}}'
    asked = make_task(line, lane="batch", key="k")
    assert (asked.custom_id, asked.key) == ("a-1", "k")
    assert b'{"model": "m",  "input": 1e400}' in asked.payload
    assert msgspec.json.decode(asked.payload, type=dict[str, msgspec.Raw]).keys() == {"route", "body", "lane"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"template_id": "t"}', {"template_id": "t", "lane": "batch", "session": "ann"}),
        (b'{"input_text": "x", "priority": "low"}', {"input_text": "x", "priority": "low", "session": "ann"}),
        (b'{"body": {}, "lane": "normal", "session": "bob"}', {"body": {}, "lane": "normal", "session": "bob"}),
    ],
)
def test_what_a_task_says_itself_goes_first(line: bytes, told: dict[str, object]) -> None:
    assert msgspec.json.decode(make_task(line, "ann", lane="batch").payload) == told


async def test_a_full_backlog_and_a_restart_are_waited_for_with_the_same_key() -> None:
    answers = iter([429, 503, 0, 202])
    keys = set()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"id": "t", "status": "completed", "created_at_ms": 1})
        keys.add(request.headers["idempotency-key"])
        status = next(answers)
        if not status:
            raise httpx.RemoteProtocolError("gone")
        return httpx.Response(status, json={"id": "t", "status": "pending"}, headers={"retry-after": "0"})

    assert (await sender(handle).send(TASK))["status"] == "completed"
    assert len(keys) == 1


async def test_a_full_redis_is_waited_for_beyond_any_patience_and_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer comes when a server that is away would have been given up for long."""
    clock, answers = iter(range(0, 10**6, 1000)), iter([503, 503, 429, 202])
    monkeypatch.setattr(requests, "monotonic_s", lambda: float(next(clock)))

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"id": "t", "status": "completed", "created_at_ms": 1})
        status = next(answers)
        error = {"message": "Redis is full.", "code": "memory_full" if status == 503 else "backlog_full"}
        return httpx.Response(
            status, json={"id": "t", "status": "pending", "error": error}, headers={"retry-after": "0"}
        )

    assert (await sender(handle).send(TASK))["status"] == "completed"
    assert capsys.readouterr().err.splitlines() == [
        "headrace: waits as the server asks (memory_full)",
        "headrace: waits as the server asks (backlog_full)",
    ]


async def test_a_server_that_is_out_of_order_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(requests, "monotonic_s", lambda: float(next(clock)))
    with pytest.raises(Failure, match="503 Service Unavailable"):
        await sender(lambda request: httpx.Response(503, content=b"no JSON")).send(TASK)


async def test_a_refusal_is_not_repeated() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "no such field"}})

    with pytest.raises(Refused, match="no such field") as refused:
        await sender(handle).send(TASK)
    assert refused.value.error["status"] == 400


def sender(handle: Handler) -> Sender:
    return Sender(httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://x"), wait=True)
