"""What is not wanted any more ends soon, whatever it is doing and whoever says so; what was given up can run again."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

LONG = " ".join(f"w{number}" for number in range(1000))
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = 2
[pools.smol.echo]
tokens_per_s = 50.0
faults = true
[limits]
failures = 0
"""
SOON = 500
"""Chunks that a cancelled answer may have: by half of it at the latest somebody has heard, however busy the machine is."""
LATE_MS = 10_000
"""After a deadline: the scheduler looks every second, and then the worker has to hear of it. The answer takes longer."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of each service; 20 s for a long answer; one failure is enough to be given up."""
    folder: Path = tmp_path_factory.mktemp("slow")
    with deployment(folder, "--replicas", "scheduler=2", config=CONFIG) as running:
        yield running


@pytest.fixture
async def door(slow: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=slow.http, timeout=30) as client:
        yield client


@pytest.fixture
async def system(slow: Deployment) -> AsyncIterator[Any]:
    """Another system, with a Redis client and nothing of ours."""
    client: Any = redis.asyncio.Redis.from_url(slow.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


async def running_in_engine(slow: Deployment) -> int:
    """As the worker itself counts them."""
    async with httpx.AsyncClient(timeout=30) as client:
        lines = (await client.get(f"{slow.replicas['inference'][0]}/metrics")).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("hr_running_tasks "))))


async def view(door: httpx.AsyncClient, task: str) -> dict[str, Any]:
    found: dict[str, Any] = (await door.get(f"/v1/tasks/{task}")).json()
    return found


@pytest.mark.parametrize("way", ["http", "stream", "key", "websocket"])
async def test_a_running_task_is_cancelled_from_any_door_and_its_engine_stops(
    slow: Deployment, door: httpx.AsyncClient, system: Any, way: str
) -> None:
    envelope = {"body": chat(LONG, stream=True), "task_id": f"cancel-{way}", "reply_to": f"cancelled-{way}"}
    task = (await door.post("/v1/tasks", json=envelope)).json()["id"]
    async with PushClient(slow.ws) as page:
        await page.follow(task)
        while page.tasks[task].n < 5:
            await page.receive()
        match way:
            case "http":
                assert (await door.post(f"/v1/tasks/{task}/cancel")).json()["status"] == "processing"
            case "stream":
                await system.xadd("hr:requests", {"cancel": task})
            case "key":
                await system.xadd("hr:requests", {"cancel": envelope["task_id"]})
            case _:
                await page.send({"t": "cancel", "task": task})
        await page.until_end(task)
    end = page.tasks[task].end
    assert end is not None
    assert (end["t"], end["status"], end["error"]["code"]) == ("fail", "cancelled", "task_cancelled")
    assert page.tasks[task].n < SOON
    await wait_until(lambda: stopped(slow), "the engine has stopped")
    [[_, [[_, reply]]]] = await system.xread({f"hr:reply:cancelled-{way}": "0"}, block=30_000)
    assert (reply["status"], reply["task_id"]) == ("cancelled", envelope["task_id"])
    assert (await view(door, task))["status"] == "cancelled"


async def stopped(slow: Deployment) -> bool:
    return await running_in_engine(slow) == 0


async def test_a_task_expires_where_it_stands_waiting_or_running(slow: Deployment, door: httpx.AsyncClient) -> None:
    """Two slots: the third waits behind them, and is worth something for less time than they take."""
    body = chat(LONG, stream=True)
    asked = [{"body": body, "expires_in": expires_in_s} for expires_in_s in (3.0, 3.0, 0.5)]
    ids = [(await door.post("/v1/tasks", json=envelope)).json()["id"] for envelope in asked]
    ends = [(await door.get(f"/v1/tasks/{task}", params={"wait": "20"})).json() for task in ids]
    assert [(end["status"], end["error"]["code"]) for end in ends] == [("expired", "task_expired")] * 3
    assert "started_at_ms" in ends[0]
    assert "started_at_ms" not in ends[2]
    late_ms = [end["finished_at_ms"] - end["deadline_ms"] for end in ends]
    assert all(0 <= late < LATE_MS for late in late_ms), late_ms
    await wait_until(lambda: stopped(slow), "the engine has stopped")


async def test_a_task_that_the_engine_fails_on_becomes_a_dead_letter_and_runs_again_when_requeued(
    door: httpx.AsyncClient, system: Any
) -> None:
    body = chat("!error but not for ever", stream=True)
    dead = (await door.post("/v1/tasks", json={"body": body, "task_id": "order-9", "reply_to": "dead"})).json()["id"]
    end = (await door.get(f"/v1/tasks/{dead}", params={"wait": "20"})).json()
    assert (end["status"], end.get("failures")) == ("failed", 1), end
    [letter] = (await door.get("/v1/dead", params={"model": MODEL})).json()["data"]
    assert letter["task"] == dead
    assert letter["history"] == end["history"]
    stored = (await door.get(letter["links"]["self"])).json()
    assert (stored["body"], stored["spec"]["task_id"]) == (body, "order-9")
    again = (await door.post(f"/v1/dead/{letter['id']}/requeue")).json()
    second = (await door.get(f"/v1/tasks/{again['id']}", params={"wait": "20"})).json()
    assert (second["status"], second["requeued_from"], second["task_id"]) == ("failed", dead, "order-9")
    replies: list[str] = []
    last = "0"
    while len(replies) < 2:
        for _, entries in await system.xread({"hr:reply:dead": last}, block=30_000):
            replies += [json.loads(reply["reply"])["id"] for _, reply in entries]
            last = entries[-1][0]
    assert replies == [dead, again["id"]]
    assert (await door.post("/v1/dead/drop", params={"model": MODEL})).json()["handled"] == 1
    assert (await door.get("/v1/dead")).json()["total"] == 0
