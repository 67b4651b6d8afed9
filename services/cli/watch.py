"""`headrace watch`: tasks, or all of a session, as they go, over the WebSocket."""

import argparse
import asyncio
import random
from typing import Literal

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from services.cli.doors import http_door, is_loopback, read_json
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.follow import Following, Gap, Message
from services.cli.printer import Printer

SUBPROTOCOL = Subprotocol("headrace.v1")
HELLO = {"t": "hello", "v": 1, "client": {"name": "headrace watch"}}
FRAME_BYTES = 16 * 1024 * 1024
"""Larger than any answer: what did not come in pieces comes in one frame."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
STOP_CODES = (1000, 1008, 1009)
LATE_S = 10.0
"""After a missed heartbeat."""


class Lost(Exception):
    """The connection is gone; come back after `pause_s`, or when it suits (None)."""

    def __init__(self, why: str, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


async def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.tasks) == bool(arguments.session):
        raise Failure("name the tasks to watch, or one --session", code=USAGE)
    url = arguments.ws_url or await find_socket(arguments.url, arguments.tasks)
    following = Following(arguments.tasks, arguments.session)
    printer = Printer(json=arguments.json, headed=len(arguments.tasks) != 1)
    await Watcher(url, following, printer).run()
    return TASK_FAILED if following.failed else OK


async def find_socket(url: str, tasks: list[str]) -> str:
    """A task tells where it can be followed, and so does the list. Raises: Failure, also for an unknown task."""
    async with http_door(url) as client:
        told = read_json(await client.get(f"/v1/tasks/{tasks[0]}" if tasks else "/v1/tasks"))
    return str(told["links"]["ws"])


class Watcher:
    def __init__(self, url: str, following: Following, printer: Printer) -> None:
        self._url, self._following, self._printer = url, following, printer
        self._welcomes = 0

    async def run(self) -> None:
        """Until nothing more will come. Raises: Failure."""
        pause_s = FIRST_PAUSE_S
        while not self._following.over:
            before = self._welcomes
            try:
                await self._connected()
            except Lost as lost:
                if not self._welcomes:
                    raise Failure(f"{lost}\nIs the notifier up? --ws-url names another address.") from None
                pause_s = FIRST_PAUSE_S if self._welcomes > before else min(LONGEST_PAUSE_S, pause_s * 2)
                self._printer.tell(f"[{lost}; connecting again]")
                await asyncio.sleep(random.uniform(0, pause_s) if lost.pause_s is None else lost.pause_s)

    async def _connected(self) -> None:
        """One connection, from hello to its end. Raises: Lost, Failure."""
        proxy: Literal[True] | None = None if is_loopback(self._url) else True
        try:
            async with connect(self._url, subprotocols=[SUBPROTOCOL], max_size=FRAME_BYTES, proxy=proxy) as socket:
                await _send(socket, [HELLO, *self._following.subscriptions()])
                await self._read(socket)
        except ConnectionClosed as closed:
            raise _lost(closed) from None
        except InvalidURI as error:
            raise Failure(f"--ws-url: {error}", code=USAGE) from None
        except (OSError, InvalidHandshake) as error:
            raise Lost(f"no connection to {self._url}: {str(error) or 'silence'}") from None

    async def _read(self, socket: ClientConnection) -> None:
        silence_s = LATE_S
        while not self._following.over:
            async with asyncio.timeout(silence_s):
                frame = await socket.recv()
            for message in msgspec.json.decode(frame):
                match message["t"]:
                    case "welcome":
                        self._welcomes += 1
                        silence_s = message["hb"] + LATE_S
                    case "ping":
                        await _send(socket, [{"t": "pong", "ts": message.get("ts")}])
                    case "bye" if message["reconnect"]:
                        raise Lost(
                            "the server asked to come again", random.uniform(0, message.get("after_ms", 0) / 1000)
                        )
                    case "bye":
                        raise Failure(f"the server ended the connection ({message['code']})")
                    case "err" if message["code"] == "bad_request":
                        raise Failure(message["msg"], code=USAGE)
                    case _:
                        self._take(message)

    def _take(self, message: Message) -> None:
        try:
            task = self._following.take(message)
        except Gap as gap:
            raise Lost(f"gap in {gap}", 0) from None
        if task is not None:
            self._printer.show(task, message)


async def _send(socket: ClientConnection, messages: list[Message]) -> None:
    await socket.send(msgspec.json.encode(messages).decode())


def _lost(closed: ConnectionClosed) -> Exception:
    """Codes from 4500 on, and a few of the standard's, mean: do not come back."""
    code = closed.rcvd.code if closed.rcvd is not None else 1006
    if 4500 <= code < 5000 or code in STOP_CODES:
        return Failure(f"the server ended the connection ({code})")
    return Lost(f"the connection was closed ({code})")
