"""What becomes of a task between this process and a server that refuses, breaks and comes back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from services.cli.courier import STRIKES, Courier, open_session
from services.cli.failure import Failure
from services.cli.requests import Asked, Refused
from shared.clock import monotonic_s
from shared.lifecycle import State
from tests.support.waiting import wait_until

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
TASK = Asked(b"{}", "k")
ENDED = '{"id":"t","status":"completed","created_at_ms":1,\n"result":{"n": 1e400}}'


@asynccontextmanager
async def courier(
    handle: Handler, *, wait: bool = True, patience_s: float = 60
) -> AsyncIterator[tuple[Courier, list[str]]]:
    """With what it tells."""
    told: list[str] = []
    async with RawTestServer(handle) as server, open_session("http://x", 8) as session:
        yield Courier(session, str(server.make_url("")), told.append, wait=wait, patience_s=patience_s), told


def refusal(status: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "t", "code": "c"}}, status=status, headers=headers)


def accepted(status: str = "pending") -> web.Response:
    return web.json_response({"id": "t", "status": status}, status=202)


async def test_a_large_answer_is_fetched_where_it_lies_if_it_is_json() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            return accepted("completed")
        if request.path == "/v1/tasks/t/result":
            return web.Response(text='{"n":\n 1e400}')
        place = {"content_type": kind, "bytes": 14, "url": "/v1/tasks/t/result"}
        return web.json_response({"id": "t", "status": "completed", "created_at_ms": 1, "result": place, "x": 1})

    async with courier(handle) as (sender, _):
        kind = "application/json"
        _, content = await sender.carry(TASK)
        assert content.endswith(b'"result":{"n":1e400},"x":1}')
        kind = "audio/wav"
        _, content = await sender.carry(TASK)
        assert b'"content_type": "audio/wav"' in content


async def test_an_end_is_waited_for_and_comes_as_it_is_in_one_line() -> None:
    states = iter(["pending", "processing"])

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            assert (await request.read(), request.headers["idempotency-key"]) == (b"{}", "k")
            return accepted("completed")
        assert request.path_qs == "/v1/tasks/t?wait=30"
        if (state := next(states, None)) is not None:
            return web.json_response({"id": "t", "status": state, "created_at_ms": 1})
        return web.Response(text=ENDED)

    async with courier(handle) as (sender, told):
        assert await sender.carry(TASK) == (
            State.COMPLETED,
            b'{"id":"t","status":"completed","created_at_ms":1,"result":{"n":1e400}}',
        )
    assert set(told) <= {""}


async def test_an_id_is_enough_for_who_does_not_wait() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        assert request.method == "POST"
        return accepted()

    async with courier(handle, wait=False) as (sender, _):
        assert (await sender.carry(TASK))[0] is State.PENDING


async def test_a_refused_task_waits_as_long_as_the_server_says_and_holds_up_no_other() -> None:
    asked_at_s: list[float] = []
    other_is_through = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.Response:
        if await request.read() != b"{}":
            return accepted()
        asked_at_s.append(monotonic_s())
        if len(asked_at_s) == 1:
            return refusal(429, "the backlog is full", **{"retry-after": "1"})
        await other_is_through.wait()
        return accepted()

    async with courier(handle, wait=False) as (sender, told):
        first = asyncio.ensure_future(sender.carry(TASK))
        await wait_until(lambda: told, "it has been refused")
        await sender.carry(Asked(b"small", ""))
        assert not first.done()
        assert told == ["waits as the server asks (c)"]
        other_is_through.set()
        await first
    assert asked_at_s[1] - asked_at_s[0] >= 1
    assert told[-1] == ""


async def test_a_full_redis_is_waited_for_however_many_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.courier.FULL_S", 0.02)
    refused = 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal refused
        if await request.read() == b"{}" or refused > STRIKES:
            return accepted()
        refused += 1
        full = {"error": {"message": "no memory", "type": "server_error", "code": "memory_full"}}
        return web.json_response(full, status=503)

    async with courier(handle, wait=False, patience_s=0) as (sender, told):
        late = asyncio.ensure_future(sender.carry(Asked(b"late", "")))
        while not late.done():
            await sender.carry(TASK)
        assert (await late)[0] is State.PENDING
    assert "waits as the server asks (memory_full)" in told


async def test_breaks_and_restarts_are_outlasted_with_the_same_key() -> None:
    answers = iter([502, 0, 503, 500, 202])
    keys = set()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        keys.add(request.headers["idempotency-key"])
        match next(answers):
            case 202:
                return accepted()
            case 0:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case status:
                return web.Response(text="<html>", status=status)

    async with courier(handle, wait=False) as (sender, told):
        await sender.carry(TASK)
    assert keys == {"k"}
    assert any("out of order (status 502)" in text for text in told)
    assert any("away (" in text for text in told)


async def test_a_server_that_stays_away_ends_the_run() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return refusal(503, "no memory")

    async with courier(handle, patience_s=0) as (sender, _):
        with pytest.raises(Failure, match=r"out of order \(c\), for 0 s"):
            await sender.carry(TASK)


async def test_a_request_that_breaks_while_others_are_answered_is_given_up() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return accepted() if await request.read() == b"{}" else refusal(500, "a bug")

    async with courier(handle, wait=False) as (sender, _):
        poison = sender.carry(Asked(b"poison", ""))
        poisoned = asyncio.ensure_future(poison)
        while not poisoned.done():
            await sender.carry(TASK)
        with pytest.raises(Refused, match=f"given up after {STRIKES} tries.*out of order"):
            await poisoned


async def test_a_refusal_is_told_in_the_words_of_the_server() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return refusal(404, "no such model")

    async with courier(handle) as (sender, _):
        with pytest.raises(Refused) as refused:
            await sender.carry(TASK)
    assert refused.value.error == {"message": "no such model", "type": "t", "code": "c", "status": 404}


STRANGERS = [
    (401, '{"error": {"message": "who are you?"}}', "who are you"),
    (404, '{"detail": "Not Found"}', "is it Headrace's HTTP address"),
    (200, "<html>", "is it Headrace's HTTP address"),
    (301, "", "is it Headrace's HTTP address"),
]


@pytest.mark.parametrize(("status", "body", "why"), STRANGERS)
async def test_what_would_befall_every_line_ends_the_run(status: int, body: str, why: str) -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(text=body, status=status)

    async with courier(handle) as (sender, _):
        with pytest.raises(Failure, match=why):
            await sender.carry(TASK)
