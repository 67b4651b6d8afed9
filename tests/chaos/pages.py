"""WebSocket subscribers that come back with their cursors, to whichever replica is up."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from itertools import cycle
from typing import Any

import msgspec
import websockets

from tests.chaos.history import History
from tests.support.websocket import PushClient, Seen

TROUBLE = (websockets.WebSocketException, OSError, TimeoutError)
PAUSE_S = 0.5
LEAVES = 0.01
"""Share of frames after which the page goes away on its own: a laptop is closed."""


class Watcher:
    """Follows one task, or a session, until it is told that this was all."""

    def __init__(self, history: History, sockets: list[str], dice: random.Random, name: str) -> None:
        self._history, self._dice, self.name = history, dice, name
        self._sockets = cycle(dice.sample(sockets, len(sockets)))
        self.tasks: dict[str, Seen] = {}
        self._over = False
        self.broken = ""
        """A rule of docs/websocket.md that was broken."""
        self._news = asyncio.Event()

        self._following: asyncio.Task[None] | None = None

    def follow_session(self) -> None:
        """From now on, until `close`."""
        self._following = asyncio.create_task(self._follow(lambda page: page.follow_session(self.name)))

    async def follow(self, task: str) -> Seen:
        """Until its end."""
        self._following = asyncio.create_task(self._follow(lambda page: page.follow(task)))
        try:
            return await self.until_end(task)
        finally:
            self.close()

    def close(self) -> None:
        self._over = True
        if self._following is not None:
            self._following.cancel()

    async def until_end(self, task: str) -> Seen:
        """Of a task that this watcher follows; at once if a rule was broken."""
        try:
            while not self.broken and ((seen := self.tasks.get(task)) is None or seen.end is None):
                self._news.clear()
                await self._news.wait()
        except asyncio.CancelledError:
            self._history.note(self.name, "waited in vain", id=task, seen=msgspec.to_builtins(self.tasks.get(task)))
            raise
        return self.tasks.get(task) or Seen()

    async def _follow(self, subscribe: Callable[[PushClient], Any]) -> None:
        while not self._over and not self.broken:
            try:
                url = next(self._sockets)
                async with asyncio.timeout(120), PushClient(url) as page:
                    self._history.note(self.name, "connected", url=url)
                    page.tasks = self.tasks
                    await subscribe(page)
                    await self._read(page)
            except AssertionError as error:
                self.broken = str(error) or "the server does not keep to the protocol"
                self._history.note(self.name, "gap", why=self.broken)
            except TROUBLE as error:
                if isinstance(error, websockets.ConnectionClosed) and error.rcvd and error.rcvd.code >= 4500:
                    self.broken = f"closed for good: {error.rcvd.code} {error.rcvd.reason}"
                self._history.note(self.name, "broken", where="socket", why=repr(error))
            self._news.set()
            await asyncio.sleep(self._dice.uniform(0, PAUSE_S))

    async def _read(self, page: PushClient) -> None:
        while not self._over and self._dice.random() > LEAVES:
            frame = await page.receive()
            self._news.set()
            for message in frame:
                if message["t"] == "err":
                    self._history.note(self.name, "refused", where="socket", **message)


async def cancel_over_socket(url: str, task: str) -> None:
    """As a page that cancels and goes."""
    with contextlib.suppress(AssertionError, *TROUBLE):
        async with asyncio.timeout(10), PushClient(url) as page:
            await page.send({"t": "cancel", "task": task})
