import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.inference.asgi import DEPTH, Exchange
from tests.support.waiting import wait_until


def exchange(app: ASGIApp, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> Exchange[bytes]:
    return Exchange(app, "/v1/x", body, headers or {}, bytes)


async def whole(call: Exchange[bytes]) -> bytes:
    return b"".join([piece async for piece in call.read()])


async def test_the_application_sees_the_body_and_headers_and_its_answer_comes_back() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse([await request.json(), request.headers["x-request-id"]], 201)

    call = exchange(Starlette(routes=[Route("/v1/x", answer, methods=["POST"])]), b'{"a":1}', {"X-Request-Id": "t1"})
    assert await whole(call) == b'[{"a":1},"t1"]'
    assert call.status == 201
    assert call.headers[b"content-type"] == b"application/json"


async def test_pieces_arrive_before_the_answer_is_complete() -> None:
    more = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"2"})

    pieces = exchange(answer).read()
    assert await anext(pieces) == b"1"
    more.set()
    assert [piece async for piece in pieces] == [b"2"]


async def test_going_away_disconnects_a_stream() -> None:
    ended = asyncio.Event()

    async def endless(request: Request) -> Response:
        async def one_and_no_end() -> AsyncIterator[bytes]:
            try:
                yield b"1"
                await asyncio.Event().wait()
            finally:
                ended.set()

        return StreamingResponse(one_and_no_end())

    pieces = exchange(Starlette(routes=[Route("/v1/x", endless, methods=["POST"])])).read()
    assert await anext(pieces) == b"1"
    await pieces.aclose()
    await asyncio.wait_for(ended.wait(), 5)


async def test_going_away_tells_an_application_that_has_not_answered_yet() -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asked.set()
        assert await receive() == {"type": "http.disconnect"}
        told.set()

    async def read() -> None:
        await whole(exchange(waits))

    reading = asyncio.create_task(read())
    await asked.wait()
    reading.cancel()
    await asyncio.wait([reading])
    await asyncio.wait_for(told.wait(), 5)


async def test_an_answer_that_nobody_reads_holds_its_application_back() -> None:
    sent = 0

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10 * DEPTH):
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            sent += 1

    pieces = exchange(floods).read()
    await anext(pieces)
    await wait_until(lambda: sent >= DEPTH, "the queue is full")
    assert sent <= DEPTH + 1
    assert len([piece async for piece in pieces]) == 10 * DEPTH - 1


async def test_a_flood_that_was_abandoned_ends() -> None:
    ended = asyncio.Event()

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10 * DEPTH):
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
        ended.set()

    pieces = exchange(floods).read()
    await anext(pieces)
    await pieces.aclose()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_fault_of_the_application_that_it_has_answered_is_not_raised_again() -> None:
    async def faulty(request: Request) -> Response:
        raise RuntimeError("boom")

    call = exchange(Starlette(routes=[Route("/v1/x", faulty, methods=["POST"])]))
    assert await whole(call) == b"Internal Server Error"
    assert call.status == 500


async def test_a_fault_that_left_no_answer_is_raised() -> None:
    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await whole(exchange(faulty))
