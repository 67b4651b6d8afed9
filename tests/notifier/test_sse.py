"""The SSE twin of a subscription tells what the WebSocket tells."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from msgspec import Raw
from starlette.applications import Starlette
from starlette.routing import Route

from services.notifier.frames import Data
from services.notifier.line import Line
from services.notifier.sse import Events, encode
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.lifespan import HttpServer
from shared.place import Outlooks
from tests.support import tasks
from tests.support.tails import tailing


@contextlib.asynccontextmanager
async def reading(bus: Bus, task: str) -> AsyncIterator[AsyncIterator[str]]:
    """The lines that a client of the task's events is told."""
    async with tailing(bus) as tail:
        events = Events(bus, Tails([tail]), Line(Outlooks(bus, tasks.LIMITS)), heartbeat_s=25)
        http = HttpServer(Starlette(routes=[Route("/v1/tasks/{id}/events", events.endpoint)]), "127.0.0.1", 0)
        await http.start()
        async with httpx.AsyncClient(base_url=http.url) as client:
            async with client.stream("GET", f"/v1/tasks/{task}/events") as answer:
                yield answer.aiter_lines()
        await http.stop()


async def test_a_waiting_task_tells_its_place_and_then_its_end(bus: Bus) -> None:
    task = await tasks.admitted(bus)
    told: list[dict[str, Any]] = []
    async with reading(bus, task) as lines:
        async for line in lines:
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
                if told[-1]["t"] == "st":
                    await Canceller(bus, tasks.CONFIG).cancel(task)
    place = next(message for message in told if message["t"] == "st")
    assert place["info"] == {"pos": 1, "why": "no_worker"}
    assert (told[-1]["t"], told[-1]["status"]) == ("fail", "cancelled")


async def test_a_client_that_leaves_early_leaves_nothing_that_waits(bus: Bus) -> None:
    """The fixture of the bus looks for tasks that are left."""
    task = await tasks.admitted(bus)
    async with reading(bus, task) as lines:
        async for line in lines:
            if line == "event: live":
                break


def test_a_chunk_that_is_indented_is_in_one_event() -> None:
    chunk = Raw(b'{\r\n  "said": "a\\nb"\n}')
    kind, cursor, *data = encode(Data(id=1, c="0.0.1-0.1.1", f=1, n=1, chunks=[chunk])).decode().splitlines()
    assert (kind, cursor, data.pop()) == ("event: d", "id: 0.0.1-0.1.1", "")
    assert all(line.startswith("data: ") for line in data)
    assert json.loads("\n".join(line[6:] for line in data))["chunks"] == [{"said": "a\nb"}]
