"""How services start, wait and stop: what a server has under way ends, or its connection does; nobody is answered with an error."""

import asyncio
import contextlib

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared import lifespan
from shared.errors import ConfigError
from shared.lifespan import HttpServer, unless_stopped
from tests.support.waiting import wait_until


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answering = asyncio.Event(), asyncio.Event()
        self.gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.asked.set()
        leaving = asyncio.create_task(self._watch(receive))
        await self.answering.wait()
        leaving.cancel()
        if not self.gone:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.gone = True
        self.answering.set()


async def asked(app: Slow, drain_s: float) -> tuple[HttpServer, "asyncio.Task[httpx.Response]", httpx.AsyncClient]:
    server = HttpServer(app, "127.0.0.1", 0, drain_s=drain_s)
    await server.start()
    client = httpx.AsyncClient(timeout=30)
    calling = asyncio.create_task(client.get(server.url))
    await app.asked.wait()
    return server, calling, client


async def test_a_call_under_way_is_answered_while_the_server_stops() -> None:
    app = Slow()
    server, calling, client = await asked(app, drain_s=10)
    stopping = asyncio.create_task(server.stop())
    app.answering.set()
    assert (await calling).text == "done"
    await stopping
    await client.aclose()


async def test_a_call_that_takes_longer_than_the_time_to_drain_loses_its_connection_and_gets_no_error() -> None:
    app = Slow()
    server, calling, client = await asked(app, drain_s=0.05)
    await server.stop()
    with pytest.raises(httpx.RemoteProtocolError):
        await calling
    assert app.gone
    await client.aclose()


async def test_work_that_ends_before_the_stop_is_handed_on() -> None:
    async def made(what: int) -> int:
        return what

    assert await unless_stopped(asyncio.Event(), made(1), made(2)) == [1, 2]


async def test_work_under_way_when_the_stop_comes_has_ended_with_it(no_task_left: None) -> None:
    stop, begun, broken_off = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            broken_off.set()

    waiting = asyncio.create_task(unless_stopped(stop, endless()))
    await begun.wait()
    stop.set()
    assert await waiting is None
    assert broken_off.is_set()


async def test_a_fault_of_work_is_raised_and_ends_the_rest(no_task_left: None) -> None:
    async def refused() -> bool:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        await unless_stopped(asyncio.Event(), asyncio.Event().wait(), refused())


async def test_a_port_is_shut_until_the_service_is_ready_or_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HttpServer(Response(), "127.0.0.1", 0) as server, httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(server.url)
    monkeypatch.setattr(lifespan, "LATE_S", 0.01)
    async with HttpServer(Response(), "127.0.0.1", 0) as server, httpx.AsyncClient() as client:

        async def answers() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                return (await client.get(server.url)).status_code == 200
            return False

        await wait_until(answers, "it answers though nobody has started it")
        await server.start()
