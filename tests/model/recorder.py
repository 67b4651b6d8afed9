"""A bus on which something goes wrong at one command: so each command of a flow is tried in turn, and none is forgotten."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any, NoReturn

from shared.bus.client import Bus, load_scripts
from shared.bus.connection import Arg, Connection, Reply
from shared.errors import ConnectionLost


class Mishap(StrEnum):
    NONE = "none"
    KILLED = "killed"
    """The command runs; its sender dies as the answer comes."""
    LOST = "lost"
    """The command runs; its answer is lost with the connection."""
    TWICE = "twice"
    """The command runs once more before its sender hears of it."""
    LATE = "late"
    """Others come first."""


class Recorder:
    """Counts the commands of one process from `armed` on, and lets `mishap` befall the one with number `at`."""

    def __init__(self, mishap: Mishap, at: int = 0, rival: Callable[[], Awaitable[object]] | None = None) -> None:
        self._mishap, self._at, self._rival = mishap, at, rival
        self.armed = False
        self.commands = 0
        self.dead = asyncio.Event()

    async def pass_on(self, send: Callable[[], Awaitable[Reply]]) -> Reply:
        if self.dead.is_set():
            await never()
        self.commands += 1
        if self.commands != self._at:
            return await send()
        if self._mishap is Mishap.LATE and self._rival is not None:
            await self._rival()
        reply = await send()
        match self._mishap:
            case Mishap.KILLED:
                self.dead.set()
                await never()
            case Mishap.LOST:
                raise ConnectionLost("the answer was lost")
            case Mishap.TWICE:
                await send()
        return reply


async def never() -> NoReturn:
    while True:
        await asyncio.Event().wait()


class RecordedBus(Bus):
    def __init__(self, url: str, recorder: Recorder) -> None:
        super().__init__(url, name="recorded")
        self.commands, self.bulk = (_RecordedConnection(url, recorder) for _ in range(2))


class _RecordedConnection(Connection):
    def __init__(self, url: str, recorder: Recorder) -> None:
        super().__init__(url, name="recorded", greet=load_scripts)
        self._recorder = recorder

    def send(self, *command: Arg) -> asyncio.Future[Reply]:
        plain = super().send
        if not self._recorder.armed:
            return plain(*command)
        return asyncio.ensure_future(self._recorder.pass_on(lambda: plain(*command)))


async def live_through(url: str, recorder: Recorder, act: Callable[[Bus], Coroutine[Any, Any, object]]) -> bool:
    """Act as a process of its own; False: it was killed, and none of its tasks goes on."""
    others = asyncio.all_tasks()
    async with RecordedBus(url, recorder) as bus:
        await asyncio.gather(bus.commands.connected.wait(), bus.bulk.connected.wait())
        recorder.armed = True
        acting, dying = asyncio.create_task(act(bus)), asyncio.create_task(recorder.dead.wait())
        await asyncio.wait([acting, dying], return_when=asyncio.FIRST_COMPLETED)
        recorder.armed = recorder.dead.is_set()
        if not recorder.dead.is_set():
            dying.cancel()
            await acting
            return True
        life = {bus.commands._life, bus.bulk._life}
        orphans = asyncio.all_tasks() - others - life
        for task in orphans:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*orphans, return_exceptions=True)
    return False
