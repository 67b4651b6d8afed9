"""What `headrace watch` makes of a server's words, over a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from services.cli.failure import Failure
from services.cli.follow import Following
from services.cli.printer import Printer
from services.cli.watch import Watcher

Script = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]
WELCOME = {"t": "welcome", "conn": "x", "v": 1, "hb": 25, "now": 0, "lim": {}}


@asynccontextmanager
async def server(*scripts: Script) -> AsyncIterator[str]:
    """Plays one script a connection, after a proper greeting."""
    coming = iter(scripts)

    async def handle(socket: ServerConnection) -> None:
        hello, subscription = json.loads(await socket.recv())
        assert (hello["t"], hello["v"], socket.subprotocol) == ("hello", 1, "headrace.v1")
        await say(socket, WELCOME)
        await next(coming)(socket, subscription)

    async with serve(handle, "127.0.0.1", 0, subprotocols=[Subprotocol("headrace.v1")]) as listening:
        (socket,) = listening.sockets
        yield f"ws://127.0.0.1:{socket.getsockname()[1]}"


async def say(socket: ServerConnection, *messages: dict[str, Any]) -> None:
    await socket.send(json.dumps(messages))


def watcher(url: str, *, json: bool = False) -> Watcher:
    return Watcher(url, Following(["task"], ""), Printer(json=json, headed=False))


async def test_a_lost_connection_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    async def breaks_off(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        assert subscription["after"] == "0"
        await say(
            socket, {"t": "sync", "id": 1, "task": "task", "status": "processing", "a": 1, "n": 0, "mode": "replay"}
        )
        await say(socket, {"t": "d", "id": 1, "f": 1, "n": 2, "d": "one two", "c": "c2"}, {"t": "ping", "ts": 1})
        assert json.loads(await socket.recv()) == [{"t": "pong", "ts": 1}]
        socket.transport.abort()

    async def drains(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        assert subscription["after"] == "c2"
        await say(socket, {"t": "bye", "code": 4001, "reconnect": True, "after_ms": 1})

    async def ends(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        assert subscription["after"] == "c2"
        await say(socket, {"t": "d", "id": 1, "f": 2, "n": 2, "d": " two", "c": "c2"})
        await say(socket, {"t": "d", "id": 1, "f": 3, "n": 3, "d": " three", "c": "c3"}, {"t": "done", "id": 1, "n": 3})

    async with server(breaks_off, drains, ends) as url:
        await watcher(url).run()
    assert capsys.readouterr().out == "one two three\n"


async def test_a_server_that_wants_nobody_back_is_obeyed() -> None:
    async def refuses(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        await socket.close(4500)

    async with server(refuses) as url:
        with pytest.raises(Failure, match=r"ended the connection \(4500\)"):
            await watcher(url).run()


async def test_a_faulty_subscription_is_told_in_the_words_of_the_server() -> None:
    async def complains(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        await say(socket, {"t": "err", "id": 1, "code": "bad_request", "msg": "no such cursor"})
        await socket.wait_closed()

    async with server(complains) as url:
        with pytest.raises(Failure, match="no such cursor"):
            await watcher(url).run()


async def test_text_that_did_not_come_in_pieces_is_shown_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def tells(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        await say(socket, {"t": "done", "id": 1, "n": 0, "text": "all at once"})

    async with server(tells) as url:
        await watcher(url).run()
    assert capsys.readouterr().out == "all at once\n"


async def test_a_failure_is_told_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    async def fails(socket: ServerConnection, subscription: dict[str, Any]) -> None:
        await say(socket, {"t": "fail", "id": 1, "n": 0, "status": "failed", "error": {"message": "too long"}})

    following = Following(["task"], "")
    async with server(fails) as url:
        await Watcher(url, following, Printer(json=False, headed=False)).run()
    assert following.failed
    assert "[failed: too long]" in capsys.readouterr().err


def test_several_tasks_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(json=False, headed=True)
    for task, text in (("a", "x"), ("a", "y"), ("b", "z")):
        printer.show(task, {"t": "d", "d": text})
    printer.show("b", {"t": "done", "finish": "stop"})
    assert capsys.readouterr().out == "--- a\nxy\n--- b\nz\n"
